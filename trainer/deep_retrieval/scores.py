"""PathScores: how well each item's paths suit the users who click it, summed over the clicks of one M-step (Sec. 3.3).

A path id is an opaque int64 here.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Paths = NDArray[np.int64]


class PathScores:
    """The scores s[v, c] of the J present paths of each of V items, and of the S best others.

    Made for one M-step and thrown away after it, because the next network gives other scores. Memory: 16 (J + S) bytes
    an item.

    paths: (V, J), the present paths. candidates: int64 (V, J + S), the scored paths of each item, the present ones
    first; -1 where there is none yet. values: float64 (V, J + S), their scores. clicks: int64 (V,), N_v, the clicks
    observed of each item.
    """

    def __init__(self, paths: Paths, size: int, eta: float) -> None:
        """No clicks yet. paths: (V, J). size: S. eta: a score is multiplied by it at each further click of the item."""
        items, count = paths.shape
        self.paths, self.size, self.eta = paths, size, eta
        # The present paths are kept whatever their scores: for a rare item none of them is among the S most probable.
        self.candidates = np.full((items, count + size), -1, np.int64)
        self.candidates[:, :count] = paths
        self.values = np.zeros((items, count + size))
        self.clicks = np.zeros(items, np.int64)

    def observe(self, items: NDArray[np.int32], paths: Paths, probs: NDArray[np.float32]) -> None:
        """Add N clicks. items: (N,), the clicked ones; paths: (N, C), to score for each; probs: (N, C), p(c | x).

        The clicks are taken one after another, so two halves observed in turn equal the whole. At a click all scores of
        its item decay by eta, then each of the C paths gains its probability. Of the paths that are not present ones
        the S best are kept. A path that enters starts at eta times the lowest kept score, its upper bound (Sec. 3.3;
        after Metwally et al. 2005). If a row has the same path
        twice, only its first entry counts; -1 is no path.
        """
        probabilities = probs.astype(np.float64)
        _observe(self.candidates, self.values, self.clicks, items, paths, probabilities, self.eta, self.paths.shape[1])


@njit(cache=True)
def _observe(candidates, scores, clicks, items, paths, probs, eta, present):  # type: ignore[no-untyped-def]
    """See PathScores.observe; changes `candidates`, `scores` and `clicks`. present: J."""
    new = np.empty(paths.shape[1], np.int64)
    for i in range(len(items)):
        v = items[i]
        clicks[v] += 1
        floor = eta * scores[v, present:].min()  # 0 while fewer than S are kept
        scores[v] *= eta
        # Paths already kept gain first, so that a new one never pushes out one that this click names too.
        count = 0
        for j in range(paths.shape[1]):
            if paths[i, j] < 0 or _position(paths[i, :j], paths[i, j]) >= 0:
                continue
            s = _position(candidates[v], paths[i, j])
            if s >= 0:
                scores[v, s] += probs[i, j]
            else:
                new[count] = j
                count += 1
        for j in new[:count]:
            lowest = present + scores[v, present:].argmin()
            score = floor + probs[i, j]
            if score > scores[v, lowest]:
                candidates[v, lowest] = paths[i, j]
                scores[v, lowest] = score


@njit(cache=True)
def _position(values, wanted):  # type: ignore[no-untyped-def]
    """The first index at which `values` has `wanted`, or -1."""
    for i in range(len(values)):
        if values[i] == wanted:
            return i
    return -1

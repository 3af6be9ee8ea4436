"""PathScores: for each item, scores of paths that sum the paths' probabilities over the item's clicks (Sec. 3.3)."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Paths = NDArray[np.int64]


class PathScores:
    """For each of V items, the scores s[v, c] of its J present paths and of the S best other paths.

    The scores are for one M-step only, because the next network gives different scores. Memory: 16 (J + S) bytes per
    item.

    paths: (V, J), the present paths. candidates: int64 (V, J + S), the scored paths of each item, present paths first;
    -1 is an empty place. values: float64 (V, J + S), the scores of the candidates. clicks: int64 (V,), N_v, the number
    of clicks observed for each item.
    """

    def __init__(self, paths: Paths, size: int, eta: float) -> None:
        """Start without clicks. paths: (V, J). size: S. eta: factor on all scores of an item at each of its clicks."""
        items, count = paths.shape
        self.paths, self.size, self.eta = paths, size, eta
        # The present paths are kept at any score, because those of a rare item are seldom among the S most probable.
        self.candidates = np.full((items, count + size), -1, np.int64)
        self.candidates[:, :count] = paths
        self.values = np.zeros((items, count + size))
        self.clicks = np.zeros(items, np.int64)

    def observe(self, items: NDArray[np.int32], paths: Paths, probs: NDArray[np.float32]) -> None:
        """Add N clicks, one after another.

        items: (N,), the clicked items. paths: (N, C), C paths to score at each click; -1 is no path, and a repeated
        path counts once. probs: (N, C), p(c | x).

        At a click, all scores of the item are multiplied by eta. Then the probability of each of the C paths is added
        to the path's score. Besides the present paths, the S best are kept. A path that is new among them starts at
        eta times the lowest score kept, an upper bound of its unknown score (Sec. 3.3; after Metwally et al. 2005).
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
        floor = eta * scores[v, present:].min()  # 0 as long as fewer than S paths are kept
        scores[v] *= eta
        # Raise the scores of kept paths first, so that a new path never replaces a path of the same click.
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

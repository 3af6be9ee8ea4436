"""PathAssigner: the M-step. observe() streams scores s[v, c], reassign() is the penalised coordinate descent.

A path id is an opaque int64 here. Memory: 12 S + 8 J bytes an item; time: a pass over the observations, and
V J S T gains for a reassignment, both compiled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Paths = NDArray[np.int64]
Floats = NDArray[np.float64]


class PathAssigner:
    """Which J paths each of V items sits on, and the scores from which that is decided (Sec. 3.2, 3.3).

    paths: int64 (V, J), different within an item. Read it; `reassign` replaces it.
    """

    def __init__(self, paths: Paths, candidate_paths: int, eta: float) -> None:
        """Start from `paths` (V, J). candidate_paths: S, kept an item; eta: decay an observation of the item."""
        self.paths = paths
        self.eta = eta
        self._size = candidate_paths
        self._clear()

    def _clear(self) -> None:
        items = len(self.paths)
        self._candidates = np.full((items, self._size), -1, np.int64)
        self._scores = np.zeros((items, self._size))
        self.clicks = np.zeros(items, np.int64)  # N_v, observations of each item

    def observe(self, items: NDArray[np.int32], paths: Paths, probs: NDArray[np.float32]) -> None:
        """Add N clicks to the scores: items (N,), and for each the paths (N, C) considered, with p(c | x).

        Streaming, one click after another, so two halves observed in turn equal the whole. Each of the clicked
        item's scores decays by eta, then gains the click's probability; the top S are kept. A path that was not
        among them starts from eta times the least of them, which is what it may have had at most (Sec. 3.3; after
        Metwally et al. 2005). A path named twice in a row counts once; -1 is no path.
        """
        _observe(self._candidates, self._scores, self.clicks, items, paths, probs.astype(np.float64), self.eta)

    def reassign(self, alpha: float, sweeps: int) -> None:
        """Set `paths` to what `descend` finds, and forget the scores: the next network gives others."""
        self.paths = self.descend(alpha, sweeps)
        self._clear()

    def descend(self, alpha: float, sweeps: int) -> Paths:
        """The paths (V, J) that penalised coordinate descent finds for the present scores (Algorithm 2).

        An item with no or too few scored paths fills up with the least crowded paths in use.
        """
        count = self.paths.shape[1]
        paths: Paths = _descend(self._candidates, self._scores, self.clicks, count, alpha, sweeps)
        used, sizes = np.unique(paths[paths >= 0], return_counts=True)
        if len(used) < count:
            used, sizes = np.unique(np.concatenate([paths[paths >= 0], self.paths.ravel()]), return_counts=True)
        order = np.argsort(sizes, kind="stable")
        _fill(paths, used[order], sizes[order])
        return paths

    def objective(self, paths: Paths, alpha: float) -> float:
        """What `descend` maximises: sum of N_v log sum_j s[v, path_j] less alpha times the sum of |c|^4 / 4."""
        match = self._candidates[:, None, :] == paths[:, :, None]  # (V, J, S)
        totals = (match * self._scores[:, None, :]).sum(axis=(1, 2))
        scored = (self.clicks > 0) & (totals > 0)
        _, sizes = np.unique(paths[paths >= 0], return_counts=True)
        return float((self.clicks[scored] * np.log(totals[scored])).sum() - alpha * (sizes.astype(float) ** 4 / 4).sum())


@dataclass(frozen=True)
class Occupancy:
    """How the postings are spread over the paths. used: P; mean and largest: items a path; entropy in bits."""

    used: int
    largest: int
    mean_size: float
    gini: float
    entropy: float

    @classmethod
    def of(cls, paths: Paths) -> Occupancy:
        """Of an assignment (V, J)."""
        return cls.of_sizes(np.unique(paths, return_counts=True)[1])

    @classmethod
    def of_sizes(cls, sizes: NDArray[np.int64]) -> Occupancy:
        """Of the sizes of the paths in use, (P,)."""
        sizes = np.sort(sizes)
        share = sizes / sizes.sum()
        ranks = np.arange(1, len(sizes) + 1)
        gini = float((2 * ranks - len(sizes) - 1) @ share / len(sizes))
        return cls(len(sizes), int(sizes[-1]), float(sizes.mean()), gini, float(-(share * np.log2(share)).sum()))

    def to_json(self) -> dict[str, Any]:
        return {"used": self.used, "largest": self.largest, "mean_size": self.mean_size, "gini": self.gini}

    def collapse(self, items: int, budget: int) -> str | None:
        """A warning with its remedy if one path has far more items than a request may read, else None."""
        if self.largest <= max(budget, 0.05 * items) and self.entropy > 0.3 * math.log2(items):
            return None
        return (
            f"the index is collapsing: {self.used} paths used, the largest holds {self.largest} of {items} items; "
            "raise warmup_epochs so that the network tells paths apart before items move, or raise alpha"
        )


@njit(cache=True)
def _observe(candidates, scores, clicks, items, paths, probs, eta):  # type: ignore[no-untyped-def]
    size = candidates.shape[1]
    new = np.empty(paths.shape[1], np.int64)
    for i in range(len(items)):
        v = items[i]
        clicks[v] += 1
        known, known_scores = candidates[v], scores[v]
        floor = eta * known_scores.min()  # 0 while the list is not full
        for s in range(size):
            known_scores[s] *= eta
        # Paths already known gain first, so that a new one never pushes out one that this click names too.
        count = 0
        for j in range(paths.shape[1]):
            path = paths[i, j]
            if path < 0:
                continue
            again = False
            for earlier in range(j):
                again |= paths[i, earlier] == path
            if again:
                continue
            found = False
            for s in range(size):
                if known[s] == path:
                    known_scores[s] += probs[i, j]
                    found = True
                    break
            if not found:
                new[count] = j
                count += 1
        for m in range(count):
            j = new[m]
            least = known_scores.argmin()
            score = floor + probs[i, j]
            if score > known_scores[least]:
                known[least] = paths[i, j]
                known_scores[least] = score


@njit(cache=True)
def _descend(candidates, scores, clicks, count, alpha, sweeps):  # type: ignore[no-untyped-def]
    """Paths (V, J); -1 where an item has no further scored path.

    In each sweep an item leaves all its paths and chooses J anew, one after another, each the best given those
    chosen; it keeps its old ones if those are better together. So no sweep lowers the objective. (Algorithm 2
    leaves one old path at a time, so an item's own old places make its new ones dearer.)
    """
    items, size = candidates.shape
    ids = np.unique(candidates)
    place = np.searchsorted(ids, candidates)
    load = np.zeros(len(ids))  # |c|
    chosen = np.full((items, count), -1, np.int64)  # places in an item's candidates
    trial = np.empty(count, np.int64)
    for sweep in range(sweeps):
        for v in range(items):
            if clicks[v] == 0:
                continue
            old_gain = 0.0
            if sweep > 0:
                total = 0.0
                for j in range(count):
                    if chosen[v, j] >= 0:
                        total += scores[v, chosen[v, j]]
                        load[place[v, chosen[v, j]]] -= 1
                        old_gain -= alpha * _marginal(load[place[v, chosen[v, j]]])
                old_gain += clicks[v] * np.log(total)
            new_gain, total = 0.0, 0.0
            for j in range(count):
                trial[j] = -1
                best = -np.inf
                for s in range(size):
                    if scores[v, s] <= 0 or candidates[v, s] < 0:
                        continue
                    taken = False
                    for earlier in range(j):
                        taken |= trial[earlier] == s
                    if taken:
                        continue
                    gain = clicks[v] * np.log(total + scores[v, s]) - alpha * _marginal(load[place[v, s]])
                    if gain > best:
                        best = gain
                        trial[j] = s
                if trial[j] < 0:
                    break
                total += scores[v, trial[j]]
                new_gain -= alpha * _marginal(load[place[v, trial[j]]])
            new_gain += clicks[v] * np.log(total)
            if sweep == 0 or new_gain > old_gain:
                chosen[v] = trial
                for j in range(count):
                    if trial[j] < 0:
                        chosen[v, j:] = -1
                        break
            for j in range(count):
                if chosen[v, j] >= 0:
                    load[place[v, chosen[v, j]]] += 1
    paths = np.full((items, count), -1, np.int64)
    for v in range(items):
        for j in range(count):
            if chosen[v, j] >= 0:
                paths[v, j] = candidates[v, chosen[v, j]]
    return paths


@njit(cache=True)
def _marginal(load):  # type: ignore[no-untyped-def]
    """f(|c| + 1) - f(|c|) of f(c) = c^4 / 4."""
    return ((load + 1.0) ** 4 - load**4) / 4


@njit(cache=True)
def _fill(paths, order, sizes):  # type: ignore[no-untyped-def]
    """Replace each -1 in `paths` by the least crowded of the paths `order` that its item is not on yet.

    order: path ids by rising size; sizes: their sizes, in that order. At least J paths.
    """
    level, cursor = sizes[0], 0
    for v in range(len(paths)):
        for j in range(paths.shape[1]):
            while paths[v, j] < 0:
                if cursor == len(order) or sizes[cursor] > level:
                    level, cursor = level + 1, 0
                taken = False
                for other in range(paths.shape[1]):
                    taken |= paths[v, other] == order[cursor]
                if not taken:
                    paths[v, j] = order[cursor]
                    sizes[cursor] += 1
                cursor += 1

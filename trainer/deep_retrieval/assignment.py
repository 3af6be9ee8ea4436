"""PathAssigner: the M-step. observe() streams scores s[v, c], reassign() is the penalised coordinate descent.

A path id is an opaque int64 here. Memory: 18 (S + J) + 8 J bytes an item, twice that where ids are large; time: a pass
over the observations, and for a reassignment at most V J S T gains, both compiled.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

#: The load of each path is kept by its id where ids are at most so many times the candidates, else by its rank.
DENSE = 1

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
        items, count = self.paths.shape
        # The present paths come first and stay: for a rare item none of them is among the S most probable.
        self._candidates = np.full((items, count + self._size), -1, np.int64)
        self._candidates[:, :count] = self.paths
        self._scores = np.zeros((items, count + self._size))
        self.clicks = np.zeros(items, np.int64)  # N_v, observations of each item

    def observe(self, items: NDArray[np.int32], paths: Paths, probs: NDArray[np.float32]) -> None:
        """Add N clicks to the scores: items (N,), and for each the paths (N, C) considered, with p(c | x).

        Streaming, one click after another, so two halves observed in turn equal the whole. Each of the clicked
        item's scores decays by eta, then gains the click's probability; the present paths and the top S of the others
        are kept. A path that was not among them starts from eta times the least of those, which is what it may have
        had at most (Sec. 3.3; after Metwally et al. 2005). A path named twice in a row counts once; -1 is no path.
        """
        present = self.paths.shape[1]
        probs = probs.astype(np.float64)
        _observe(self._candidates, self._scores, self.clicks, items, paths, probs, self.eta, present)

    def reassign(self, alpha: float, sweeps: int) -> None:
        """Set `paths` to what `descend` finds, and forget the scores: the next network gives others."""
        self.paths = self.descend(alpha, sweeps)
        self._clear()

    def descend(self, alpha: float, sweeps: int) -> Paths:
        """The paths (V, J) that penalised coordinate descent finds for the present scores (Algorithm 2).

        An item that was not observed keeps its paths; one with too few scored paths fills up with the least crowded
        in use.
        """
        count = self.paths.shape[1]
        places, known = self._candidates, int(self._candidates.max()) + 1
        if known > DENSE * self._candidates.size:
            ids, places = np.unique(self._candidates, return_inverse=True)
            places, known = places.reshape(self._candidates.shape), len(ids)
        paths: Paths = _descend(self._candidates, places, known, self._scores, self.clicks, count, alpha, sweeps)
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
        return float(
            (self.clicks[scored] * np.log(totals[scored])).sum() - alpha * (sizes.astype(float) ** 4 / 4).sum()
        )


@njit(cache=True)
def _observe(candidates, scores, clicks, items, paths, probs, eta, present):  # type: ignore[no-untyped-def]
    new = np.empty(paths.shape[1], np.int64)
    for i in range(len(items)):
        v = items[i]
        clicks[v] += 1
        floor = eta * scores[v, present:].min()  # 0 while the list is not full
        scores[v] *= eta
        # Paths already known gain first, so that a new one never pushes out one that this click names too.
        count = 0
        for j in range(paths.shape[1]):
            if paths[i, j] < 0 or _place(paths[i, :j], paths[i, j]) >= 0:
                continue
            s = _place(candidates[v], paths[i, j])
            if s >= 0:
                scores[v, s] += probs[i, j]
            else:
                new[count] = j
                count += 1
        for j in new[:count]:
            least = present + scores[v, present:].argmin()
            score = floor + probs[i, j]
            if score > scores[v, least]:
                candidates[v, least] = paths[i, j]
                scores[v, least] = score


@njit(cache=True)
def _descend(candidates, places, known, scores, clicks, count, alpha, sweeps):  # type: ignore[no-untyped-def]
    """Paths (V, J); -1 where an item has no further scored path. places: (V, S), of each candidate, below `known`.

    In each sweep an item leaves all its paths and chooses J anew; it keeps its old ones if those are better
    together. So no sweep lowers the objective. (Algorithm 2 leaves one old path at a time, so an item's own old
    places make its new ones dearer.)
    """
    load = np.zeros(known, np.int32)  # |c|
    chosen = np.full((len(candidates), count), -1, np.int16)  # places in an item's candidates
    order = np.empty(candidates.shape, np.int16)  # of those that have a score, the best first
    scored = np.zeros(len(candidates), np.int16)  # how many these are
    for v in range(len(candidates)):
        if clicks[v] > 0:
            scored[v] = _rank(scores[v], order[v])
        else:
            chosen[v] = np.arange(count)  # where its present paths are
            _move(load, places[v], chosen[v], 1)
    for sweep in range(sweeps):
        for v in range(len(candidates)):
            if clicks[v] == 0:
                continue
            _move(load, places[v], chosen[v], -1)
            found = _choose(scores[v], order[v, : scored[v]], places[v], load, clicks[v], count, alpha)
            if sweep == 0 or (
                _gain(found, scores[v], places[v], load, clicks[v], alpha)
                > _gain(chosen[v], scores[v], places[v], load, clicks[v], alpha)
            ):
                chosen[v] = found
            _move(load, places[v], chosen[v], 1)
    paths = np.full((len(candidates), count), -1, np.int64)
    for v in range(len(candidates)):
        for j in range(count):
            if chosen[v, j] >= 0:
                paths[v, j] = candidates[v, chosen[v, j]]
    return paths


@njit(cache=True)
def _move(load, places, chosen, by):  # type: ignore[no-untyped-def]
    """An item comes to its chosen paths, or leaves them."""
    for s in chosen:
        if s >= 0:
            load[places[s]] += by


@njit(cache=True)
def _rank(scores, order):  # type: ignore[no-untyped-def]
    """Write where the positive scores are into `order`, the highest first; returns how many."""
    count = 0
    for s in range(len(scores)):
        if scores[s] > 0:
            place = count
            while place > 0 and scores[order[place - 1]] < scores[s]:
                order[place] = order[place - 1]
                place -= 1
            order[place] = s
            count += 1
    return count


@njit(cache=True)
def _choose(scores, order, places, load, clicks, count, alpha):  # type: ignore[no-untyped-def]
    """Places in one item's candidates, (J,): one after another, each the best given those before it.

    order: the candidates with a score, the highest first. So the search ends where even an empty path would gain less.
    """
    found = np.full(count, -1, np.int16)
    total = 0.0
    for j in range(count):
        best = -np.inf
        for s in order:
            # The paper subtracts N_v log(sum), the same for every candidate; at j = 1 it would be log 0.
            gain = clicks * np.log(total + scores[s])
            if gain - alpha * _marginal(0) <= best:
                break
            gain -= alpha * _marginal(load[places[s]])
            if gain > best and _place(found[:j], s) < 0:
                best = gain
                found[j] = s
        if found[j] < 0:
            break
        total += scores[found[j]]
    return found


@njit(cache=True)
def _gain(chosen, scores, places, load, clicks, alpha):  # type: ignore[no-untyped-def]
    """What the paths `chosen` add to the objective when their item is on none yet."""
    total, penalty = 0.0, 0.0
    for s in chosen:
        if s >= 0:
            total += scores[s]
            penalty += alpha * _marginal(load[places[s]])
    return clicks * np.log(total) - penalty if total > 0 else -np.inf


@njit(cache=True)
def _place(values, wanted):  # type: ignore[no-untyped-def]
    """Where `wanted` first is in `values`, or -1."""
    for i in range(len(values)):
        if values[i] == wanted:
            return i
    return -1


@njit(cache=True)
def _marginal(load):  # type: ignore[no-untyped-def]
    """f(|c| + 1) - f(|c|) of f(c) = c^4 / 4."""
    return ((load + 1.0) ** 4 - float(load) ** 4) / 4  # of whole numbers, powers would overflow


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

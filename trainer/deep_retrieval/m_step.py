"""The M-step: with a fixed network, score paths for every click, then give each item new paths (Sec. 3.2, Algorithm 2).

The objective is a sum over items minus a penalty. The term of an item v is N_v log sum_j s[v, path_j]: N_v is the
number of its clicks and s[v, c] the score of path c for v. The penalty is alpha times the sum over paths c of
f(|c|) = |c|^4 / 4, where |c| is the number of items on c.

Time: one pass over the clicks to score them, and at most V J (J + S) T evaluations of the gain for each descent.
Memory: the scores need 16 (J + S) bytes per item. A descent needs about 8 (J + S) bytes per item in addition, or about
48 (J + S) if path ids are large (docs/sizing.md).
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit

from retrieval.query import Limits
from trainer.config import TrainConfig
from trainer.data.batches import Batches
from trainer.deep_retrieval.layers import PathModel
from trainer.deep_retrieval.losses import predictions
from trainer.deep_retrieval.occupancy import Occupancy
from trainer.deep_retrieval.reads import TRAINED_READS, expected_reads
from trainer.deep_retrieval.scores import Paths, PathScores
from trainer.progress import Advance

SEARCHED_TOGETHER = 128  # users per beam search on a CPU: with more, a layer's tensors exceed the caches
SAMPLED_REQUESTS = 4000  # requests whose beams are kept, to estimate the number of items that a request reads


def reassign(
    model: PathModel, batches: Batches, paths: Paths, config: TrainConfig, advance: Advance
) -> tuple[Paths, float]:
    """One M-step from the present `paths` (V, J). Returns the new paths (V, J) and the alpha used for them.

    From the tree, no path gets more items than the largest path has at present: sharing paths costs more reads than a
    better path saves (docs/log-paths.md), and without this bound, repeated M-steps use fewer and fewer paths. From
    random paths only the penalty bounds the sizes, as in the paper.
    """
    scores = PathScores(paths, config.candidate_paths, config.eta)
    beams = score_paths(model, batches, scores, advance)
    capacity = Occupancy.of(paths).largest if config.start == "tree" else None
    if config.alpha != "auto":
        alpha = config.alpha
    elif capacity == 1:
        alpha = 0.0  # no path can be shared, so there is nothing to penalise
    else:
        alpha = alpha_for_budget(scores, beams, config, capacity)
    return descend(scores, alpha, config.sweeps, capacity), alpha


def score_paths(model: PathModel, batches: Batches, scores: PathScores, advance: Advance) -> Paths:
    """Add every training click to `scores`. Returns the beams of about 4,000 clicks as path ids (R, S).

    For a click, the S paths of the user's beam are scored, and also the present paths of the clicked item, because the
    beam seldom has the paths of a rare item.
    """
    model.eval()
    beams: list[Paths] = []
    every = max(1, batches.predictions // SAMPLED_REQUESTS)
    with torch.inference_mode():
        for batch in batches.epoch(None):
            users, items, _ = predictions(model, batch)
            batch_beams = []
            together = SEARCHED_TOGETHER if users.device.type == "cpu" else len(users)
            for user, clicked in zip(users.split(together), items.split(together), strict=True):
                item = clicked.cpu().numpy()
                present = torch.from_numpy(scores.paths[item]).to(user.device)
                beam, beam_log_probs = model.beam_search(user, scores.size)
                present_log_probs = model.path_log_probs(user, present)
                scores.observe(
                    item.astype(np.int32),
                    torch.cat([beam, present], dim=1).cpu().numpy(),
                    torch.cat([beam_log_probs, present_log_probs], dim=1).exp().cpu().numpy(),
                )
                batch_beams.append(beam.cpu().numpy())
            beams.append(np.concatenate(batch_beams)[::every].copy())
            advance(len(items))
    return np.concatenate(beams)


def alpha_for_budget(scores: PathScores, beams: Paths, config: TrainConfig, capacity: int | None = None) -> float:
    """The alpha for which a request would read about TRAINED_READS k items, found by bisection over `descend`.

    No training is needed, because the scores do not change. A larger alpha makes paths smaller (Table 5: the size of
    the largest path is proportional to alpha^-0.3). beams: (R, S), the result of `score_paths`. capacity: see
    `descend`.
    """
    beam = min(Limits.BEAM, 5 * config.k) if config.beam == "auto" else config.beam
    low, high = -9.0, 6.0  # bounds of log10 alpha

    def reads(exponent: float) -> float:
        return expected_reads(descend(scores, 10**exponent, config.sweeps, capacity), beams, beam)

    # With few scored paths, a request may read more than the budget even with the largest alpha. Bisection would then
    # choose the largest alpha, which ignores the scores and saves almost no reads. So the budget is at least 10 %
    # above the reads with that alpha.
    budget = max(TRAINED_READS * config.k, 1.1 * reads(high))
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if reads(middle) > budget else (low, middle)
    return float(10**high)


def descend(scores: PathScores, alpha: float, sweeps: int, capacity: int | None = None) -> Paths:
    """New paths (V, J) by coordinate descent on the penalised objective, in `sweeps` (T) passes over all items.

    capacity: no item moves to a path that has so many items; at present no path may have more. None: no limit.
    An item without clicks keeps its paths. If fewer than J candidates of an item have a score, the item also gets the
    least crowded paths in use. `scores` does not change.
    """
    present, candidates = scores.paths, scores.candidates
    # The number of items on each path is an array indexed by path id, or by the rank of the id if ids are too large.
    place, size = candidates, int(candidates.max()) + 1
    if size > candidates.size:
        ids, place = np.unique(candidates, return_inverse=True)
        place, size = place.reshape(candidates.shape), len(ids)
    limit = capacity or len(present)
    paths: Paths = _descend(
        candidates, place, size, scores.values, scores.clicks, present.shape[1], alpha, sweeps, limit
    )
    used, sizes = np.unique(paths[paths >= 0], return_counts=True)
    if len(used) < present.shape[1]:
        used, sizes = np.unique(np.concatenate([paths[paths >= 0], present.ravel()]), return_counts=True)
    order = np.argsort(sizes, kind="stable")
    _fill(paths, used[order], sizes[order])
    return paths


# In the compiled functions, `load` has the number of items on each path, |c|, and `place` (V, J + S) is the index of
# each candidate in `load`. The paths chosen for an item, (J,), are positions among its candidates; -1 means no path.


@njit(cache=True)
def _descend(candidates, place, size, scores, clicks, count, alpha, sweeps, capacity):  # type: ignore[no-untyped-def]
    """Paths (V, J), with -1 if an item has no further path with a score. size: the length of `load`.

    In each sweep an item leaves all its paths and chooses J paths again, but keeps the old paths if their gain is at
    least as high. So no sweep lowers the objective. (Algorithm 2 replaces one path at a time. The item then still
    counts in the load of its other old paths, so the penalty discourages choosing these again.)
    """
    load = np.zeros(size, np.int32)
    chosen = np.full((len(candidates), count), -1, np.int32)
    order = np.empty(candidates.shape, np.int32)  # positions of the candidates with a score, highest score first
    scored = np.zeros(len(candidates), np.int32)  # the number of candidates with a score of each item
    # With a capacity, all items start on their present paths; so an item can always return to them.
    limited = capacity < len(candidates)
    for v in range(len(candidates)):
        if clicks[v] > 0:
            scored[v] = _rank(scores[v], order[v])
        if clicks[v] == 0 or limited:
            chosen[v] = np.arange(count)  # the present paths are the first candidates
            _move(load, place[v], chosen[v], 1)
    for _ in range(sweeps):
        for v in range(len(candidates)):
            if clicks[v] == 0:
                continue
            _move(load, place[v], chosen[v], -1)
            better = _choose(scores[v], order[v, : scored[v]], place[v], load, clicks[v], count, alpha, capacity)
            # With a capacity, an item that finds fewer than J paths stays; it would be put on a path that may be full.
            if (better[count - 1] >= 0 or not limited) and (
                _gain(better, scores[v], place[v], load, clicks[v], alpha)
                > _gain(chosen[v], scores[v], place[v], load, clicks[v], alpha)
            ):
                chosen[v] = better
            _move(load, place[v], chosen[v], 1)
    paths = np.full((len(candidates), count), -1, np.int64)
    for v in range(len(candidates)):
        for j in range(count):
            if chosen[v, j] >= 0:
                paths[v, j] = candidates[v, chosen[v, j]]
    return paths


@njit(cache=True)
def _move(load, place, chosen, by):  # type: ignore[no-untyped-def]
    """Add `by` to the load of an item's chosen paths."""
    for s in chosen:
        if s >= 0:
            load[place[s]] += by


@njit(cache=True)
def _rank(scores, order):  # type: ignore[no-untyped-def]
    """Write the positions of the positive scores into `order`, highest score first; returns their number."""
    count = 0
    for s in range(len(scores)):
        if scores[s] > 0:
            at = count
            while at > 0 and scores[order[at - 1]] < scores[s]:
                order[at] = order[at - 1]
                at -= 1
            order[at] = s
            count += 1
    return count


@njit(cache=True)
def _choose(scores, order, place, load, clicks, count, alpha, capacity):  # type: ignore[no-untyped-def]
    """J paths for one item that has no paths, chosen one after another: each has the highest gain given those before.

    order: the result of _rank. The search for a path ends when even an empty path would have too small a gain.
    """
    chosen = np.full(count, -1, np.int32)
    total = 0.0
    for j in range(count):
        best = -np.inf
        for s in order:
            # The paper subtracts N_v log(total). We do not: it is the same for all candidates, and at j = 0 total is 0.
            gain = clicks * np.log(total + scores[s])
            if gain - alpha * _marginal(0) <= best:
                break
            gain -= alpha * _marginal(load[place[s]])
            if gain > best and load[place[s]] < capacity and not _contains(chosen[:j], s):
                best = gain
                chosen[j] = s
        if chosen[j] < 0:
            break
        total += scores[chosen[j]]
    return chosen


@njit(cache=True)
def _gain(chosen, scores, place, load, clicks, alpha):  # type: ignore[no-untyped-def]
    """The amount that the chosen paths of an item add to the objective if the item has no paths yet."""
    total, penalty = 0.0, 0.0
    for s in chosen:
        if s >= 0:
            total += scores[s]
            penalty += alpha * _marginal(load[place[s]])
    return clicks * np.log(total) - penalty if total > 0 else -np.inf


@njit(cache=True)
def _marginal(load):  # type: ignore[no-untyped-def]
    """The penalty of one more item on a path: f(|c| + 1) - f(|c|) with f(|c|) = |c|^4 / 4."""
    return ((load + 1.0) ** 4 - float(load) ** 4) / 4  # as floats: the powers of integers would overflow


@njit(cache=True)
def _contains(values, wanted):  # type: ignore[no-untyped-def]
    """Whether `wanted` is among `values`. numba's `in` would create an array."""
    for value in values:  # noqa: SIM110 -- compiled, a loop is the fastest
        if value == wanted:
            return True
    return False


@njit(cache=True)
def _fill(paths, order, sizes):  # type: ignore[no-untyped-def]
    """Replace each -1 in `paths` by the least crowded path of `order` that the item does not have yet.

    order: at least J path ids, in ascending order of size. sizes: the number of items on each of these paths.
    """
    level, cursor = sizes[0], 0
    for v in range(len(paths)):
        for j in range(paths.shape[1]):
            while paths[v, j] < 0:
                if cursor == len(order) or sizes[cursor] > level:
                    level, cursor = level + 1, 0
                if not _contains(paths[v], order[cursor]):
                    paths[v, j] = order[cursor]
                    sizes[cursor] += 1
                cursor += 1

"""The M-step: score paths for every click, then give each item new paths, the network fixed (Sec. 3.2, Algorithm 2).

The objective is the sum over items of N_v log sum_j s[v, path_j], less the penalty alpha times the sum over paths of
f(|c|) = |c|^4 / 4, where |c| is how many items the path c has. Time: a pass over the clicks to score, and for each
descent at most V J S T gains. Memory: 16 (J + S) bytes an item for the scores; a descent takes about
half as much besides, or three times as much where path ids are large (docs/sizing.md).
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
from trainer.deep_retrieval.reads import TRAINED_READS, expected_reads
from trainer.deep_retrieval.scores import Paths, PathScores
from trainer.progress import Advance

SEARCHED_TOGETHER = 128  # users on a CPU: with more, a layer's numbers no longer fit the caches
SAMPLED_REQUESTS = 4000  # requests from whose beams the items that a request reads are estimated


def reassign(
    model: PathModel, batches: Batches, paths: Paths, config: TrainConfig, advance: Advance
) -> tuple[Paths, float]:
    """One M-step from the present `paths` (V, J). Returns the new ones, (V, J), and the alpha they were found with."""
    scores = PathScores(paths, config.candidate_paths, config.eta)
    beams = score_paths(model, batches, scores, advance)
    alpha = alpha_for_budget(scores, beams, config) if config.alpha == "auto" else config.alpha
    return descend(scores, alpha, config.sweeps), alpha


def score_paths(model: PathModel, batches: Batches, scores: PathScores, advance: Advance) -> Paths:
    """Add every training click to `scores`. Returns the beams of some 4,000 of them, path ids (R, S).

    For a click the S paths of the user's beam are scored, and the present paths of the clicked item: those of a rare
    item are seldom in the beam.
    """
    model.eval()
    beams: list[Paths] = []
    every = max(1, batches.predictions // SAMPLED_REQUESTS)
    with torch.inference_mode():
        for batch in batches.epoch(None):
            users, items = predictions(model, batch)
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


def alpha_for_budget(scores: PathScores, beams: Paths, config: TrainConfig) -> float:
    """The alpha with which a request would read about TRAINED_READS k items, by bisection over `descend`.

    It needs no training, as the scores stay the same. The larger alpha, the smaller the paths (Table 5: the largest
    path goes like alpha^-0.3). beams: (R, S), as `score_paths` returns them.
    """
    beam = min(Limits.BEAM, 5 * config.k) if config.beam == "auto" else config.beam
    low, high = -9.0, 6.0  # of log10 alpha

    def reads(exponent: float) -> float:
        return expected_reads(descend(scores, 10**exponent, config.sweeps), beams, beam)

    # If few paths are scored, it can happen that no alpha meets the budget. The largest alpha would then overrule every
    # score for hardly fewer reads, so the smallest alpha is taken whose reads are within 10 % of the largest alpha's.
    budget = max(TRAINED_READS * config.k, 1.1 * reads(high))
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if reads(middle) > budget else (low, middle)
    return float(10**high)


def descend(scores: PathScores, alpha: float, sweeps: int) -> Paths:
    """New paths (V, J) by penalised coordinate descent on the objective, T = `sweeps` times over all items.

    An item without clicks keeps its paths. If fewer than J of an item's candidates have a score, the least crowded
    paths in use fill its remaining places. `scores` does not change.
    """
    present, candidates = scores.paths, scores.candidates
    # How many items a path has is kept in an array over path ids, or over their ranks where that would be too long.
    place, size = candidates, int(candidates.max()) + 1
    if size > candidates.size:
        ids, place = np.unique(candidates, return_inverse=True)
        place, size = place.reshape(candidates.shape), len(ids)
    paths: Paths = _descend(candidates, place, size, scores.values, scores.clicks, present.shape[1], alpha, sweeps)
    used, sizes = np.unique(paths[paths >= 0], return_counts=True)
    if len(used) < present.shape[1]:
        used, sizes = np.unique(np.concatenate([paths[paths >= 0], present.ravel()]), return_counts=True)
    order = np.argsort(sizes, kind="stable")
    _fill(paths, used[order], sizes[order])
    return paths


# In the compiled functions `load` is how many items each path has, |c|, and `place` (V, J + S) says where in `load` a
# candidate is. Paths that are chosen for an item, (J,), are given as positions among its candidates; -1 is none.


@njit(cache=True)
def _descend(candidates, place, size, scores, clicks, count, alpha, sweeps):  # type: ignore[no-untyped-def]
    """Paths (V, J); -1 where an item has no further path with a score. size: the length of `load`.

    In each sweep an item leaves all its paths and chooses J anew, but keeps the old ones if those are better together.
    So no sweep lowers the objective. (Algorithm 2 replaces one path at a time. Then an item still counts in the load of
    its other old paths, and the penalty keeps it from choosing them again.)
    """
    load = np.zeros(size, np.int32)
    chosen = np.full((len(candidates), count), -1, np.int32)
    order = np.empty(candidates.shape, np.int32)  # positions of the candidates with a score, the highest score first
    scored = np.zeros(len(candidates), np.int32)  # how many an item has of those
    for v in range(len(candidates)):
        if clicks[v] > 0:
            scored[v] = _rank(scores[v], order[v])
        else:
            chosen[v] = np.arange(count)  # the present paths are the first candidates
            _move(load, place[v], chosen[v], 1)
    for sweep in range(sweeps):
        for v in range(len(candidates)):
            if clicks[v] == 0:
                continue
            _move(load, place[v], chosen[v], -1)
            better = _choose(scores[v], order[v, : scored[v]], place[v], load, clicks[v], count, alpha)
            if sweep == 0 or (
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
    """Write the positions of the positive scores into `order`, the highest first; returns how many there are."""
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
def _choose(scores, order, place, load, clicks, count, alpha):  # type: ignore[no-untyped-def]
    """J paths for one item that has none, one after another, each the best beside those before it.

    order: as _rank has it, so the search for a path ends where even an empty path would gain less.
    """
    chosen = np.full(count, -1, np.int32)
    total = 0.0
    for j in range(count):
        best = -np.inf
        for s in order:
            # The paper subtracts N_v log(sum), the same for every candidate; at j = 1 it would be log 0.
            gain = clicks * np.log(total + scores[s])
            if gain - alpha * _marginal(0) <= best:
                break
            gain -= alpha * _marginal(load[place[s]])
            if gain > best and not _contains(chosen[:j], s):
                best = gain
                chosen[j] = s
        if chosen[j] < 0:
            break
        total += scores[chosen[j]]
    return chosen


@njit(cache=True)
def _gain(chosen, scores, place, load, clicks, alpha):  # type: ignore[no-untyped-def]
    """What the chosen paths of an item add to the objective when the item has none yet."""
    total, penalty = 0.0, 0.0
    for s in chosen:
        if s >= 0:
            total += scores[s]
            penalty += alpha * _marginal(load[place[s]])
    return clicks * np.log(total) - penalty if total > 0 else -np.inf


@njit(cache=True)
def _marginal(load):  # type: ignore[no-untyped-def]
    """f(|c| + 1) - f(|c|) of f(|c|) = |c|^4 / 4."""
    return ((load + 1.0) ** 4 - float(load) ** 4) / 4  # as floats: the powers of integers would overflow


@njit(cache=True)
def _contains(values, wanted):  # type: ignore[no-untyped-def]
    """Whether `wanted` is among `values`. numba's own `in` makes an array for it."""
    for value in values:  # noqa: SIM110 -- compiled, a loop is the fastest
        if value == wanted:
            return True
    return False


@njit(cache=True)
def _fill(paths, order, sizes):  # type: ignore[no-untyped-def]
    """Replace each -1 in `paths` by the least crowded of the paths `order` that its item does not have yet.

    order: at least J path ids, by rising size. sizes: how many items each of them has.
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

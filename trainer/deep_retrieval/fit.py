"""fit(): the EM loop of Deep Retrieval (Sec. 3.2), written out in plain sight.

First the encoder and the softmax head learn alone; their item vectors say which items get paths side by side. Then
they are fixed and the path layers learn: an epoch is a pass of gradient steps with the paths fixed (E-step), and after
some of them a pass scores paths for every click and the items' paths are reassigned with the network fixed (M-step).
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval.query import Limits
from trainer.config import TrainConfig
from trainer.data.batches import Batches
from trainer.data.dataset import Dataset
from trainer.data.split import Split, click_counts, clicked_items
from trainer.deep_retrieval.assignment import PathAssigner
from trainer.deep_retrieval.checkpoint import Run
from trainer.deep_retrieval.layers import PathModel
from trainer.deep_retrieval.losses import PathLoss, SoftmaxHead, predictions
from trainer.deep_retrieval.occupancy import Occupancy, collapse
from trainer.deep_retrieval.paths import random_paths
from trainer.deep_retrieval.steps import gradient_epoch, make_optimizers
from trainer.deep_retrieval.tree import tree_paths
from trainer.encoders.gru import UserEncoder
from trainer.encoders.spectral import spectral_vectors
from trainer.progress import Progress

BUDGET = 7.5  # items read for each candidate returned; the paper has 5 to 10
SEARCHED_TOGETHER = 128  # users: more, and a layer's numbers no longer fit the processor's caches
SAMPLED_REQUESTS = 4000  # whose beams tell how many items a request reads


@dataclass(frozen=True)
class Trained:
    """What fit returns: the network, the assignment (V, J) and what was measured on the way, a record an epoch."""

    model: PathModel
    paths: NDArray[np.int64]
    history: list[dict[str, Any]]


def fit(
    config: TrainConfig,
    dataset: Dataset,
    split: Split,
    run: Run,
    progress: Progress,
    encoder: UserEncoder | None = None,
) -> Trained:
    """Train on `split`'s training users, continuing `run` where it left off.

    The result depends on config and data alone: each epoch draws from its own seed. encoder: one of an earlier run,
    taken instead of the warm-up, to compare structures. Raises TrainerError when the loss is no longer finite.
    """
    items = len(dataset.item_ids)
    width = config.resolve_width(items)
    torch.manual_seed(config.seed)
    clicks = click_counts(dataset, split)
    model = PathModel(config, width, clicks, dataset.context.schema)
    head = SoftmaxHead(config, clicks)
    generator = np.random.default_rng([config.seed, 1])
    paths = random_paths(items, config.paths_per_item, config.depth, width, generator)
    assigner = PathAssigner(paths, config.candidate_paths, config.eta)
    optimizers = make_optimizers(model, config)
    batches = Batches(dataset, split, config.history, config.resolve_batch(int(clicks.sum())), config.later)
    done = run.restore(model, optimizers, assigner)
    if not done and encoder:
        model.encoder.load_state_dict(encoder.state_dict())
        done = config.warmup
    elif not done:
        clicked = clicked_items(dataset, split.train_users, split.train_length)
        model.start_from(spectral_vectors(clicked, config.embedding, config.seed))
    progress.say(
        f"{items} items, {len(split.train_users)} users, {batches.predictions} interactions; "
        f"{config.depth} layers of {width} nodes, {config.paths_per_item} paths an item"
        + (f"; continuing after epoch {done}" if done else "")
    )
    for epoch in range(done + 1, config.passes + 1):
        started = time.monotonic()
        torch.manual_seed(_epoch_seed(config.seed, epoch))
        generator = np.random.default_rng([config.seed, 2, epoch])

        if epoch == config.warmup + 1 and config.start == "tree":
            progress.say("placing items by their vectors")
            vectors = model.item_vectors.detach().numpy()
            # About as many items a path as the candidate budget has for the widest beam. Rather too few than too
            # many: a path of one item is found as well, and read in half the time (README, What was tried).
            leaf = max(1, round(BUDGET * config.k / Limits.BEAM))
            assigner.paths = tree_paths(vectors, config.paths_per_item, config.depth, width, leaf, generator)

        # E-step: gradient steps on the network, the paths fixed.
        warm = epoch <= config.warmup
        model.train(warm)  # what is fixed has no dropout
        learner = head if warm else PathLoss(head, assigner.paths, config.taught)
        with progress.task(f"epoch {epoch}/{config.passes}: learning", batches.predictions) as advance:
            losses = functools.partial(learner.losses, model)
            loss = gradient_epoch(config, losses, optimizers, batches, epoch, generator, advance)
        record: dict[str, Any] = {"epoch": epoch, "head_loss" if warm else "path_loss": loss}

        # M-step: score paths for every click, then move the items, the network fixed.
        if epoch in config.reassignment_epochs():
            with progress.task(f"epoch {epoch}/{config.passes}: scoring paths", batches.predictions) as advance:
                beams = score_paths(model, batches, assigner, config.candidate_paths, advance)
            before = assigner.paths
            alpha = config.alpha if config.alpha != "auto" else _alpha_for_budget(assigner, beams, config)
            assigner.reassign(alpha, config.sweeps)
            record |= {"alpha": alpha, "moved": float((before[:, :, None] != assigner.paths[:, None]).all(2).mean())}

        occupancy = Occupancy.of(assigner.paths)
        record |= {**occupancy.to_json(), "entropy": occupancy.entropy, "seconds": round(time.monotonic() - started, 2)}
        run.save(record, model, optimizers, assigner)
        progress.say(_line(record, config.passes))
        for fault in collapse(occupancy, config) if not warm else ():
            progress.say(f"warning: the index is collapsing: {fault}; raise warmup_epochs or alpha")
    return Trained(model.eval(), assigner.paths, run.history)


def score_paths(
    model: PathModel, batches: Batches, assigner: PathAssigner, candidate_paths: int, advance: Any
) -> NDArray[np.int64]:
    """Let the assigner observe every click. Returns some requests' beams, (R, S) path ids.

    Besides the beam's paths, an item's present ones are scored too: for a rare item they are seldom in the beam.
    """
    model.eval()
    beams: list[NDArray[np.int64]] = []
    every = max(1, batches.predictions // SAMPLED_REQUESTS)
    with torch.inference_mode():
        for batch in batches.epoch(None):
            user, targets = predictions(model, batch)
            batch_beams = []
            for some, wanted in zip(user.split(SEARCHED_TOGETHER), targets.split(SEARCHED_TOGETHER), strict=True):
                own = assigner.paths[wanted.numpy()]
                found, log_probs = model.beam_search(some, candidate_paths)
                own_log_probs = model.path_log_probs(some, torch.from_numpy(own))
                assigner.observe(
                    wanted.numpy().astype(np.int32),
                    np.concatenate([found.numpy(), own], axis=1),
                    torch.cat([log_probs, own_log_probs], dim=1).exp().numpy(),
                )
                batch_beams.append(found.numpy())
            beams.append(np.concatenate(batch_beams)[::every].copy())
            advance(len(targets))
    return np.concatenate(beams)


def _alpha_for_budget(assigner: PathAssigner, beams: NDArray[np.int64], config: TrainConfig) -> float:
    """The alpha at which a request reads about 7.5 k items, by bisection on the coordinate descent alone.

    The score table stays as it is, so this needs no training. Larger alpha, smaller paths (Table 5: the largest
    path goes like alpha^-0.3).
    """
    beam = min(Limits.BEAM, 5 * config.k) if config.beam == "auto" else config.beam
    low, high = -9.0, 6.0  # of log10 alpha

    def reads(exponent: float) -> float:
        return expected_reads(assigner.descend(10**exponent, config.sweeps), beams, beam)

    # The scored paths may be too few for the budget. Then a penalty that overrules every score gains nothing
    # over the smallest one that comes near it.
    budget = max(BUDGET * config.k, 1.1 * reads(high))
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if reads(middle) > budget else (low, middle)
    return float(10**high)


def expected_reads(paths: NDArray[np.int64], beams: NDArray[np.int64], beam: int) -> float:
    """Items on a beam of `beam` paths, given requests' beams (R, S): the mean size of the paths they met, times W."""
    used, sizes = np.unique(paths, return_counts=True)
    met = beams.ravel()
    place = np.minimum(np.searchsorted(used, met), len(used) - 1)
    live = used[place] == met
    return beam * float(sizes[place[live]].mean()) if live.any() else 0.0


def _epoch_seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, 3, epoch]).generate_state(1, np.uint64)[0] >> 1)


def _line(record: dict[str, Any], epochs: int) -> str:
    moved = f", alpha {record['alpha']:.3g} moved {record['moved']:.0%} of postings" if "alpha" in record else ""
    if "head_loss" in record:
        return f"epoch {record['epoch']}/{epochs}: head loss {record['head_loss']:.3f} ({record['seconds']:.1f} s)"
    return (
        f"epoch {record['epoch']}/{epochs}: path loss {record['path_loss']:.3f}; {record['used']} paths used, "
        f"largest {record['largest']}, mean {record['mean_size']:.2f}{moved} ({record['seconds']:.1f} s)"
    )

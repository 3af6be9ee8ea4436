"""The losses compared with their definitions, and the draws with the probabilities that they should have."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from retrieval.context import ContextSchema
from trainer import settings as settings_module
from trainer.config import TrainConfig
from trainer.data.batches import Batch
from trainer.deep_retrieval.layers import PathModel
from trainer.deep_retrieval.losses import PATH_STEP, PathLoss, SoftmaxHead, draw
from trainer.deep_retrieval.steps import make_optimizers


@pytest.mark.parametrize("sampled", [False, True])
def test_the_head_samples_items_by_their_squared_probabilities(*, sampled: bool) -> None:
    """Each item is drawn as often as the square of its probability says; only nearly so if negatives are sampled."""
    torch.manual_seed(0)
    clicks = np.array([50, 1, 9, 30, 5, 5])
    config = TrainConfig(full_softmax_items=1, negatives=2000) if sampled else TrainConfig()
    model = PathModel(TrainConfig(embedding=4, hidden=4), 10, clicks, ContextSchema())
    user = torch.randn(1, 4)

    with torch.no_grad():
        items = SoftmaxHead(config, clicks).sample(model, user.expand(10_000, 4), 2).flatten()
        squared = model.head_logits(user).softmax(dim=1)[0] ** 2
        probabilities = squared / squared.sum()

    shares = torch.bincount(items, minlength=6) / 20_000
    assert (shares - probabilities).abs().max() < 0.03


def test_sampled_softmax_tends_to_the_full_one() -> None:
    """With log-Q correction and very many negatives the sampled loss is the full loss."""
    torch.manual_seed(0)
    clicks = np.array([50, 1, 9, 30, 5, 5])
    model = PathModel(TrainConfig(embedding=4, hidden=4), 10, clicks, ContextSchema())
    user, targets = torch.randn(40, 4), torch.randint(6, (40,))
    full = SoftmaxHead(TrainConfig(), clicks)
    sampled = SoftmaxHead(TrainConfig(full_softmax_items=1, negatives=200_000), clicks)

    with torch.no_grad():
        assert sampled.loss(model, user, targets).mean().item() == pytest.approx(
            full.loss(model, user, targets).mean().item(), abs=0.01
        )


def test_a_sparse_step_moves_only_the_items_of_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sparse gradient equals the dense one, and all other items stay where they are."""
    monkeypatch.setattr(settings_module, "DENSE_ITEMS", 10)
    clicks = np.ones(50, np.int64)
    config = TrainConfig(embedding=4, hidden=4, dropout=0.0, full_softmax_items=1, negatives=5)
    whole = config.replace(full_softmax_items=50)
    nothing = torch.zeros(2, 0, dtype=torch.int64)
    batch = Batch(torch.tensor([[1, 2], [3, -1]]), torch.tensor([[1, 2, 4], [3, 5, -1]]), nothing, nothing.float())
    models, tables = [], []
    for settings in (config, whole):
        torch.manual_seed(0)
        model = PathModel(settings, 10, clicks, ContextSchema())
        torch.manual_seed(1)
        ((loss, _),) = SoftmaxHead(config, clicks).losses(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        models.append(model)
        tables.append(model.encoder.item_embedding.weight)
    sparse, dense = (table.grad for table in tables)
    assert sparse is not None
    assert dense is not None
    before = tables[0].detach().clone()
    read = dense.abs().sum(dim=1) > 0  # the start item is the last

    for optimizer in make_optimizers([models[0]], 0.01, 0.0):
        optimizer.step()

    assert sparse.is_sparse
    assert torch.allclose(sparse.to_dense(), dense, atol=1e-7)
    assert 6 <= read.sum() <= 5 + 5 + 1
    assert torch.equal((tables[0] != before).any(dim=1), read)
    assert [len(make_optimizers([model], 0.01, 0.0)) for model in models] == [2, 1]


def test_draws_follow_the_probabilities_of_their_row() -> None:
    """A column with probability 0 is never drawn, whether it is the first, the last or in between."""
    torch.manual_seed(0)
    probabilities = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0], [0.5, 0.0, 0.0, 0.0, 0.5]])

    drawn = draw(probabilities.cumsum(dim=1), 20_000)

    shares = torch.stack([torch.bincount(row, minlength=5) / 20_000 for row in drawn])
    assert (shares - probabilities).abs().max() < 0.02
    assert (shares[probabilities == 0] == 0).all()


@pytest.mark.parametrize("best_only", [False, True])
def test_gradients_are_those_of_the_best_path_or_of_the_sum(*, best_only: bool) -> None:
    """With hard EM the other paths of a target do not learn; by eq. (2) all do."""
    torch.manual_seed(0)
    clicks = np.array([50, 1, 9, 30, 5, 5])
    model = PathModel(TrainConfig(embedding=4, hidden=4, dropout=0.0), 10, clicks, ContextSchema()).eval()
    paths = np.random.default_rng(0).permutation(1000)[:18].reshape(6, 3)
    nothing = torch.zeros(40, 0, dtype=torch.int64)
    batch = Batch(torch.randint(6, (40, 1)), torch.randint(6, (40, 2)), nothing, nothing.float())
    parameters = [parameter for layer in model.layers for parameter in layer.parameters()]

    ((loss, _),) = PathLoss(SoftmaxHead(TrainConfig(), clicks), paths, 0.0, best_only=best_only).losses(model, batch)
    found = torch.autograd.grad(loss, parameters)

    user = model.encoder(batch.history, batch.categories, batch.numbers).flatten(0, 1).detach()
    log_probs = model.path_log_probs(user, torch.from_numpy(paths)[batch.targets.flatten()])
    reached = log_probs.max(dim=1).values if best_only else log_probs.exp().sum(dim=1).log()
    expected = torch.autograd.grad(-reached.mean(), parameters)
    assert all(torch.allclose(ours, theirs, atol=1e-6) for ours, theirs in zip(found, expected, strict=True))


@pytest.mark.parametrize("users", [3, 200, 600])
def test_paths_learn_from_every_prediction_in_steps_of_similar_size(users: int) -> None:
    """The steps of a batch have each of its clicks once, so their mean loss is that of the whole batch."""
    torch.manual_seed(0)
    clicks = np.array([50, 1, 9, 30, 5, 5])
    model = PathModel(TrainConfig(embedding=4, hidden=4, dropout=0.0), 10, clicks, ContextSchema()).eval()
    paths = np.arange(12).reshape(6, 2)
    nothing = torch.zeros(users, 0, dtype=torch.int64)
    history = torch.randint(6, (users, 1))
    batch = Batch(history, torch.randint(6, (users, 2)), nothing, nothing.float())

    with torch.no_grad():
        steps = [
            (loss.item(), count)
            for loss, count in PathLoss(SoftmaxHead(TrainConfig(), clicks), paths, 0.0).losses(model, batch)
        ]
        user = model.encoder(batch.history, batch.categories, batch.numbers).flatten(0, 1)
        whole = -model.path_log_probs(user, torch.from_numpy(paths)[batch.targets.flatten()]).max(dim=1).values.mean()

    counts = [count for _, count in steps]
    assert sum(counts) == 2 * users

    assert max(counts) < 1.5 * PATH_STEP
    assert min(counts) > PATH_STEP / 2 or users == 3
    assert sum(mean * count for mean, count in steps) / sum(counts) == pytest.approx(whole.item(), rel=1e-5)


def test_with_all_targets_taught_the_loss_is_that_of_the_drawn_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head draws the items; the clicked items have no part in the loss."""
    clicks = np.array([50, 1, 9, 30, 5, 5])
    model = PathModel(TrainConfig(embedding=4, hidden=4), 10, clicks, ContextSchema()).eval()
    paths, head = np.arange(12).reshape(6, 2), SoftmaxHead(TrainConfig(), clicks)
    monkeypatch.setattr(head, "sample", lambda _, user: torch.full((len(user), 1), 4))
    nothing = torch.zeros(300, 0, dtype=torch.int64)
    batch = Batch(
        torch.zeros(300, 1, dtype=torch.int64), torch.zeros(300, 2, dtype=torch.int64), nothing, nothing.float()
    )

    with torch.no_grad():
        steps = [(mean.item(), count) for mean, count in PathLoss(head, paths, 1.0).losses(model, batch)]
        user = model.encoder(batch.history, batch.categories, batch.numbers).flatten(0, 1)
        whole = -model.path_log_probs(user, torch.tensor([[8, 9]]).expand(600, 2)).max(dim=1).values.mean()

    assert sum(mean * count for mean, count in steps) / 600 == pytest.approx(whole.item(), rel=1e-5)


@pytest.mark.parametrize("sampled", [False, True])
def test_a_prediction_counts_as_much_as_its_strength(*, sampled: bool) -> None:
    """Strengths of 0 and 2 give the loss of the second half of the predictions alone, in the head and in the paths."""
    torch.manual_seed(0)
    clicks = np.array([50, 1, 9, 30, 5, 5])
    config = TrainConfig(full_softmax_items=1, negatives=2000) if sampled else TrainConfig()
    model = PathModel(TrainConfig(embedding=4, hidden=4, dropout=0.0), 10, clicks, ContextSchema()).eval()
    head = SoftmaxHead(config, clicks)
    nothing = torch.zeros(40, 0, dtype=torch.int64)
    history, targets = torch.randint(6, (40, 1)), torch.randint(6, (40, 2))
    strengths = torch.tensor([[0.0, 0.0], [2.0, 2.0]]).repeat_interleave(20, dim=0)
    weighted = Batch(history, targets, nothing, nothing.float(), strengths)
    second = Batch(history[20:], targets[20:], nothing[20:], nothing[20:].float())

    for losses in (head.losses, PathLoss(head, np.arange(12).reshape(6, 2), 0.0).losses):
        with torch.no_grad():
            found, expected = (next(iter(losses(model, batch)))[0].item() for batch in (weighted, second))

        assert found == pytest.approx(expected, abs=0.05 if sampled else 1e-5)

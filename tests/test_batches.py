"""Windows of sequences: every item is predicted once, from the items before it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from retrieval.context import Category, ContextSchema
from trainer.data.batches import Batches
from trainer.data.context import UserContext
from trainer.data.dataset import Dataset
from trainer.data.split import Split


def dataset_of(sequences: list[list[int]]) -> tuple[Dataset, Split]:
    """Users 0, 1, ... with these sequences, all trained on in full."""
    lengths = np.array([len(sequence) for sequence in sequences])
    users = len(sequences)
    dataset = Dataset(
        np.arange(100),
        np.arange(users),
        np.concatenate(sequences).astype(np.int32),
        np.cumsum([0, *lengths]),
        UserContext(
            ContextSchema((Category("c", ("x",)),)), np.arange(users)[:, None], np.zeros((users, 0), np.float32)
        ),
    )
    return dataset, Split(np.arange(users), np.arange(0), lengths, lengths, np.arange(0), lengths)


@pytest.mark.parametrize("seeded", [True, False])
def test_every_item_is_predicted_once_from_its_past(seeded: bool) -> None:
    """Sequences are shorter than, as long as, and longer than the window; batches are in random or fixed order."""
    rng = np.random.default_rng(0)
    sequences = [rng.integers(1000, size=length).tolist() for length in (1, 2, 4, 5, 6, 9, 13, 30)]
    dataset, split = dataset_of(sequences)
    batches = Batches(dataset, split, history=4, batch=10)
    predicted: list[tuple[int, int]] = []
    for batch in batches.epoch(np.random.default_rng(1) if seeded else None):
        for history, targets, user in zip(
            batch.history.tolist(), batch.targets.tolist(), batch.categories, strict=True
        ):
            sequence = sequences[int(user)]
            assert len(targets) == len(history) + 1
            seen = [item for item in history if item >= 0]
            for t, target in enumerate(targets):
                if target < 0:
                    continue
                past = seen[:t]
                matches = [
                    end
                    for end in range(len(past), len(sequence))
                    if sequence[end - len(past) : end] == past and sequence[end] == target
                ]
                assert matches, (sequence, past, target)
                predicted.append((int(user), matches[0] if len(past) else 0))

    assert batches.predictions == len(predicted) == sum(map(len, sequences))
    assert sorted(predicted) == [(user, place) for user, s in enumerate(sequences) for place in range(len(s))]


def test_later_targets_are_later_items() -> None:
    """With later = 1 all remaining items are equally likely targets; without a generator the next item is."""
    dataset, split = dataset_of([list(range(5))] * 400)
    batches = Batches(dataset, split, history=9, batch=10_000, later=1.0)
    (batch,) = batches.epoch(np.random.default_rng(0))
    (plain,) = batches.epoch(None)
    targets = batch.targets.numpy()

    assert (targets >= np.arange(5)).all()
    assert targets.max() == 4
    assert np.allclose([(targets[:, 0] == item).mean() for item in range(5)], 0.2, atol=0.06)
    assert (plain.targets.numpy() == np.arange(5)).all()


def test_the_order_follows_the_generator() -> None:
    """The same seed gives the same batches, and another seed gives other batches."""
    dataset, split = dataset_of([list(range(n, n + 7)) for n in range(50)])
    batches = Batches(dataset, split, history=4, batch=20)
    first, same, other = ([b.history.tolist() for b in batches.epoch(np.random.default_rng(s))] for s in (1, 1, 2))

    assert first == same
    assert first != other


@pytest.mark.parametrize("later", [0.0, 0.5])
def test_a_target_has_the_strength_of_its_click(later: float) -> None:
    """Also if the target is a later item. Item i has the strength i."""
    rng = np.random.default_rng(0)
    dataset, split = dataset_of([rng.integers(1, 100, size=length).tolist() for length in (1, 2, 4, 9, 13)])
    dataset = replace(dataset, strengths=dataset.items.astype(np.float32))

    seen = 0
    for batch in Batches(dataset, split, history=4, batch=10, later=later).epoch(np.random.default_rng(1)):
        assert batch.strengths is not None
        wanted = batch.targets >= 0
        assert batch.strengths[wanted].tolist() == batch.targets[wanted].tolist()
        seen += int(wanted.sum())
    assert seen == 29


@pytest.mark.parametrize("later", [0.0, 0.5])
def test_clicks_that_are_only_history(later: float) -> None:
    """Only even items are predicted, all items are history, and a batch without a target is left out."""
    sequences = [[1, 2, 3, 4, 5, 6], [7, 9], [8, 10, 11]]
    dataset, split = dataset_of(sequences)
    even = dataset.items % 2 == 0
    everything = list(Batches(dataset, split, history=9, batch=1, later=later).epoch(np.random.default_rng(1)))
    batches = Batches(dataset, split, history=9, batch=1, later=later, targets=even)
    assert batches.predictions == 5
    made = list(batches.epoch(np.random.default_rng(1)))

    kept = [batch for batch in everything if (batch.targets % 2 == 0).any()]
    assert len(kept) < len(everything)
    assert [batch.history.tolist() for batch in made] == [batch.history.tolist() for batch in kept]
    for batch, whole in zip(made, kept, strict=True):
        assert batch.targets.tolist() == whole.targets.where(whole.targets % 2 == 0, -1).tolist()

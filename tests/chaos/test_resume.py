"""Training killed at any moment and continued ends in the same bytes; a damaged checkpoint is refused."""

from __future__ import annotations

import time
from pathlib import Path
from random import Random

import pytest
import torch

from index_store.folder.store import FolderStore
from tests.chaos.conftest import Goal, amount
from tests.chaos.victims import Victim, train
from tests.conftest import SMALL, Planted
from tests.planted import write_interactions
from trainer.config import TrainConfig
from trainer.deep_retrieval.checkpoint import Run
from trainer.deep_retrieval.layers import PathModel
from trainer.deep_retrieval.scores import Paths
from trainer.deep_retrieval.steps import make_optimizers
from trainer.errors import ResumeError

SETTINGS = [
    f"--set={name}={getattr(SMALL, name)}"
    for name, field in TrainConfig.model_fields.items()
    if getattr(SMALL, name) != field.default
]


class Training:
    """One run of dr-trainer, in a folder of its own."""

    def __init__(self, file: Path, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        places = ["--store", str(folder / "store"), "--resume", str(folder / "run")]
        self._command = ["fit", str(file), *SETTINGS, *places]

    def start(self) -> Victim:
        """Begin the training, or continue it."""
        return Victim(train, self._command, str(self.folder / "log"))

    def finish(self) -> dict[str, bytes]:
        """Run the training to its end. Returns every part of the one version that it published."""
        victim = self.start()
        victim.wait()
        assert not victim.kill(), self.log()
        store = FolderStore(str(self.folder / "store"))
        (manifest,) = store.versions()
        assert store.current() == manifest.version
        parts = {part: bytes(content) for part, content in store.load(manifest.version).parts.items()}
        return parts | {"fingerprint": manifest.fingerprint.encode()}

    def epochs(self) -> int:
        """The number of epochs recorded so far."""
        metrics = self.folder / "run" / "metrics.jsonl"
        return len(metrics.read_text().splitlines()) if metrics.exists() else 0

    def log(self) -> str:
        """What the training has printed."""
        return (self.folder / "log").read_text()


def test_a_killed_training_continues_to_the_same_bytes(tmp_path: Path, goal: Goal) -> None:
    """Promise: killed training.

    SIGKILL at random moments, from reading the data to activating the version; two runs without one agree too.
    """
    random, wanted = Random(0), amount(20)
    file = write_interactions(tmp_path)
    first = Training(file, tmp_path / "first").finish()
    started = time.monotonic()
    assert Training(file, tmp_path / "second").finish() == first
    longest = time.monotonic() - started

    killed = continued = differing = 0
    for turn in range(10 * wanted):
        training = Training(file, tmp_path / str(turn))
        victim = training.start()
        if turn % 2:
            victim.wait(random.uniform(0, longest))
        else:  # the export takes most of the time, so half of the kills are aimed at an epoch
            epoch = random.randrange(1, SMALL.encoder_epochs + SMALL.path_epochs)
            while training.epochs() < epoch and not victim.wait(0.005):
                pass
        if not victim.kill():
            continue  # the training had already finished
        killed += 1
        checkpoint = (training.folder / "run" / "checkpoint.safetensors").exists()
        differing += training.finish() != first
        assert ("continuing after epoch" in training.log()) == checkpoint
        continued += checkpoint
        if killed == wanted:
            break

    goal(
        f"training killed at {killed} random moments, {continued} of them after a checkpoint, and continued; two clean "
        "runs: versions that differ in any byte",
        differing,
        reached=differing == 0 and killed == wanted,
    )


def fresh(planted: Planted) -> tuple[PathModel, list[torch.optim.Optimizer]]:
    """A network and its optimisers as a run begins with them, to be overwritten by a checkpoint."""
    torch.manual_seed(1)
    clicks = torch.ones(len(planted.dataset.item_ids)).numpy()
    model = PathModel(SMALL, SMALL.resolve_width(len(clicks)), clicks, planted.dataset.context.schema)
    return model, make_optimizers([model], 0.01, 0.0)


def test_a_damaged_checkpoint_is_refused(planted: Planted, tmp_path: Path) -> None:
    """Promise: killed training.

    A checkpoint cut short anywhere, or with any bit flipped, is refused; the error says what to do.
    """
    random = Random(0)
    run = Run(tmp_path, SMALL, planted.dataset)
    model, optimizers = fresh(planted)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizers[0].step()
    run.save({"epoch": 3}, {"model": model}, optimizers, planted.trained.paths)
    file = tmp_path / "checkpoint.safetensors"
    content = file.read_bytes()
    header = int.from_bytes(content[:8], "little") + 8
    places = [*range(0, header, amount(1, 20)), *(random.randrange(header, len(content)) for _ in range(amount(1000)))]
    damaged = [content[:i] + bytes([content[i] ^ 1 << random.randrange(8)]) + content[i + 1 :] for i in places]
    damaged += [content[: random.randrange(len(content))] for _ in range(amount(100))]

    def restore() -> Paths:
        checkpoint = run.last()
        assert checkpoint is not None
        model, optimizers = fresh(planted)
        checkpoint.load({"model": model}, optimizers)
        return checkpoint.paths

    assert (restore() == planted.trained.paths).all()
    assert run.history == [{"epoch": 3}]
    for text in damaged:
        file.write_bytes(text)
        with pytest.raises(ResumeError, match=r"checkpoint\.safetensors: damaged .*; delete it to start over"):
            restore()

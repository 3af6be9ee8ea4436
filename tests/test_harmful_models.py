"""A model is tried in a process of its own first, which stops a model that never ends; the same model is tried once."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path
from typing import Any

import pytest

from index_store.errors import VersionDamaged
from index_store.folder.store import FolderStore
from retrieval.paths.structure import PathStructure
from service.metrics import Metrics
from service.serving import trial
from service.serving.reloader import Reloader
from service.serving.retriever import Retriever
from service.serving.trial import try_model
from tests.chaos.damage import endless
from tests.conftest import Planted
from tests.planted import changed


def test_an_endless_model_is_stopped(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on processor time ends the process of the trial."""
    monkeypatch.setattr(trial, "SECONDS", 1)

    with pytest.raises(VersionDamaged, match=r"signal 9|longer than 3 s"):
        try_model(changed(planted.version, model=endless()))


@pytest.mark.parametrize("stored", [True, False])
def test_a_trained_model_passes_its_trial(planted: Planted, tmp_path: Path, *, stored: bool) -> None:
    """The model may be a file or bytes in memory."""
    store = FolderStore(str(tmp_path))
    version = store.load(store.publish(planted.version)) if stored else planted.version

    try_model(version)


def test_a_model_is_tried_once(
    planted: Planted, other: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that comes back, also in another version, is not tried again; another model is."""
    store = FolderStore(str(tmp_path))
    names = [store.publish(planted.version), store.publish(other.version)]
    third = store.publish(changed(planted.version, context=bytes(planted.version.parts["context.json"]) + b" "))
    store.activate(names[0])
    tried: list[str] = []

    def pass_trial(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        tried.extend(word for word in command if word.endswith("/model.onnx"))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", pass_trial)

    async def swap() -> None:
        reloader = Reloader(store, 60, Metrics())
        for name in (*names, third, names[1]):
            await reloader.swap(name, ...)

    asyncio.run(swap())

    assert tried == [str(store.folder / "versions" / name / "model.onnx") for name in names]


@pytest.mark.parametrize("error", [VersionDamaged("other shapes"), RuntimeError("no memory")])
def test_a_model_that_fails_at_a_batch_is_refused_by_name(
    planted: Planted, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Golden queries are replayed one by one; a failure with eight queries shows when the version is warmed up."""
    search = PathStructure.search

    def failing(self: PathStructure, histories: Any, *rest: Any) -> Any:
        if len(histories) == 8:
            raise error
        return search(self, histories, *rest)

    monkeypatch.setattr(PathStructure, "search", failing)

    version = planted.version.named(1)
    with pytest.raises(VersionDamaged, match=f"^{version.manifest.version}: "):
        Retriever(version)

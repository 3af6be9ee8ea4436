"""The folder of a training run: its settings, its metrics, and a checkpoint after each epoch. Nothing is pickled.

run.json                the settings and a digest of the data
metrics.jsonl           one record per epoch
checkpoint.safetensors  network, its averages in the warm-up, optimisers, paths, and a digest of these; replaced as a
                        whole after each epoch
published.json          the published version: name, fingerprint, and whether it was made current

A checkpoint has CPU tensors, even if training runs on a GPU.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.optim import Optimizer

from trainer.config import TrainConfig
from trainer.data.dataset import Dataset
from trainer.deep_retrieval.scores import Paths
from trainer.errors import ResumeError


class Run:
    """The folder of one run. Opening it again with the same config and data continues it."""

    def __init__(self, folder: Path, config: TrainConfig, dataset: Dataset) -> None:
        """Raises ResumeError if `folder` has a run with different settings or different data."""
        self.folder = folder
        self.history: list[dict[str, Any]] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResumeError(f"{folder}: cannot be used as a run's folder: {error.strerror}") from None
        settings, data = config.to_json(), dataset.digest()
        file = folder / "run.json"
        if not file.exists():
            _replace(file, json.dumps({"config": settings, "data_sha256": data}, indent=2).encode())
            return
        try:
            stored = json.loads(file.read_bytes())
            names = sorted(settings.keys() ^ stored["config"].keys())
            # A checkpoint has CPU tensors, so a run can continue on a different device.
            compared = settings.keys() - {"device"}
            differing = sorted(key for key in compared if stored["config"].get(key) != settings[key])
            same_data = stored["data_sha256"] == data
        except (ValueError, KeyError, AttributeError, TypeError):
            raise ResumeError(f"{file}: damaged; name another folder") from None
        if names:
            raise ResumeError(
                f"{folder}: that run is from a different release, which has other settings ({', '.join(names)}); "
                "name another folder"
            )
        if differing:
            raise ResumeError(
                f"{folder}: that run was started with other values of {', '.join(differing)}; name another folder"
            )
        if not same_data:
            raise ResumeError(f"{folder}: that run used different data; name another folder")

    def published(self) -> dict[str, Any] | None:
        """The facts that `record_published` wrote last, or None."""
        try:
            facts: dict[str, Any] = json.loads((self.folder / "published.json").read_bytes())
        except (OSError, ValueError):
            return None
        return facts

    def record_published(self, facts: dict[str, Any]) -> None:
        """Record that the version of this run is published. facts: version, fingerprint, activated, ..."""
        _replace(self.folder / "published.json", json.dumps(facts).encode())

    def last(self) -> Checkpoint | None:
        """The last checkpoint, and its epoch's records in `history`; None if there is none.

        Raises ResumeError if the checkpoint is damaged.
        """
        file = self.folder / "checkpoint.safetensors"
        if not file.exists():
            return None
        try:
            with safe_open(file, "pt") as stored:
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
                epoch, digest = int(stored.metadata()["epoch"]), stored.metadata().get("sha256")
            if digest is None:
                raise ValueError("it is of an earlier release and has no SHA-256")
            if digest != _digest(epoch, tensors):
                raise ValueError("its SHA-256 does not match")
            paths: Paths = tensors.pop("paths").numpy()
            records = map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines())
            self.history = [record for record in records if record["epoch"] <= epoch]
            if not self.history:
                raise ValueError("metrics.jsonl has no record of it")
        except torch.OutOfMemoryError:
            raise  # a RuntimeError too, but not caused by the checkpoint
        except _DAMAGE as error:
            raise _damaged(file, error) from None
        return Checkpoint(file, paths, tensors)

    def save(
        self,
        record: dict[str, Any],
        modules: Mapping[str, nn.Module],
        optimizers: Sequence[Optimizer],
        paths: Paths,
    ) -> None:
        """Add an epoch's record to metrics.jsonl, then replace the checkpoint.

        If the process is killed between the two writes, the epoch is repeated. modules: by a name of one word. paths:
        (V, J). Raises ResumeError if the files cannot be written.
        """
        self.history.append(record)
        tensors = {f"{part}.{n}": t.cpu() for part, module in modules.items() for n, t in module.state_dict().items()}
        for number, optimizer in enumerate(optimizers):
            for index, state in optimizer.state_dict()["state"].items():
                values = {name: torch.as_tensor(value, device="cpu") for name, value in state.items()}
                tensors |= {f"optimizer.{number}.{index}.{name}": value for name, value in values.items()}
        tensors["paths"] = torch.from_numpy(paths)
        try:
            self._write(record["epoch"], tensors)
        except (OSError, SafetensorError) as error:
            raise ResumeError(f"{self.folder}: the checkpoint could not be written: {error}") from None

    def _write(self, epoch: int, tensors: dict[str, torch.Tensor]) -> None:
        metrics = b"".join(json.dumps(line).encode() + b"\n" for line in self.history)
        _replace(self.folder / "metrics.jsonl", metrics)
        temporary = self.folder / "checkpoint.partial"
        save_file(tensors, temporary, {"epoch": str(epoch), "sha256": _digest(epoch, tensors)})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(self.folder / "checkpoint.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint whose digest was right. paths: (V, J)."""

    file: Path
    paths: Paths
    _tensors: dict[str, torch.Tensor]

    def load(self, modules: Mapping[str, nn.Module], optimizers: Sequence[Optimizer] = ()) -> None:
        """Load the modules, by the names that they were saved with, and the optimisers. Raises ResumeError."""
        try:
            for part, module in modules.items():
                prefix = f"{part}."
                own = {n.removeprefix(prefix): t for n, t in self._tensors.items() if n.startswith(prefix)}
                module.load_state_dict(own)
            for number, optimizer in enumerate(optimizers):
                _load_optimizer(optimizer, number, self._tensors)
        except torch.OutOfMemoryError:
            raise
        except _DAMAGE as error:
            raise _damaged(self.file, error) from None


#: Errors that a damaged checkpoint causes.
_DAMAGE = SafetensorError, OSError, RuntimeError, ValueError, KeyError, TypeError


def _damaged(file: Path, error: Exception) -> ResumeError:
    return ResumeError(f"{file}: damaged ({error}); delete it to start over")


def _digest(epoch: int, tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over the content of a checkpoint: the epoch, and each tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(str(epoch).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f" {name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _load_optimizer(optimizer: Optimizer, number: int, tensors: dict[str, torch.Tensor]) -> None:
    """Set the state of optimiser `number` from a checkpoint's tensors. torch moves it to the parameters' device."""
    state: dict[int, dict[str, torch.Tensor | int]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, owner, index, key = name.split(".")
            if int(owner) != number:
                continue
            # SparseAdam expects its step count as an int, not as a tensor.
            state.setdefault(int(index), {})[key] = int(tensor) if tensor.dtype == torch.int64 else tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _replace(path: Path, content: bytes) -> None:
    """Replace a file's content. At any moment, even after a kill, the file has all of the old or the new content."""
    temporary = path.with_suffix(".partial")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise ResumeError(f"{path}: cannot be written: {error.strerror}") from None

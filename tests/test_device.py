"""Training runs on the device that the setting `device` names, with every tensor there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from tests.conftest import SMALL, Planted
from tests.pretended_gpu import PretendedGpu, is_on_gpu
from tests.silent_progress import Interrupt, SilentProgress
from tests.test_train import assert_same_training
from trainer import settings as settings_module
from trainer.__main__ import main as dr_trainer
from trainer.benchmark.two_tower import train_two_tower
from trainer.config import TrainConfig
from trainer.deep_retrieval.checkpoint import Run
from trainer.deep_retrieval.device import choose_device
from trainer.deep_retrieval.fit import Trained, fit
from trainer.errors import ConfigError


def train(planted: Planted, config: TrainConfig, folder: Path, progress: SilentProgress | None = None) -> Trained:
    """Train on the planted data."""
    run = Run(folder, config, planted.dataset)
    return fit(config, planted.dataset, planted.split, run, progress or SilentProgress())


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> PretendedGpu:
    """A pretended GPU, for a `with` statement; torch reports that a GPU is available."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return PretendedGpu()


def test_training_on_a_gpu_has_every_tensor_there(planted: Planted, tmp_path: Path, gpu: PretendedGpu) -> None:
    """The run has a warm-up, a tree, path steps, a reassignment and a resumption; its network ends on the CPU."""
    config = SMALL.replace(device="cuda")

    with gpu:
        with pytest.raises(KeyboardInterrupt):
            train(planted, config, tmp_path, Interrupt(4))
        trained = train(planted, config, tmp_path)

    assert gpu.operations > 1000
    assert_same_training(trained, planted.trained)
    assert not any(is_on_gpu(tensor) for tensor in (*trained.model.parameters(), *trained.model.buffers()))


def test_sampled_and_sparse_training_on_a_gpu_has_every_tensor_there(
    planted: Planted, tmp_path: Path, gpu: PretendedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large catalogue is trained with other losses and another optimiser."""
    monkeypatch.setattr(settings_module, "DENSE_ITEMS", 10)
    config = SMALL.replace(full_softmax_items=1, negatives=20, epochs=4, warmup_epochs=2, device="cpu")
    expected = train(planted, config, tmp_path / "cpu")

    with gpu:
        trained = train(planted, config.replace(device="cuda"), tmp_path / "gpu")

    assert_same_training(trained, expected)


def test_the_two_tower_on_a_gpu_has_every_tensor_there(planted: Planted, gpu: PretendedGpu) -> None:
    """The two-tower network of the benchmark trains on the same device as ours."""
    config = SMALL.replace(epochs=2, warmup_epochs=1)

    with gpu:
        model = train_two_tower(config.replace(device="auto"), planted.dataset, planted.split, SilentProgress())

    assert gpu.operations > 100
    assert not any(map(is_on_gpu, model.parameters()))


def test_the_pretended_gpu_refuses_what_a_gpu_would_refuse(gpu: PretendedGpu) -> None:
    """Operations on tensors of two devices fail, and so does numpy() without cpu()."""
    with gpu:
        tensor = torch.zeros(3, device="cuda")

        with pytest.raises(RuntimeError, match="two devices"):
            tensor + torch.arange(3)
        with pytest.raises(RuntimeError, match="two devices"):
            tensor[torch.from_numpy(np.arange(2))]
        with pytest.raises(TypeError, match="cpu"):
            tensor.numpy()
        assert tensor.cpu().numpy().tolist() == [0, 0, 0]
        assert (tensor.device.type, tensor.cpu().device.type, (2 * tensor).device.type) == ("cuda", "cpu", "cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_training_on_a_real_gpu(planted: Planted, tmp_path: Path) -> None:
    """The result is close to the CPU's but not equal, because a GPU sums in no fixed order."""
    trained = train(planted, SMALL.replace(device="cuda"), tmp_path)

    assert trained.paths.shape == planted.trained.paths.shape
    last, expected = (result.history[-1]["path_loss"] for result in (trained, planted.trained))
    assert last == pytest.approx(expected, rel=0.2)
    with safe_open(tmp_path / "checkpoint.safetensors", "pt") as stored:
        assert {stored.get_tensor(name).device.type for name in stored.keys()} == {"cpu"}  # noqa: SIM118


def test_cuda_without_a_gpu_says_so_before_anything_is_trained(
    planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has the setting, what was found, and what to do."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(ConfigError, match=r"device: expected a GPU .* found none .*; set it to auto or cpu"):
        train(planted, SMALL.replace(device="cuda"), tmp_path)


@pytest.mark.parametrize(
    ("setting", "available", "device"),
    [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu"), ("cuda", True, "cuda")],
)
def test_the_setting_decides_the_device(
    setting: str, available: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` is the GPU if there is one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)

    assert choose_device(setting).type == device  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_before_the_files_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The interactions do not exist either, but the error names the setting, and no run folder is made."""
    places = ["--store", str(tmp_path / "s"), "--resume", str(tmp_path / "r")]

    assert dr_trainer(["fit", str(tmp_path / "none.csv"), *places, "--set", "device=cuda"]) == 1
    assert "device: " in capsys.readouterr().err
    assert not (tmp_path / "r").exists()

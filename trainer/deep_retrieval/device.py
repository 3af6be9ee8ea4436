"""Choose the device that training runs on: the processor or one GPU."""

from __future__ import annotations

from typing import Literal

import torch

from trainer.errors import ConfigError


def choose_device(setting: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device that the setting `device` names; auto is the GPU if there is one.

    Raises ConfigError for cuda if torch cannot use a GPU.
    """
    if setting == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if setting == "cuda":
        why = "this torch is built without CUDA" if torch.version.cuda is None else "torch sees no GPU here"
        raise ConfigError(
            f"device: expected a GPU because it is set to cuda, found none ({why}); set it to auto or cpu, or install "
            "a torch with CUDA on a machine with a GPU"
        )
    return torch.device("cpu")

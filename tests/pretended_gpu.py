"""A GPU for machines without one: torch computes on the CPU, and fails where a real GPU would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

#: Operations that may have tensors of both devices.
COPYING = {"copy_", "data.__set__", "_has_compatible_shallow_copy_type"}


class PretendedGpu(TorchFunctionMode):
    """While it is on, each tensor counts as on the CPU or on the GPU, whichever device the code has asked for.

    An operation on tensors of both fails, and so does numpy() of one on the GPU. All numbers come from the CPU, so the
    results are those of the CPU bit by bit. operations: how many there were on the GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch instead of each of its functions `func`."""
        name, kwargs = _name(func), dict(kwargs or {})
        tensors = list(_tensors([args, kwargs]))
        there = {is_on_gpu(tensor) for tensor in tensors if tensor.dim()}  # a scalar may be on either
        if name == "device.__get__":
            return torch.device("cuda" if is_on_gpu(args[0]) else "cpu")
        if name == "numpy" and True in there:
            raise TypeError("numpy() of a tensor on the GPU; it needs cpu() first")
        if len(there) == 2 and name not in COPYING:
            raise RuntimeError(f"{name}: tensors of shapes {[tuple(t.shape) for t in tensors]} are on two devices")
        self.operations += True in there
        on_gpu = any(map(is_on_gpu, tensors))
        if name == "copy_":
            on_gpu = is_on_gpu(args[0])
        elif name == "data.__set__":
            args[0].is_on_pretended_gpu = is_on_gpu(args[1])
        elif name in {"to", "cpu"} or kwargs.get("device") is not None:
            asked = "cpu" if name == "cpu" else kwargs.get("device") or args[1]
            if isinstance(asked, str | torch.device):
                on_gpu = torch.device(asked).type == "cuda"
                args = (args[0], "cpu", *args[2:]) if name == "to" and len(args) > 1 else args
                kwargs = {key: "cpu" if key == "device" else value for key, value in kwargs.items()}
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and is_on_gpu(result) != on_gpu and any(result is tensor for tensor in tensors):
            result = result.clone()  # torch moved nothing, as it was on the CPU anyway
        for tensor in _tensors(result):
            tensor.is_on_pretended_gpu = on_gpu  # type: ignore[attr-defined]
        return result


def is_on_gpu(tensor: Tensor) -> bool:
    """Whether the code has asked for it there."""
    return getattr(tensor, "is_on_pretended_gpu", False)


def _name(func: Any) -> str:
    """Of a function; of reading or setting an attribute of a tensor "grad.__get__", "data.__set__"."""
    name: str = getattr(func, "__name__", "")
    return f"{func.__self__.__name__}.{name}" if name in {"__get__", "__set__"} else name


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)

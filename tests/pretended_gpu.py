"""A GPU for machines without one: torch computes on the CPU, and fails if code mixes the two devices.

This is stricter than a real GPU in one point, CPU indices into a GPU tensor, and laxer in another, a GPU scalar in an
operation with a CPU tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

#: Operations that may take tensors of both devices.
COPYING = {"copy_", "data.__set__", "_has_compatible_shallow_copy_type"}


class PretendedGpu(TorchFunctionMode):
    """While this mode is active, each tensor counts as on the CPU or on the GPU, whichever the code has asked for.

    An operation on tensors of both devices fails, and so does numpy() of a tensor on the GPU. The CPU does all
    computing, so the results are those of the CPU bit by bit. operations: the number of operations on the GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Torch calls this instead of each of its functions `func`."""
        name, kwargs = _name(func), dict(kwargs or {})
        taken = args[:1] if name == "__deepcopy__" else args  # the second is a list of what was copied before
        tensors = list(_tensors([taken, kwargs]))
        sides = {is_on_gpu(tensor) for tensor in tensors if tensor.dim()}  # a scalar may be on either device
        if name == "device.__get__":
            return torch.device("cuda" if is_on_gpu(args[0]) else "cpu")
        if name == "numpy" and True in sides:
            raise TypeError("numpy() of a tensor on the GPU; it needs cpu() first")
        if len(sides) == 2 and name not in COPYING:
            raise RuntimeError(f"{name}: tensors of shapes {[tuple(t.shape) for t in tensors]} are on two devices")
        self.operations += True in sides
        on_gpu = any(map(is_on_gpu, tensors))
        if name == "copy_":
            on_gpu = is_on_gpu(args[0])
        elif name == "data.__set__":
            args[0].is_on_pretended_gpu = is_on_gpu(args[1])
        elif name in {"to", "cpu"} or kwargs.get("device") is not None:
            device = "cpu" if name == "cpu" else kwargs.get("device") or args[1]
            if isinstance(device, str | torch.device):
                on_gpu = torch.device(device).type == "cuda"
                args = (args[0], "cpu", *args[2:]) if name == "to" and len(args) > 1 else args
                kwargs = {key: "cpu" if key == "device" else value for key, value in kwargs.items()}
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and is_on_gpu(result) != on_gpu and any(result is tensor for tensor in tensors):
            result = result.clone()  # torch returned its argument, which is on the CPU anyway
        for tensor in _tensors(result):
            tensor.is_on_pretended_gpu = on_gpu  # type: ignore[attr-defined]
        return result


def is_on_gpu(tensor: Tensor) -> bool:
    """Whether the code has asked for this tensor on the GPU."""
    return getattr(tensor, "is_on_pretended_gpu", False)


def _name(func: Any) -> str:
    """The name of a function; for an attribute of a tensor that is read or set, "grad.__get__" or "data.__set__"."""
    name: str = getattr(func, "__name__", "")
    return f"{func.__self__.__name__}.{name}" if name in {"__get__", "__set__"} else name


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in lists, tuples and dictionaries, nested or not."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)

"""Opens ONNX Runtime, with the same options for the trainer's measurements and for the service.

Nothing else opens it but the trial of a model (service/serving/trial_program.py), in a process with limits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

GPU = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"


def open_session(model: bytes | Path) -> onnxruntime.InferenceSession:
    """A session of an ONNX model, given as its content or its file (which loads faster).

    On the GPU where onnxruntime-gpu is installed in place of onnxruntime, else on the CPU. Raises whatever the runtime
    raises for a model that it cannot load; it has no error class of its own.
    """
    options = onnxruntime.SessionOptions()
    # One thread a search: throughput comes from batches and processes, and spinning would starve the HTTP side.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers = [CPU]
    if GPU in onnxruntime.get_available_providers():
        onnxruntime.preload_dlls()  # CUDA's libraries where pip put them
        providers = [GPU, CPU]
    return onnxruntime.InferenceSession(str(model) if isinstance(model, Path) else model, options, providers=providers)


def on_its_device(session: onnxruntime.InferenceSession, array: NDArray[Any]) -> Any:
    """`array` as an input of many runs: on the GPU a copy that stays there, on the CPU the array itself."""
    if GPU not in session.get_providers():
        return np.ascontiguousarray(array)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0)

"""Opens ONNX Runtime sessions, with the same options for the trainer's measurements and for the service.

In the four packages of this project, only one other file opens a session: service/serving/trial_program.py, which
tries a model in a process with limits.
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
    """A session for an ONNX model, given as bytes or as a file. A file loads faster.

    The session runs on the GPU if onnxruntime-gpu is installed instead of onnxruntime, else on the CPU. For a model
    that cannot be loaded, ONNX Runtime raises errors of several classes without a common base class.
    """
    options = onnxruntime.SessionOptions()
    # One thread per search: batches and processes give the throughput. Spinning threads would slow the HTTP handling.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers = [CPU]
    if GPU in onnxruntime.get_available_providers():
        onnxruntime.preload_dlls()  # the CUDA libraries that pip installed
        providers = [GPU, CPU]
    return onnxruntime.InferenceSession(
        str(model) if isinstance(model, Path) else model,
        options,
        providers=providers,
        # On a CPU, the fused operator takes 25 us for 70 vectors of 64 numbers; an addition and a normalisation take 3.
        # On a GPU, neither was measured.
        disabled_optimizers=["SkipLayerNormFusion"],
    )


def on_its_device(session: onnxruntime.InferenceSession, array: NDArray[Any]) -> Any:
    """`array` as an input for many runs: on a GPU, a copy kept in GPU memory; on the CPU, the array itself."""
    if GPU not in session.get_providers():
        return np.ascontiguousarray(array)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0)

"""The program that trial.py starts in a separate process. It runs one model within limits; exit status 0 is success.

    python -I trial_program.py MODEL MEMORY SECONDS SIZES FOLDER...

MODEL: an ONNX file; if empty, the model is read from standard input. MEMORY: most bytes of address space. SECONDS: most
processor time. SIZES: JSON, see trial.sizes. FOLDER...: the import path.

It is run as a file, not as a module, and imports only numpy and ONNX Runtime, so it runs wherever the service runs.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

BATCHES = (1, 8)  # numbers of queries in one run


def main(model: str, memory: int, seconds: int, sizes: dict[str, int]) -> int:
    """Run a model on inputs of `sizes`. Returns the exit status; prints the name of the error, if there is one."""
    os.nice(10)  # requests have priority over the trial
    for limit, wanted in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_CORE, 0)):
        allowed = resource.getrlimit(limit)[1]
        most = wanted if allowed == resource.RLIM_INFINITY else min(wanted, allowed)
        resource.setrlimit(limit, (most, most))
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            model or sys.stdin.buffer.read(),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["SkipLayerNormFusion"],  # as in retrieval/session.py
        )
        for batch in BATCHES:
            session.run(None, {needed.name: _input(needed, batch, sizes) for needed in session.get_inputs()})
    except Exception as error:  # noqa: BLE001 -- the runtime has no specific error class for a bad model
        print(type(error).__name__)
        return 1
    return 0


def _input(needed: Any, batch: int, sizes: dict[str, int]) -> np.ndarray[Any, Any]:
    """Values for one input of a version's model: the longest history, the widest beam, no known category.

    needed: the runtime's NodeArg. Raises ValueError for an input that the service does not feed.
    """
    import numpy as np

    width = needed.shape[-1] if needed.shape else 0
    match needed.name:
        case "history":
            return np.ones((batch, sizes["history"], width), np.float16)
        case "length":
            return np.full(batch, sizes["history"], np.int64)
        case "categories":
            return np.zeros((batch, width), np.int64)
        case "numbers":
            return np.ones((batch, width), np.float32)
        case "trie":  # every node has children, so the widest beam is full
            return np.zeros((2, width), np.int32)
        case "beam":
            return np.array(sizes["beam"], np.int64)
    raise ValueError(needed.name)


if __name__ == "__main__":
    sys.path[:] = sys.argv[5:]
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])))

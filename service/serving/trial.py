"""A model first runs in a process of its own, with little memory and time: one too large or endless ends there.

A file of 200 bytes can ask for 16 GB, or for hours; everything else in a version is bounded by its own size. It is a
guard against mistakes, not against somebody who may publish and means harm: what a model does may depend on its input.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from typing import Any

import numpy as np

from index_store.errors import VersionDamaged
from index_store.version import Version
from retrieval.query import Limits

MEMORY = 2**30  # bytes of address space, and four times the model's own; the runtime alone takes 200 MB
SECONDS = 20  # of processor time, and three times as long in all
BATCHES = (1, 8)  # queries at once, with the widest beam
#: Without the service's secrets; and libraries map memory for each thread that they might start.
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def try_model(version: Version) -> None:
    """Raise VersionDamaged unless model.onnx can be loaded and run within these limits. Takes 0.2 s and more."""
    manifest = version.manifest
    size = manifest.parts["model.onnx"].size
    command = [
        sys.executable,
        "-P",
        "-m",
        "service.serving.trial",
        f"{version.folder}/model.onnx" if version.folder else "",
    ]
    command += map(str, (MEMORY + 4 * size, SECONDS, manifest.history, Limits.BEAM))
    try:
        done = subprocess.run(  # noqa: S603 -- our own program
            command,
            input=b"" if version.folder else bytes(version.parts["model.onnx"]),
            capture_output=True,
            timeout=3 * SECONDS,
            check=False,
            start_new_session=True,  # a signal to the service's group, as its end is told, is no fault of the model
            env={name: value for name, value in os.environ.items() if not name.startswith("DR_")} | ENVIRONMENT,
        )
    except subprocess.TimeoutExpired:
        reason = f"it took longer than {3 * SECONDS} s"
    else:
        if done.returncode == 0:
            return
        said = (done.stdout or done.stderr[-200:]).decode(errors="replace").strip()
        reason = f"signal {-done.returncode}" if done.returncode < 0 else said or f"exit status {done.returncode}"
    raise VersionDamaged(
        f"{manifest.version}: model.onnx cannot be run in a process of its own with {(MEMORY + 4 * size) / 2**20:,.0f} "
        f"MiB of memory and {SECONDS} s of processor time ({reason})"
    )


def main(file: str, memory: int, seconds: int, history: int, beam: int) -> int:
    """Run a model, from standard input if it is no file. Returns the exit status; prints what was wrong."""
    os.nice(10)  # requests come first
    for limit, wanted in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_CORE, 0)):
        allowed = resource.getrlimit(limit)[1]
        most = wanted if allowed == resource.RLIM_INFINITY else min(wanted, allowed)
        resource.setrlimit(limit, (most, most))
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        model = file or sys.stdin.buffer.read()
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        for batch in BATCHES:
            session.run(None, {one.name: _input(one, batch, history, beam) for one in session.get_inputs()})
    except Exception as error:  # noqa: BLE001 -- the runtime has no error class of its own for a bad model
        print(type(error).__name__)
        return 1
    return 0


def _input(wanted: Any, batch: int, history: int, beam: int) -> np.ndarray[Any, Any]:
    """Ones of the shape and type of one input of a version's model, categories none."""
    width = wanted.shape[-1] if wanted.shape else 0
    match wanted.name:
        case "history":
            return np.ones((batch, history, width), np.float16)
        case "length":
            return np.full(batch, history, np.int64)
        case "categories":
            return np.zeros((batch, width), np.int64)
        case "numbers":
            return np.ones((batch, width), np.float32)
        case "trie":  # every node leads on, so the widest beam is full
            return np.zeros((2, width), np.int32)
        case "beam":
            return np.array(beam, np.int64)
    raise ValueError


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(int, sys.argv[2:])))

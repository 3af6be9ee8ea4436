"""Runs a model first in a separate process, with limited memory and time, so that a bad model cannot harm the service.

An ONNX file of 200 bytes can ask for 16 GB or run for hours. No other part of a version can: a part takes memory in
proportion to its size, and the trie of the paths has a limit (retrieval/paths/trie.py). The trial guards against
mistakes, not against a malicious publisher, because a model may behave differently on other inputs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from index_store.errors import VersionDamaged
from index_store.manifest import Manifest
from index_store.version import Version
from retrieval.query import Limits

MEMORY = 2**30  # bytes of address space, plus four times the model's size; the runtime alone takes 200 MB
SECONDS = 20  # limit of processor time; the limit of elapsed time is three times this
PROGRAM = str(Path(__file__).with_name("trial_program.py"))
#: One thread, because libraries reserve address space for each thread that they might start.
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def sizes(manifest: Manifest) -> dict[str, int]:
    """The largest inputs that the service gives to the version's model: history items and beam width."""
    return {"history": manifest.history, "beam": Limits.BEAM}


def try_model(version: Version) -> None:
    """Run model.onnx with batches of 1 and 8 within the limits; takes 0.2 s or more. Raises VersionDamaged if the run
    fails.
    """
    manifest = version.manifest
    memory = MEMORY + 4 * manifest.parts["model.onnx"].size
    model = f"{version.folder}/model.onnx" if version.folder else ""
    # -I ignores PYTHON* variables and the current folder. The process gets the service's import path as arguments.
    command = [sys.executable, "-I", PROGRAM, model, str(memory), str(SECONDS), json.dumps(sizes(manifest)), *sys.path]
    try:
        done = subprocess.run(  # noqa: S603 -- our own program
            command,
            input=b"" if version.folder else bytes(version.parts["model.onnx"]),
            capture_output=True,
            timeout=3 * SECONDS,
            check=False,
            start_new_session=True,  # in its own process group, Ctrl-C and docker's SIGTERM do not reach it
            # Variables with DR_ are left out, because they may be secrets.
            env={name: value for name, value in os.environ.items() if not name.startswith("DR_")} | ENVIRONMENT,
        )
    except subprocess.TimeoutExpired:
        reason = f"it took longer than {3 * SECONDS} s"
    else:
        if done.returncode == 0:
            return
        output = (done.stdout or done.stderr[-200:]).decode(errors="replace").strip()
        reason = f"signal {-done.returncode}" if done.returncode < 0 else output or f"exit status {done.returncode}"
    raise VersionDamaged(
        f"{manifest.version}: model.onnx cannot be run in a process of its own with {memory / 2**20:,.0f} MiB of "
        f"memory and {SECONDS} s of processor time ({reason})"
    )

"""A model first runs in a process of its own, with limited memory and time, so that a bad one cannot hurt the service.

An ONNX file of 200 bytes can ask for 16 GB or run for hours; every other part of a version is bounded by its own size.
This guards against mistakes, not against a malicious publisher: what a model does may depend on its input.
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

MEMORY = 2**30  # bytes of address space, beside four times the model's own size; the runtime alone takes 200 MB
SECONDS = 20  # of processor time; three times as long in all
PROGRAM = str(Path(__file__).with_name("trial_program.py"))
#: Libraries map memory for each thread that they might start.
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def sizes(manifest: Manifest) -> dict[str, int]:
    """How large the inputs of the version's model become when the service runs it: history items and beam width."""
    return {"history": manifest.history, "beam": Limits.BEAM}


def try_model(version: Version) -> None:
    """Run model.onnx once within the limits; takes 0.2 s and more. Raises VersionDamaged if it fails."""
    manifest = version.manifest
    memory = MEMORY + 4 * manifest.parts["model.onnx"].size
    model = f"{version.folder}/model.onnx" if version.folder else ""
    # -I ignores PYTHON* variables and the current folder; then the process gets the import path of this one.
    command = [sys.executable, "-I", PROGRAM, model, str(memory), str(SECONDS), json.dumps(sizes(manifest)), *sys.path]
    try:
        done = subprocess.run(  # noqa: S603 -- our own program
            command,
            input=b"" if version.folder else bytes(version.parts["model.onnx"]),
            capture_output=True,
            timeout=3 * SECONDS,
            check=False,
            start_new_session=True,  # Ctrl-C and docker's SIGTERM reach the service's whole group, but not this process
            # DR_ variables may be secrets.
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
        f"{manifest.version}: model.onnx cannot be run in a process of its own with {memory / 2**20:,.0f} MiB of "
        f"memory and {SECONDS} s of processor time ({reason})"
    )

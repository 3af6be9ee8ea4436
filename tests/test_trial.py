"""The process in which a new model is tried: how it is started, and that nothing else affects it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import httpx
import numpy as np
import pytest

from index_store.folder.store import FolderStore
from tests.chaos.damage import endless
from tests.conftest import Planted
from tests.planted import changed
from tests.redis_servers import free_port

ROOT = Path(__file__).parent.parent
#: Loads a version of a store and tries its model, as the service does.
TRY = """import sys
from index_store.folder.store import FolderStore
from service.serving.trial import try_model
store = FolderStore(sys.argv[1])
version = store.load(store.current())
print("loaded", flush=True)
try_model(version)
print("passed")
"""
#: The environment without settings of Python and of the service.
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("DR_", "PYTHON"))}


@pytest.fixture
def store(planted: Planted, tmp_path: Path) -> str:
    """The folder of a store that has a current version."""
    store = FolderStore(str(tmp_path / "store"))
    store.activate(store.publish(planted.version))
    return str(store.folder)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter with the dependencies of this project, but without the project itself."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    # Python adds the folder that a .pth file names, but does not read that folder's .pth files, so not this project's.
    (packages / "dependencies.pth").write_text(str(Path(np.__file__).parent.parent))
    return str(folder / "bin" / "python")


def test_a_checkout_that_is_not_installed_is_served(python: str, store: str) -> None:
    """With `python -m service` in the checkout's folder, the service becomes ready."""
    port = free_port()
    command = [python, "-m", "service", "--store", store, "--port", str(port)]
    with subprocess.Popen(command, cwd=ROOT, env=CLEAN, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            lines = []
            for line in process.stderr:
                lines.append(line)
                if "Uvicorn running on" in line:
                    break
            ready = httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False)
        finally:
            process.kill()

    assert ready.status_code == 200, "".join(lines)


def test_a_checkout_on_pythonpath_can_try_a_model(python: str, store: str, tmp_path: Path) -> None:
    """The project is not installed, and the working folder is not the checkout's."""
    done = subprocess.run(
        [python, "-c", TRY, store],
        cwd=tmp_path, env=CLEAN | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.stdout.splitlines() == ["loaded", "passed"], done.stderr


def test_nothing_is_imported_from_the_current_folder(store: str, tmp_path: Path) -> None:
    """Python runs with -P, as the installed command does, so that the service itself imports nothing from there."""
    for name in ("numpy", "onnxruntime", "service", "resource", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
    command = [sys.executable, "-P", "-c", TRY, store]
    done = subprocess.run(command, cwd=tmp_path, env=CLEAN, capture_output=True, text=True, check=False)

    assert done.stdout.splitlines() == ["loaded", "passed"], done.stderr
    assert not (tmp_path / "imported").exists()


def test_a_signal_to_the_process_group_does_not_end_the_trial(planted: Planted, tmp_path: Path) -> None:
    """Ctrl-C and `docker stop` reach the whole group; the service handles them, and the trial does not see them.

    The model never ends, so it is still running when the signal comes; it is ended only because its time is over.
    """
    store = FolderStore(str(tmp_path / "store"))
    store.activate(store.publish(changed(planted.version, model=endless())))
    before = "import signal; signal.signal(signal.SIGTERM, lambda *_: None)\n"
    before += "from service.serving import trial; trial.SECONDS = 1\n"
    command = [sys.executable, "-c", before + TRY, str(store.folder)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=CLEAN, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while process.poll() is None:
            if any(
                b"model.onnx" in Path(f"/proc/{child}/cmdline").read_bytes() for child in children.read_text().split()
            ):
                os.killpg(process.pid, signal.SIGTERM)
                break
        _, err = process.communicate(timeout=60)

    assert re.search(r"VersionDamaged: .*\((signal 9|it took longer than 3 s)\)$", err.strip()), err

"""What each package may import: trainer -> retrieval -> index_store <- retrieval <- service."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from index_store import errors as store_errors
from service import errors as service_errors
from service.http.problems import STATUS, status_of

ROOT = Path(__file__).parent.parent
PACKAGES = ("index_store", "retrieval", "trainer", "service")


#: The rooms (subpackages) of each package, lowest first, with the rooms that each may import. Files beside the rooms,
#: such as errors.py and config.py, import no room; only __main__.py and the two files in DOORS do.
ROOMS: dict[str, dict[str, set[str]]] = {
    "trainer": {
        "data": set(),
        "encoders": {"data"},
        "deep_retrieval": {"data", "encoders"},
        "publish": {"data", "encoders", "deep_retrieval"},
        "evaluate": {"data", "deep_retrieval", "publish"},
        "benchmark": {"data", "encoders", "deep_retrieval", "publish", "evaluate"},
    },
    "service": {"process": set(), "serving": set(), "http": {"process", "serving"}},
    "retrieval": {"paths": set()},
    "index_store": {"folder": set(), "redis": {"folder"}},
}
DOORS = {"index_store/store.py", "retrieval/searcher.py"}


def modules(package: str) -> dict[str, set[str]]:
    """The full names of everything that each file imports, anywhere in it."""
    imported = {}
    for file in sorted((ROOT / package).rglob("*.py")):
        names: set[str] = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
        imported[str(file.relative_to(ROOT))] = names
    return imported


def imports(package: str) -> dict[str, set[str]]:
    """The top-level packages that each file imports."""
    return {file: {name.split(".")[0] for name in names} for file, names in modules(package).items()}


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("trainer", {"service", "fastapi", "uvicorn"}),
        ("service", {"trainer", "torch", "onnx", "sklearn", "pyarrow", "numba"}),
        ("retrieval", {"service", "trainer", "torch", "fastapi", "pydantic", "onnx", "pyarrow", "redis"}),
        ("index_store", {"service", "trainer", "retrieval", "numba"}),
    ],
)
def test_arrows_between_packages_point_one_way(package: str, forbidden: set[str]) -> None:
    """Each package imports only packages below it; trainer and service never import each other."""
    for file, names in imports(package).items():
        assert not names & forbidden, file


@pytest.mark.parametrize("package", ROOMS)
def test_arrows_between_rooms_point_one_way(package: str) -> None:
    """A room imports only rooms below it, so no imports are circular; files beside the rooms import none."""
    rooms, order = ROOMS[package], list(ROOMS[package])
    assert set(rooms) == {file.parent.name for file in (ROOT / package).glob("*/__init__.py")}
    assert all(order.index(below) < order.index(room) for room in rooms for below in rooms[room])
    for file, names in modules(package).items():
        used = {name.split(".")[1] for name in names if name.startswith(f"{package}.")} & set(rooms)
        room = file.split("/")[1]
        if room in rooms:
            assert used - {room} <= rooms[room], file
        elif file not in DOORS and room != "__main__.py":
            assert not used, file


def test_the_store_needs_only_numpy_and_the_standard_library() -> None:
    """Any program can then read a version; the Redis library is imported in one file alone."""
    libraries = {"index_store/redis/client.py": "redis"}
    for file, names in imports("index_store").items():
        assert names <= {"numpy", "index_store", libraries.get(file, "numpy"), *sys.stdlib_module_names}, file


def test_one_place_opens_the_runtime() -> None:
    """The trainer measures with the code that the service runs; only the trial of a model is a program of its own."""
    opening = {file for package in PACKAGES for file, names in imports(package).items() if "onnxruntime" in names}

    assert opening == {"retrieval/session.py", "service/serving/trial_program.py"}


@pytest.mark.parametrize("package", ["service.serving.retriever", "trainer.publish.version", "retrieval"])
def test_the_telemetry_of_the_runtime_is_off(package: str, tmp_path: Path) -> None:
    """ONNX Runtime would store an id of this machine and a database of events, and send them."""
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    code = f"import {package}, onnxruntime; onnxruntime.get_available_providers()"

    subprocess.run([sys.executable, "-c", code], env=environment, check=True)

    assert not list(tmp_path.rglob("*Microsoft*"))


def test_importing_the_service_leaves_torch_out() -> None:
    """Neither torch nor onnx nor the trainer is imported, not even indirectly."""
    code = "import sys, service.http.app, service.__main__; print({'torch', 'onnx', 'trainer'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"


def test_a_folder_store_imports_neither_redis_nor_numba() -> None:
    """They are imported only when a redis:// URL is opened, and when requests are answered."""
    code = "import sys, index_store.__main__; print({'redis', 'numba'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"


def test_nothing_is_unpickled() -> None:
    """No package imports pickle or similar modules, or calls torch.load."""
    for package in PACKAGES:
        for file, names in imports(package).items():
            assert not names & {"pickle", "joblib", "dill", "shelve", "marshal"}, file
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text()
            assert "torch.load" not in text, path
            assert "allow_pickle=True" not in text, path


def test_no_file_is_long() -> None:
    """A file of the four packages has at most 400 lines."""
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 400, path


def test_every_error_has_a_status() -> None:
    """Each error class of the store and the service has a status, of its own or from a base class below the root."""
    for module, root in (
        (store_errors, store_errors.IndexStoreError),
        (service_errors, service_errors.ServiceError),
    ):
        for kind in vars(module).values():
            if isinstance(kind, type) and issubclass(kind, root) and kind is not root:
                assert kind in STATUS, kind
                assert 400 <= status_of(kind("x")) <= 504


@pytest.mark.parametrize("module", ["index_store", "service", "trainer"])
def test_the_docstring_of_errors_names_every_error(module: str) -> None:
    """The tree that is drawn in the docstring of errors.py is complete."""
    import importlib

    errors = importlib.import_module(f"{module}.errors")
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, Exception):
            assert name in (errors.__doc__ or "")

"""The imports that each package may have: trainer and service import retrieval, and retrieval imports index_store."""

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


#: The rooms (subpackages) of each package, lowest first, with the rooms that each room may import. Files beside the
#: rooms, such as errors.py and config.py, import no room, except __main__.py and the two files in MAY_IMPORT_ROOMS.
ROOMS: dict[str, dict[str, set[str]]] = {
    "trainer": {
        "data": set(),
        "encoders": {"data"},
        "deep_retrieval": {"data", "encoders"},
        "publish": {"data", "encoders", "deep_retrieval"},
        "evaluate": {"data", "deep_retrieval", "publish"},
        "benchmark": {"data", "encoders", "deep_retrieval", "publish", "evaluate"},
        "living": {"data", "deep_retrieval", "publish"},
    },
    "service": {"process": set(), "serving": set(), "http": {"process", "serving"}},
    "retrieval": {"paths": set()},
    "index_store": {"folder": set(), "redis": {"folder"}},
}
MAY_IMPORT_ROOMS = {"index_store/store.py", "retrieval/searcher.py"}


def modules(package: str) -> dict[str, set[str]]:
    """For each file of the package, the full names of all its imports, also of imports inside functions."""
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
    """For each file of the package, the top-level packages that it imports."""
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
    """A package imports only packages below it. The trainer and the service never import each other."""
    for file, names in imports(package).items():
        assert not names & forbidden, file


@pytest.mark.parametrize("package", ROOMS)
def test_arrows_between_rooms_point_one_way(package: str) -> None:
    """A room imports only rooms below it, so no imports are circular. Files beside the rooms import no room."""
    rooms, order = ROOMS[package], list(ROOMS[package])
    assert set(rooms) == {file.parent.name for file in (ROOT / package).glob("*/__init__.py")}
    assert all(order.index(below) < order.index(room) for room in rooms for below in rooms[room])
    for file, names in modules(package).items():
        used = {name.split(".")[1] for name in names if name.startswith(f"{package}.")} & set(rooms)
        room = file.split("/")[1]
        if room in rooms:
            assert used - {room} <= rooms[room], file
        elif file not in MAY_IMPORT_ROOMS and room != "__main__.py":
            assert not used, file


def test_the_store_needs_only_numpy_and_the_standard_library() -> None:
    """So any program can read a version. Only one file imports the Redis library."""
    libraries = {"index_store/redis/client.py": "redis"}
    for file, names in imports("index_store").items():
        assert names <= {"numpy", "index_store", libraries.get(file, "numpy"), *sys.stdlib_module_names}, file


def test_one_place_opens_the_runtime() -> None:
    """The trainer and the service open ONNX Runtime with the same code. Only a model's trial opens it elsewhere."""
    opening = {file for package in PACKAGES for file, names in imports(package).items() if "onnxruntime" in names}

    assert opening == {"retrieval/session.py", "service/serving/trial_program.py"}


@pytest.mark.parametrize("package", ["service.serving.retriever", "trainer.publish.version", "retrieval"])
def test_the_telemetry_of_the_runtime_is_off(package: str, tmp_path: Path) -> None:
    """With telemetry on, ONNX Runtime stores an id of the machine and a database of events, and sends both."""
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    code = f"import {package}, onnxruntime; onnxruntime.get_available_providers()"

    subprocess.run([sys.executable, "-c", code], env=environment, check=True)

    assert not list(tmp_path.rglob("*Microsoft*"))


def test_importing_the_service_leaves_torch_out() -> None:
    """Importing the service imports neither torch nor onnx nor the trainer, not even indirectly."""
    code = "import sys, service.http.app, service.__main__; print({'torch', 'onnx', 'trainer'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"


def test_a_folder_store_imports_neither_redis_nor_numba() -> None:
    """The Redis library is imported only to open a redis:// URL, and numba only to answer requests."""
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
    """Each error class of the store and the service has an HTTP status between 400 and 504."""
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
    """The tree of errors in the docstring of errors.py is complete."""
    import importlib

    errors = importlib.import_module(f"{module}.errors")
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, Exception):
            assert name in (errors.__doc__ or "")

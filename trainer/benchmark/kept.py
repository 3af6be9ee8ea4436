"""Keep measurements, so that none is repeated: one folder for each combination of data, settings and code."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from trainer.config import TrainConfig
from trainer.data.dataset import Dataset
from trainer.errors import ResumeError
from trainer.progress import Progress


def code_digest(folders: Iterable[Path], but: Iterable[Path] = ()) -> str:
    """SHA-256 over all Python files below `folders`, without their comments, docstrings and layout.

    but: files to leave out.
    """
    digest = hashlib.sha256()
    for file in sorted({file for folder in folders for file in folder.rglob("*.py")} - set(but)):
        module = ast.parse(file.read_bytes())
        for node in ast.walk(module):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                node.body = node.body[ast.get_docstring(node, clean=False) is not None :]
        digest.update(ast.dump(module).encode() + b"\n")
    return digest.hexdigest()


_ROOT = Path(__file__).parents[2]
#: Digest of the code that measures. It is computed on import, because files can be edited while the process runs.
_CODE = code_digest(
    [_ROOT / package for package in ("trainer", "retrieval", "index_store")],
    # These files only start measurements and show the results.
    but=[_ROOT / "trainer" / file for file in ("__main__.py", "benchmark/plots.py", "benchmark/report.py")],
)


def keep(
    folder: Path,
    name: str,
    config: TrainConfig,
    dataset: Dataset,
    progress: Progress,
    measure: Callable[[Path], dict[str, Any]],
    methods: Sequence[str] = (),
) -> dict[str, Any]:
    """The stored result of an earlier call, else the result of `measure`, whose argument is a folder to work in.

    Raises ResumeError if the folder cannot be used.
    """
    own = own_folder(folder, name, config, dataset, methods)
    file = own / "result.json"
    with _usable(own):
        measured = file.exists()
    if not measured:
        progress.say(f"{name}: measuring in {own}")
        with _usable(own):
            own.mkdir(parents=True, exist_ok=True)
        text = json.dumps(measure(own))  # outside of `_usable`: OSErrors of `measure` are not about this folder
        with _usable(own):
            temporary = file.with_suffix(".partial")
            temporary.write_text(text)
            temporary.replace(file)
    else:
        progress.say(f"{name}: measured before; the result is in {file}")
    try:
        with _usable(own):
            result: dict[str, Any] = json.loads(file.read_bytes())
    except ValueError:
        raise ResumeError(f"{file}: damaged; delete it to measure again") from None
    return result


@contextlib.contextmanager
def _usable(folder: Path) -> Iterator[None]:
    """Turn an OSError into a ResumeError that names the folder."""
    try:
        yield
    except OSError as error:
        raise ResumeError(f"--runs: {folder} cannot be used: {error.strerror or error}") from None


def own_folder(folder: Path, name: str, config: TrainConfig, dataset: Dataset, methods: Sequence[str] = ()) -> Path:
    """The folder for a measurement of these methods with these settings, these data and this code."""
    about = json.dumps([config.to_json(), dataset.digest(), list(methods), _CODE], sort_keys=True)
    return folder / f"{name}-{hashlib.sha256(about.encode()).hexdigest()[:8]}"

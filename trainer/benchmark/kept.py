"""Measurements are kept and not repeated: in a folder for each data set, settings and code."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from trainer.config import TrainConfig
from trainer.data.dataset import Dataset
from trainer.errors import ResumeError
from trainer.progress import Progress


def code_digest(folders: Iterable[Path], but: Iterable[Path] = ()) -> str:
    """SHA-256 over all Python files below `folders`, without their comments, docstrings and layout.

    but: files left out.
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
#: The code that measures, as this process runs it: computed now, for a file may be edited meanwhile.
_CODE = code_digest(
    [_ROOT / package for package in ("trainer", "retrieval", "index_store")],
    # These only ask for measurements, and show them.
    but=[_ROOT / "trainer" / file for file in ("__main__.py", "benchmark/plots.py", "benchmark/report.py")],
)


def keep(
    folder: Path,
    name: str,
    config: TrainConfig,
    dataset: Dataset,
    progress: Progress,
    measure: Callable[[Path], dict[str, Any]],
) -> dict[str, Any]:
    """The result of `measure`, which gets a folder of its own to work in; or its result of an earlier call.

    Raises ResumeError where the folder cannot be used.
    """
    place = own_folder(folder, name, config, dataset)
    file = place / "result.json"
    with _usable(place):
        measured = file.exists()
    if not measured:
        progress.say(f"{name}: in {place}")
        with _usable(place):
            place.mkdir(parents=True, exist_ok=True)
        text = json.dumps(measure(place))  # outside of `_usable`: an OSError in there is not the folder's
        with _usable(place):
            temporary = file.with_suffix(".partial")
            temporary.write_text(text)
            temporary.replace(file)
    else:
        progress.say(f"{name}: measured before, {file}")
    try:
        with _usable(place):
            result: dict[str, Any] = json.loads(file.read_bytes())
    except ValueError:
        raise ResumeError(f"{file}: damaged; delete it to measure again") from None
    return result


@contextlib.contextmanager
def _usable(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ResumeError(f"--runs: {place} cannot be used: {error.strerror or error}") from None


def own_folder(folder: Path, name: str, config: TrainConfig, dataset: Dataset) -> Path:
    """The folder for a measurement with these settings and data, by this code."""
    about = json.dumps([config.to_json(), dataset.digest(), _CODE], sort_keys=True)
    return folder / f"{name}-{hashlib.sha256(about.encode()).hexdigest()[:8]}"

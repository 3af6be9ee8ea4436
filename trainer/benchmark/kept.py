"""What was measured before is not measured again: a folder for each data set, settings and code."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trainer.config import TrainConfig
from trainer.data.dataset import Dataset
from trainer.errors import ResumeError
from trainer.progress import Progress

_ROOT = Path(__file__).parents[2]
_SHOWN_ONLY = {"__main__.py", "plots.py", "report.py"}
#: The code as this process has it; to be read before anybody edits it.
_CODE = hashlib.sha256(
    b"".join(
        file.read_bytes()
        for package in ("trainer", "retrieval", "index_store")
        for file in sorted((_ROOT / package).rglob("*.py"))
        if file.name not in _SHOWN_ONLY
    )
).hexdigest()


def keep(
    folder: Path,
    name: str,
    config: TrainConfig,
    dataset: Dataset,
    progress: Progress,
    measure: Callable[[Path], dict[str, Any]],
) -> dict[str, Any]:
    """What `measure` returns, given a folder of its own to work in; or what it returned before for the same.

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
        text = json.dumps(measure(place))  # what goes wrong in there is not the folder's fault
        with _usable(place):
            temporary = file.with_suffix(".partial")
            temporary.write_text(text)
            temporary.replace(file)
    else:
        progress.say(f"{name}: measured before, {file}")
    try:
        with _usable(place):
            found: dict[str, Any] = json.loads(file.read_bytes())
    except ValueError:
        raise ResumeError(f"{file}: damaged; delete it to measure again") from None
    return found


@contextlib.contextmanager
def _usable(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ResumeError(f"--runs: {place} cannot be used: {error.strerror or error}") from None


def own_folder(folder: Path, name: str, config: TrainConfig, dataset: Dataset) -> Path:
    """Where it is kept: another for other settings, other data or other code."""
    about = json.dumps([config.to_json(), dataset.digest(), _CODE], sort_keys=True)
    return folder / f"{name}-{hashlib.sha256(about.encode()).hexdigest()[:8]}"

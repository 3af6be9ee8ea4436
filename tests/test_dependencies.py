"""No floor allows a version with a known fault, and no pin is below a floor."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent

#: Where each advisory that touches us was mended; a reason stands beside each floor in pyproject.toml.
MENDED = {
    "h11": "0.16.0",
    "jinja2": "3.1.6",
    "onnx": "1.21.0",
    "onnxruntime": "1.31",
    "redis": "8.1.0",
    "starlette": "1.3.1",
    "torch": "2.10.0",
    "uvicorn": "0.51",
}


def requirements() -> dict[str, Requirement]:
    """All that pyproject.toml asks for, by name in lower case."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    found = {requirement.name.lower(): requirement for requirement in map(Requirement, lines)}
    del found["deep-retrieval"]
    return found


def pins() -> dict[str, str]:
    """What constraints.txt pins."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    return dict(line.split("==") for line in lines)


@pytest.mark.parametrize("name", sorted(MENDED))
def test_no_floor_allows_a_known_fault(name: str) -> None:
    """It is asked for at least where it was mended."""
    floors = [Version(part.version) for part in requirements()[name].specifier if part.operator == ">="]

    assert [floor >= Version(MENDED[name]) for floor in floors] == [True]


def test_pins_and_what_is_installed_are_above_the_floors() -> None:
    """So that what is tested is what a release allows."""
    pinned = pins()
    for name, requirement in requirements().items():
        assert requirement.specifier.contains(pinned[name]), name
        if name != "cosmic-ray":  # make mutants installs it
            assert requirement.specifier.contains(metadata.version(name)), name

"""No floor (lowest version allowed) has a known fault, and no pin is below a floor."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent

#: The release that fixed each advisory that affects us; the reason stands beside each floor in pyproject.toml.
FIXED = {
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
    """All requirements of pyproject.toml, by name in lower case."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    by_name = {requirement.name.lower(): requirement for requirement in map(Requirement, lines)}
    del by_name["deep-retrieval"]
    return by_name


def pins() -> dict[str, str]:
    """The versions that constraints.txt pins, by name."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    return dict(line.split("==") for line in lines)


@pytest.mark.parametrize("name", sorted(FIXED))
def test_no_floor_allows_a_known_fault(name: str) -> None:
    """The floor is the release with the fix, or a later one."""
    floors = [Version(part.version) for part in requirements()[name].specifier if part.operator == ">="]

    assert [floor >= Version(FIXED[name]) for floor in floors] == [True]


def test_pinned_and_installed_versions_are_above_the_floors() -> None:
    """The tests then run with versions that a release allows."""
    pinned = pins()
    for name, requirement in requirements().items():
        assert requirement.specifier.contains(pinned[name]), name
        if name != "cosmic-ray":  # make mutants installs it
            assert requirement.specifier.contains(metadata.version(name)), name

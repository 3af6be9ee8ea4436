"""The README is whole: every setting, route, file, command and flag is in it, and its links lead somewhere."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

import index_store.__main__
import trainer.__main__
from index_store.folder.store import FolderStore
from service.http.app import create_app
from service.process.settings import Settings
from trainer.config import TrainConfig, load_config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_every_training_setting_is_there_with_its_default() -> None:
    """One row of the table a setting."""
    for name, field in TrainConfig.model_fields.items():
        shown = "unset" if field.default is None else "[]" if field.default == () else field.default
        assert f"| `{name}` | {shown} |" in README, name


def test_every_service_setting_is_there_with_its_default() -> None:
    """As the environment variable that it is."""
    for name, field in Settings.model_fields.items():
        default = "required" if field.is_required() else "unset" if field.default is None else field.default
        assert f"| `DR_{name.upper()}` | {default} |" in README, name


def test_every_route_is_there(tmp_path: Path) -> None:
    """With its method."""
    app = create_app(Settings.model_validate({"store": str(tmp_path)}), FolderStore(str(tmp_path)))
    for path, operations in app.openapi()["paths"].items():
        for method in operations:
            assert f"`{method.upper()} {path}`" in README, path


def test_every_file_of_the_packages_is_there() -> None:
    """Each in its package's list, and nothing that is not there."""
    for package in ("index_store", "retrieval", "trainer", "service"):
        (listed,) = re.findall(rf"^{package}/.*\n((?:  .*\n)+)", README, re.MULTILINE)
        files = {file.name for file in (ROOT / package).glob("*.py")} - {"__init__.py"}
        assert set(re.findall(r"^  (\w+\.py) +\S", listed, re.MULTILINE)) == files, package


@pytest.mark.parametrize("parser", [trainer.__main__.make_parser(), index_store.__main__.make_parser()])
def test_every_command_and_flag_is_there(parser: argparse.ArgumentParser) -> None:
    """In the row of its command, but for those that are said of all of them."""
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for name, command in commands.choices.items():
        (row,) = re.findall(rf"^\| `(?:{parser.prog} {name}\b|{parser.prog} .*\| {name}\b).*$", README, re.MULTILINE)
        for action in command._actions:
            for flag in action.option_strings[-1:]:
                assert flag in row or flag in {"--help", "--json"}, f"{name} {flag}"


def test_every_make_target_is_there() -> None:
    """Those of the help."""
    for target in re.findall(r"make (\w+) ", (ROOT / "Makefile").read_text().split("install:")[0]):
        assert f"make {target}" in README


def test_links_lead_somewhere() -> None:
    """Relative ones, to files of this repository."""
    for link in re.findall(r"\]\((?!https?://|#)([^)]+)\)", README):
        assert (ROOT / link.split("#")[0]).exists(), link


def test_the_example_config_is_valid() -> None:
    """What the demo trains with."""
    assert load_config(ROOT / "examples/online_retail/config.toml").k == 20


def test_the_shipped_data_are_small_and_attributed() -> None:
    """Under 1.5 MB, with source and licence."""
    folder = ROOT / "examples/online_retail"

    assert sum(file.stat().st_size for file in folder.glob("*.parquet")) < 1_500_000
    assert "10.24432/C5BW33" in (folder / "README.md").read_text()
    assert "CC BY 4.0" in (folder / "README.md").read_text()

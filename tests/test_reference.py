"""docs/reference.md agrees with the code."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from service.process.settings import Settings
from trainer.config import GROUPS, TrainConfig

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def reference() -> str:
    """The text that docs/reference.py generates from the code."""
    text: str = runpy.run_path(str(DOCS / "reference.py"))["reference"]()
    return text


def test_the_reference_is_up_to_date(reference: str) -> None:
    """If this fails, run `make docs`: a setting, flag, route or limit has changed."""
    assert (DOCS / "reference.md").read_text("utf-8") == reference, "run make docs"


def test_every_setting_is_in_a_group_and_has_a_meaning() -> None:
    """No row of the tables of settings has an empty cell."""
    assert list(TrainConfig.model_fields) == [name for group in GROUPS for name in group.model_fields]
    for field in [*TrainConfig.model_fields.values(), *Settings.model_fields.values()]:
        assert field.description


@pytest.mark.parametrize(
    "row",
    [
        "| `k` | `100` | whole number from 1 to 1000 |",
        "| `min_rating` | unset | number |",
        "| `split` | `users` | `users` or `last-out` |",
        "| `DR_STORE` | required | text |",
        "| `DR_POLL_SECONDS` | `0.5` | number above 0 and up to 60 |",
        "| `dr-trainer fit INTERACTIONS` |",
        "| `dr-index prune --keep N` |",
        "| `--items F` | fit, evaluate, replay, sensitivity |",
        "| `--host H` |",
        "| `POST /v1/retrieve` |",
        "| `exclude_history` |",
        "| `HISTORY` | 1,000 | item ids in a history |",
    ],
)
def test_rows_written_by_hand_are_in_the_reference(reference: str, row: str) -> None:
    """Settings with their defaults and values, commands, flags and the commands that take them, a route, limits."""
    assert f"\n{row}" in reference


def test_the_reference_does_not_depend_on_the_environment(reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store, token or port that is set where `make docs` runs does not get into the page."""
    for name, value in (("DR_STORE", "/mine"), ("DR_ADMIN_TOKEN", "hunter2"), ("DR_PORT", "wrong")):
        monkeypatch.setenv(name, value)

    assert runpy.run_path(str(DOCS / "reference.py"))["reference"]() == reference

"""`make mutants` looks for what is there; it takes hours, so that a renamed file is better noticed here."""

from __future__ import annotations

import pytest

from tests.mutants import ROOT, TESTS, meaning


@pytest.mark.parametrize("pattern", TESTS)
def test_modules_and_their_tests_exist(pattern: str) -> None:
    """Every pattern is that of a file."""
    assert list(ROOT.glob(pattern))
    for tests in TESTS[pattern]:
        assert list((ROOT / "tests").glob(tests)), tests


def test_a_change_of_an_annotation_changes_nothing() -> None:
    """Its mutants could not be killed."""
    assert meaning("def f(x: int | None = 1) -> int: y: int | str = x") == meaning("def f(x=1): y: 0 = x")
    assert meaning("def f(x: int | None = 1) -> int: y: int | str = x") != meaning("def f(x=2): y: 0 = x")

"""`make mutants` takes hours, so these tests check beforehand that the files it looks for exist."""

from __future__ import annotations

import pytest

from tests.mutants import ROOT, TESTS, meaning


@pytest.mark.parametrize("pattern", TESTS)
def test_modules_and_their_tests_exist(pattern: str) -> None:
    """Each pattern for modules, and each pattern for their tests, matches at least one file."""
    assert list(ROOT.glob(pattern))
    for tests in TESTS[pattern]:
        assert list((ROOT / "tests").glob(tests)), tests


def test_a_changed_annotation_is_not_a_mutant() -> None:
    """`meaning` ignores annotations, because no test could kill a mutant that changes one."""
    assert meaning("def f(x: int | None = 1) -> int: y: int | str = x") == meaning("def f(x=1): y: 0 = x")
    assert meaning("def f(x: int | None = 1) -> int: y: int | str = x") != meaning("def f(x=2): y: 0 = x")

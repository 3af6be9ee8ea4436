"""The suite notices what it is there to notice."""

from __future__ import annotations

import dataclasses

import pytest

from tests.chaos.bugs import BUGS
from tests.chaos.conftest import FULL, Goal
from tests.chaos.planted_bugs import BugError, hunt, require_fitting

#: Bugs that are quickly tried, the first of them in a process that its test starts.
QUICK = ("the service needs torch", "who is too late is searched")


def test_the_table_fits_the_code() -> None:
    """Each bug has a name of its own, its text is where it is to be changed, and its test is there."""
    assert len({bug.name for bug in BUGS}) == len(BUGS) >= 20
    assert {bug.file.partition("/")[0] for bug in BUGS} == {"service", "retrieval", "index_store", "trainer"}
    for bug in BUGS:
        require_fitting(bug)


@pytest.mark.parametrize(
    "change", [{"text": "no such text"}, {"text": "self"}, {"file": "service/no_such.py"}, {"test": "tests/x.py::test"}]
)
def test_a_bug_that_no_longer_fits_is_named(change: dict[str, str]) -> None:
    """Not passed over: code and tests move on."""
    bug = dataclasses.replace(next(bug for bug in BUGS if bug.name == QUICK[-1]), **change)

    with pytest.raises(BugError, match=bug.name):
        require_fitting(bug)


def test_every_planted_bug_is_caught(goal: Goal) -> None:
    """Each makes its test fail, in a copy of the tree."""
    bugs = [bug for bug in BUGS if FULL or bug.name in QUICK]

    outcomes = hunt(bugs, print)

    caught = sum(bool(outcome.caught_by) for outcome in outcomes)
    goal(
        "C1",
        f"{len(bugs)} planted bugs, each caught by a test named beforehand",
        f"{caught} of {len(bugs)} caught",
        caught == len(bugs),
    )
    assert [outcome.bug.name for outcome in outcomes if not outcome.caught_by] == []


@pytest.mark.skipif(not FULL, reason="a planted bug that is none: `make chaos` tries it")
def test_a_change_that_is_no_bug_is_not_caught() -> None:
    """It survives, and is said to: so a test that fails has found the bug, not the change."""
    quick = next(bug for bug in BUGS if bug.name == QUICK[1])
    harmless = dataclasses.replace(quick, name="no bug at all", instead=f"{quick.text}  # changed")

    (outcome,) = hunt([harmless], print)

    assert (outcome.caught_by, outcome.why) == ("", "survived")

"""How long the tests here take, and the table of what they showed.

`make test` runs each at about a tenth of its length; `make chaos` runs all of it and writes the report that it names in
DR_CHAOS.
"""

from __future__ import annotations

import datetime
import os
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests.benchmarks.measure import machine

REPORT = os.environ.get("DR_CHAOS", "")
FULL = bool(REPORT)
#: `make java` is part of `make chaos` only; what a JDK's client sends, tests/test_clients.py sends without one.
collect_ignore = [] if FULL or shutil.which("javac") else ["test_clients.py"]


def amount(full: int, short: int | None = None) -> int:
    """So many rounds: all of them, or a tenth (or `short`) in `make test`."""
    return full if FULL else short or -(-full // 10)


class Goal(Protocol):
    """Record that a goal was tested: its letter and number, what was asked, what was seen, and whether that will do.

    timing: a busy machine can miss it, so that `make test` only records it.
    """

    def __call__(self, name: str, asked: str, seen: object, reached: object, *, timing: bool = False) -> None: ...


class Goals:
    """All that was recorded."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str, bool]] = []
        self.without: dict[str, str] = {}  # tests that did not come to an end: failed or skipped

    def table(self) -> str:
        """Markdown."""
        about = machine()
        where = f"{about['processor']}, {about['cores']} cores, Python {about['python']}"
        lines = [
            "# What was tested under faults, overload and hostile input",
            "",
            "A: what users feel. B: what operators rely on. C: that the tests and the code itself can be trusted.",
            "",
            f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}: {where}; clients and servers shared it.",
            "",
            "| Goal | Asked | Seen | |",
            "|---|---|---|---|",
        ]
        for name, asked, seen, reached in sorted(self.rows, key=lambda row: (row[0][0], int(row[0][1:]))):
            lines.append(f"| {name} | {asked} | {seen} | {'pass' if reached else '**fail**'} |")
        lines += [f"| | {test} | {outcome} | **fail** |" for test, outcome in self.without.items()]
        return "\n".join(lines) + "\n"


FOUND = Goals()


def pytest_sessionfinish() -> None:
    """Write down what a full run has found."""
    if FULL and (FOUND.rows or FOUND.without):
        Path(REPORT).write_text(FOUND.table())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Whether it has goals or not, a test that does not come to its end is in the table."""
    report = yield
    if not report.passed and report.when != "teardown":  # where missed goals fail, which are there
        FOUND.without[item.nodeid.rpartition("/")[2]] = report.outcome
    return report


@pytest.fixture
def goal() -> Iterator[Goal]:
    """See Goal. What was missed fails the test at its end, so that all figures are seen."""
    missed: list[str] = []

    def record(name: str, asked: str, seen: object, reached: object, *, timing: bool = False) -> None:
        FOUND.rows.append((name, asked, str(seen), bool(reached)))
        print(f"{name}: {asked}: {seen}")
        if not reached and (FULL or not timing):
            missed.append(f"{name}: {asked}; seen: {seen}")

    yield record
    assert not missed, "\n".join(missed)

"""The length of the chaos tests, the promise that each of them checks, and the report of their results.

`make test` leaves these tests out. `make chaos` runs them in full and writes the report to the file named in DR_CHAOS.
Without that variable each test runs at about a tenth of its length, to try it while it is being written.
"""

from __future__ import annotations

import datetime
import os
import re
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests.benchmarks.measure import machine

REPORT = os.environ.get("DR_CHAOS", "")
FULL = bool(REPORT)
#: Only `make chaos` needs a JDK (`make java`); tests/test_clients.py sends the requests of Java's client without one.
collect_ignore = [] if FULL or shutil.which("javac") else ["test_clients.py"]

#: What users and operators may rely on. The docstring of every test here begins with "Promise:" and one of these names.
PROMISES = {
    "clients that hang up": "Clients that hang up leave nothing behind; others get the answers to their own requests.",
    "convergence": "All workers come to serve the current version, and never return to the one before.",
    "costly requests": "Huge uploads are refused as they arrive; the costliest valid request takes milliseconds.",
    "credentials": "Only the right token opens /admin, and neither token nor password is ever logged.",
    "damaged versions": "A damaged version is refused by name, and the version in service continues to answer.",
    "disk faults": "A full or broken disk gives a clear error, and the version before stays in place.",
    "hostile input": "Whatever is sent gets a short, documented answer that does not repeat it; never a server error.",
    "ghosts": "No answer has an item that was deleted, an item twice, or fewer than k items while k are live.",
    "jumping clocks": "Clocks that are set forward or back change nothing.",
    "killed folds": "A fold killed at any moment leaves the version before or the one after, and the whole catalogue.",
    "killed learners": "A learner killed at any moment learns every click once, and puts every new item once.",
    "killed publishers": "A publisher killed at any moment leaves the old version or the new one, and no litter.",
    "killed training": "A training that is killed and continued ends in the same bytes as one that was not.",
    "lost keys": "Path lists that are missing in Redis are a fault, never empty lists.",
    "metrics": "The service counts exactly what its clients saw.",
    "mutated manifests": "Whatever a manifest contains, reading it gives a manifest or one of the store's own errors.",
    "no leaks": "Swaps leave no memory, descriptors or threads behind.",
    "no pickle": "Nothing is unpickled where requests are served.",
    "overload": "At five times the peak, admitted requests are answered in time and the others refused at once.",
    "power loss": "After a power failure the store has the old version or the new one, and what it promised.",
    "racing swaps": "Many clients that swap at once get documented answers, and the current version is served.",
    "random walks": "A small model predicts the result of any operations on a store, by processes that may die.",
    "readiness": "A replica that reports ready answers, and a replica that cannot answer reports not ready.",
    "Redis faults": "Whatever Redis does, an answer is right, 503 or 429; all are right within 2 s of its recovery.",
    "restarts": "Behind the shipped proxy, a replica that is told to stop fails no request.",
    "retention": "Old versions are deleted and those in use are kept, and requests do not notice.",
    "rights in Redis": "The service's user in Redis can do what the service needs, and nothing else.",
    "rollback": "A rollback takes a second at most, and no request fails meanwhile.",
    "slow clients": "Clients that stop sending, or send byte by byte, are cut off by the proxy; others are not slower.",
    "soak": "Swaps, restarts of Redis and clients that hang up leave the service as it was at first.",
    "swaps": "While versions swap, no request fails, is answered wrongly, or mixes two versions.",
}


def promise_of(item: pytest.Item) -> str:
    """The name of the promise that a test checks."""
    match = re.match(r"Promise: ([\w ]+)\.", getattr(item, "obj", item).__doc__ or "")
    if match is None or match[1] not in PROMISES:
        raise pytest.UsageError(f"{item.nodeid}: its docstring begins with no promise: expected 'Promise: NAME. ...'")
    return match[1]


def pytest_itemcollected(item: pytest.Item) -> None:
    """Refuse a test whose docstring names no promise."""
    promise_of(item)


def amount(full: int, short: int | None = None) -> int:
    """The number of rounds: `full` in `make chaos`, otherwise `short`, or a tenth of `full`."""
    return full if FULL else short or -(-full // 10)


class Goal(Protocol):
    """Record one goal of a test: what was asked, what was seen, and whether the goal was reached.

    timing: a busy machine can miss this goal, so missing it fails the test only in `make chaos`.
    """

    def __call__(self, asked: str, seen: object, reached: object, *, timing: bool = False) -> None: ...


class Goals:
    """The goals recorded in this run, and the tests that did not run to their end."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str, bool]] = []  # promise, asked, seen, reached
        self.without: dict[str, tuple[str, str]] = {}  # unfinished tests: promise, failed or skipped

    def table(self) -> str:
        """The report, as Markdown."""
        about = machine()
        where = f"{about['processor']}, {about['cores']} cores, Python {about['python']}"
        tested = {row[0] for row in self.rows} | {promise for promise, _ in self.without.values()}
        lines = [
            "# What was tested under faults, overload and hostile input",
            "",
            f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}: {where}; clients and servers shared it.",
            "",
            *(f"- {name}: {promise}" for name, promise in PROMISES.items() if name in tested),
            "",
            "| Promise | Asked | Seen | |",
            "|---|---|---|---|",
        ]
        for name, asked, seen, reached in sorted(self.rows, key=lambda row: list(PROMISES).index(row[0])):
            lines.append(f"| {name} | {asked} | {seen} | {'pass' if reached else '**fail**'} |")
        lines += [f"| {name} | {test} | {outcome} | **fail** |" for test, (name, outcome) in self.without.items()]
        return "\n".join(lines) + "\n"


RECORDED = Goals()


def pytest_sessionfinish() -> None:
    """Write the report of a full run."""
    if FULL and (RECORDED.rows or RECORDED.without):
        Path(REPORT).write_text(RECORDED.table())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Record every test that does not run to its end, even one without goals, so that the report lists it."""
    report = yield
    if not report.passed and report.when != "teardown":  # missed goals fail in teardown, and are in the report already
        RECORDED.without[item.nodeid.rpartition("/")[2]] = promise_of(item), report.outcome
    return report


@pytest.fixture
def goal(request: pytest.FixtureRequest) -> Iterator[Goal]:
    """Records the goals of a test. Missed goals fail the test only at its end, so that all figures are recorded."""
    name, missed = promise_of(request.node), list[str]()

    def record(asked: str, seen: object, reached: object, *, timing: bool = False) -> None:
        RECORDED.rows.append((name, asked, str(seen), bool(reached)))
        print(f"{name}: {asked}: {seen}")
        if not reached and (FULL or not timing):
            missed.append(f"{name}: {asked}; seen: {seen}")

    yield record
    assert not missed, "\n".join(missed)

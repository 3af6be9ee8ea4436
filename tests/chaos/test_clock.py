"""Clocks that jump change nothing, because times are measured with a monotonic clock, which cannot be set."""

from __future__ import annotations

import email.utils
import functools
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from index_store.store import open_store, prune, rollback
from tests.chaos.conftest import Goal, amount
from tests.chaos.test_swaps import RATE, versions
from tests.chaos.traffic import Traffic, answers_of
from tests.conftest import Planted
from tests.fleet import Replica, fleet
from tests.redis_servers import RedisServer, program, running, valkey_binary

DAY, HOUR = 86_400, 3_600
JUMPS = [DAY, -DAY, HOUR, -HOUR, 0]
#: A module that Python imports at its start and that shifts its clock. With libfaketime Python could not sleep.
REPLICAS_CLOCK = """
import os, time
now = time.time
time.time = lambda: now() + float(open(os.environ["FAKETIME_TIMESTAMP_FILE"]).read() or 0)
"""


def library() -> str:
    """The path of libfaketime, which gives a server another clock."""
    faketime = Path(program("faketime")).resolve().parent.parent
    return str(next(faketime.glob("lib/**/libfaketimeMT.so.1")))


def test_clocks_that_jump(
    goal: Goal, planted: Planted, other: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise: jumping clocks.

    The clocks of the server and of two replicas jump by an hour or a day while versions are swapped.
    """
    clock = tmp_path / "clock"
    clock.write_text("+0")
    (tmp_path / "sitecustomize.py").write_text(REPLICAS_CLOCK)
    for name, value in {
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "PYTHONPATH": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    rounds = amount(10, 1)
    wanted = versions(planted, other)
    answers = [answers_of(version) for version in wanted]
    deleted = 0
    # Debian's build of Redis does not start with libfaketime: its memory allocator asks for the time too early.
    monkeypatch.setenv("LD_PRELOAD", library())
    with running(RedisServer(tmp_path / "valkey", binary=valkey_binary())) as server:
        monkeypatch.delenv("LD_PRELOAD")
        store = open_store(server.url)
        first = store.publish(wanted[0])
        store.activate(first)
        expected = {first: answers[0]}
        settings = {"store_timeout_ms": 10_000, "timeout_ms": 60_000}
        with (
            fleet(tmp_path / "a", server.url, 1, **settings) as (resident,),
            fleet(tmp_path / "b", server.url, 1, residency="remote", **settings) as (remote,),
        ):
            replicas = [resident, remote]
            with Traffic([replica.port for replica in replicas], RATE / 2, expected) as traffic:
                for number, jump in enumerate(JUMPS * rounds):
                    clock.write_text(f"{jump:+d}")
                    _until(functools.partial(_all_at, jump, server, replicas))
                    name = store.publish(wanted[(number + 1) % 3])
                    expected[name] = answers[(number + 1) % 3]
                    store.activate(name)
                    _until(functools.partial(_all_serve, name, replicas))
                    deleted += len(prune(store, keep=1))
                    back, _ = rollback(store)
                    _until(functools.partial(_all_serve, back, replicas))
                    store.activate(name)
                    _until(functools.partial(_all_serve, name, replicas))

    problems = traffic.failed + traffic.wrong
    goal(
        f"{len(JUMPS) * rounds} jumps of the clocks by an hour or a day, versions published, swapped, rolled back and "
        "pruned: failed, wrong",
        f"{len(problems)} of {traffic.answered + len(problems):,}",
        reached=not problems and deleted,
    )


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def _all_serve(name: str, replicas: list[Replica]) -> bool:
    return {replica.served() for replica in replicas} == {name}


def _all_at(jump: int, server: RedisServer, replicas: list[Replica]) -> bool:
    """Whether the clocks of the server and of the replicas have jumped; a replica's is in the Date of its answers."""
    with server.client() as client:
        clocks: list[float] = [client.time()[0]]
    for replica in replicas:
        date = replica.client.get("/livez").headers["date"]
        clocks.append(email.utils.parsedate_to_datetime(date).timestamp())
    return all(abs(clock - time.time() - jump) < 60 for clock in clocks)

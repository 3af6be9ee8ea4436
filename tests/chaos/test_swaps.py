"""Swaps of versions under load and by many clients at once, and rollbacks."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import httpx
import numpy as np

from index_store.folder.store import FolderStore
from index_store.store import open_store
from index_store.version import Version
from tests.chaos.conftest import FULL, Goal, amount
from tests.chaos.traffic import BODIES, Traffic, answers_of
from tests.conftest import Planted
from tests.fleet import ADMIN, Replica, fleet
from tests.planted import with_ids
from tests.redis_servers import RedisServer

RATE = 200


def publish_three(planted: Planted, other: Planted, url: str) -> list[str]:
    """Publish three versions and activate the first. Of two, a replica would always have the next one loaded."""
    store = open_store(url)
    names = [store.publish(version) for version in versions(planted, other)]
    store.activate(names[0])
    return names


def versions(planted: Planted, other: Planted) -> list[Version]:
    """Three versions that answer every body differently; in the third some of the first one's items have other ids."""
    ids = np.asarray(planted.version.item_ids)
    three = [planted.version, other.version, with_ids(planted.version, ids + 1000 * (ids >= 16))]
    answers = [answers_of(version) for version in three]
    assert all(
        first != second for pair in itertools.combinations(answers, 2) for first, second in zip(*pair, strict=True)
    )
    return three


def test_swaps_under_load(goal: Goal, planted: Planted, other: Planted, own: RedisServer, tmp_path: Path) -> None:
    """Promise: swaps.

    Two replicas in turn swap among three versions, with short pauses, at 200 requests a second.
    """
    names = publish_three(planted, other, own.url)
    expected = dict(zip(names, map(answers_of, versions(planted, other)), strict=True))
    statuses: Counter[int] = Counter()
    swaps = amount(1000)
    with fleet(tmp_path, own.url, timeout_ms=10_000) as replicas:
        ports = [replica.port for replica in replicas]
        with Traffic(ports, RATE, expected):  # warm up
            time.sleep(2)
        with Traffic(ports, RATE, expected) as quiet:
            time.sleep(amount(30, 3))
        with Traffic(ports, RATE, expected) as traffic:
            for number in range(swaps):
                statuses[replicas[number % 2].swap(names[(number + 1) % 3]).status_code] += 1
                time.sleep(0.03)  # else the admin connection alone would load the replicas
        seen = {(port, name) for port in ports for name in names}
        first, later = _after_a_swap(replicas[0], names, amount(50))

    goal(
        f"{swaps:,} swaps at {RATE} requests a second over two replicas: failed, wrong, swaps not answered 200",
        f"{len(traffic.failed)}, {len(traffic.wrong)}, {swaps - statuses[200]} of {traffic.answered:,}",
        reached=not traffic.failed and not traffic.wrong and statuses == {200: swaps} and traffic.seen == seen,
    )
    goal(
        "p99 during swaps at most 1.5 times that without swaps, or 10 ms more",
        f"{traffic.p99():.1f} ms, without {quiet.p99():.1f} ms",
        reached=traffic.p99() <= max(1.5 * quiet.p99(), quiet.p99() + 10),
        timing=True,
    )
    goal(
        "the median time of the first request after a swap is at most twice that of later ones",
        f"{first:.2f} ms, later {later:.2f} ms",
        reached=first <= 2 * later,
        timing=True,
    )


def _after_a_swap(replica: Replica, names: Sequence[str], swaps: int) -> tuple[float, float]:
    """Median milliseconds of the first request after a swap, and of the ten after it."""
    took: list[list[float]] = []
    for number in range(swaps):
        assert replica.swap(names[number % len(names)]).status_code == 200
        took.append([])
        for body in BODIES[:11]:
            started = time.perf_counter()
            assert replica.client.post("/v1/retrieve", json=body).status_code == 200
            took[-1].append(1000 * (time.perf_counter() - started))
    return float(np.median([milliseconds[0] for milliseconds in took])), float(
        np.median([milliseconds[1:] for milliseconds in took])
    )


def test_all_workers_follow_the_pointer(
    goal: Goal, planted: Planted, other: Planted, own: RedisServer, tmp_path: Path
) -> None:
    """Promise: convergence.

    Two replicas with two workers each follow the pointer by polling, since they may not subscribe to hints.
    """
    names = publish_three(planted, other, own.url)
    with own.client() as client:
        client.execute_command("ACL", "SETUSER", "deaf", "on", ">pw", "~*", "+@all", "-subscribe", "&*")
    store = open_store(own.url)
    took: list[float] = []
    backwards = 0
    flips = amount(200)
    with (
        fleet(tmp_path, own.url.replace("//", "//deaf:pw@"), workers=2, poll_seconds=0.5) as replicas,
        contextlib.ExitStack() as stack,
    ):
        # A connection stays with its worker; once in 2,000 times all twelve are with the same worker.
        clients = [
            stack.enter_context(httpx.Client(base_url=replica.address, trust_env=False, timeout=30))
            for replica in replicas
            for _ in range(12)
        ]
        for flip in range(flips):
            before, wanted = names[flip % 3], names[(flip + 1) % 3]
            store.activate(wanted)
            moved = time.monotonic()
            for client in clients:
                while (version := client.get("/v1/info").json()["version"]) != wanted:
                    assert version == before
                    assert time.monotonic() < moved + 60
            took.append(time.monotonic() - moved)
            backwards += sum(client.get("/v1/info").json()["version"] != wanted for client in clients)
    p99 = float(np.percentile(took, 99))
    goal(f"{flips} flips, no hints: workers that returned to the previous version", backwards, backwards == 0)
    goal("all workers of two replicas follow, p99 at most 2 s", f"{p99:.1f} s", p99 <= 2, timing=True)


def test_swaps_by_many_clients_at_once(goal: Goal, planted: Planted, other: Planted, tmp_path: Path) -> None:
    """Promise: racing swaps. 32 threads swap to valid and invalid versions; each gets a documented answer."""
    url = str(tmp_path / "store")
    names = publish_three(planted, other, url)
    requests = amount(1024, 32)
    threads = 32
    bodies = [{"version": name} for name in names]
    bodies += [{"version": name, "expected": before} for name, before in itertools.permutations(names, 2)]
    wrong = [{"version": "v9-000000000000"}, {"version": "../../etc/passwd"}, {"version": "v" * 65}]
    counted: list[Counter[tuple[bool, int]]] = []

    with fleet(tmp_path / "fleet", url, count=1) as (replica,):

        def hammer(seed: int) -> None:
            random, seen = Random(seed), Counter[tuple[bool, int]]()
            with httpx.Client(base_url=replica.address, trust_env=False, timeout=120, headers=ADMIN) as client:
                for _ in range(requests):
                    body = random.choice(bodies + wrong)
                    seen[body in wrong, client.post("/admin/v1/swap", json=body).status_code] += 1
            counted.append(seen)

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(hammer, range(threads)))
        current = FolderStore(url).current()
        served = replica.served()
        last = replica.swap(names[0])
        loads = replica.log().count("serving v")
    seen = sum(counted, Counter[tuple[bool, int]]())
    accepted = seen[False, 200]
    counts = ", ".join(f"{count:,} x {status}" for (_, status), count in sorted(seen.items()))
    goal(
        f"{threads} threads x {requests} swaps, valid and not: each gets a documented answer, the current is served",
        f"{counts}; {loads} moves",
        reached=seen.total() == threads * requests
        and set(seen) == {(False, 200), (False, 409), (True, 404), (True, 422)}
        and served == current
        and current in names
        and last.status_code == 200
        and 1 < loads <= accepted + 2,
    )


def test_a_rollback_is_immediate(
    goal: Goal, planted: Planted, other: Planted, own: RedisServer, tmp_path: Path
) -> None:
    """Promise: rollback.

    The previous version stays loaded, so a rollback under load takes no longer than its messages.
    """
    names = publish_three(planted, other, own.url)
    expected = dict(zip(names, map(answers_of, versions(planted, other)), strict=True))
    took: list[float] = []
    rounds = amount(50)
    with (
        fleet(tmp_path, own.url, timeout_ms=10_000, count=1) as (replica,),
        Traffic([replica.port], RATE, expected) as traffic,
    ):
        assert replica.swap(names[1]).status_code == 200
        for number in range(rounds):
            started = time.monotonic()
            reply = replica.client.post("/admin/v1/rollback")
            took.append(time.monotonic() - started)
            assert reply.json()["version"] == names[number % 2] == replica.served()
    goal(
        f"{rounds} rollbacks under load: the slowest at most 1 s",
        f"{max(took):.3f} s",
        max(took) <= 1,
        timing=True,
    )
    goal(
        "requests during the rollbacks: failed, wrong",
        f"{len(traffic.failed)}, {len(traffic.wrong)}",
        not traffic.failed + traffic.wrong,
    )


def test_swaps_leak_nothing(goal: Goal, planted: Planted, other: Planted, tmp_path: Path) -> None:
    """Promise: no leaks. Memory, descriptors and threads do not grow over many swaps among three versions."""
    url = str(tmp_path / "store")
    names = publish_three(planted, other, url)
    swaps = amount(500)
    with fleet(tmp_path / "fleet", url, count=1) as (replica,):
        seen = []
        for number in range(20 + swaps):
            assert replica.swap(names[(number + 1) % 3]).status_code == 200
            if number >= 20:
                seen.append(usage(replica))
    memory, descriptors, threads = zip(*seen, strict=True)
    third = max(1, len(memory) // 3)

    def growth(seen: Sequence[float]) -> float:
        return max(seen[-third:]) - max(seen[:third])

    slope = growth(memory) / (len(memory) - third)
    # Over a few swaps, memory that is freed late weighs more. The pool starts its threads one by one, up to its size.
    megabytes, started = 0.1 if FULL else 0.5, len(os.sched_getaffinity(0)) + 4
    goal(f"{swaps} swaps: memory grows at most {megabytes} MB a swap", f"{slope:.3f} MB", slope <= megabytes)
    goal(
        f"{swaps} swaps: growth of open descriptors (0) and of threads (at most {started})",
        f"{growth(descriptors)}, {growth(threads)}",
        reached=growth(descriptors) <= 0 and growth(threads) <= started,
    )


def usage(replica: Replica) -> tuple[float, int, int]:
    """Resident MB, open descriptors and threads of a replica."""
    assert replica.process
    folder = Path(f"/proc/{replica.process.pid}")
    fields = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024, len(list((folder / "fd").iterdir())), int(fields["Threads"])

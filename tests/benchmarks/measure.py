"""Fair timing: contenders take turns, medians are compared, and the report names the machine."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl


def take_turns(contenders: Mapping[str, Callable[[int], object]], calls: int, rounds: int) -> dict[str, Any]:
    """Call each contender with `calls` new numbers in every round, from 0 on: {name: {"p50_ms", "p99_ms"}}.

    Each round begins with another contender, so that none always follows the same one and its traces in the caches. The
    first round warms up and is not counted.
    """
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    with threadpoolctl.threadpool_limits(1):
        for turn in range(rounds + 1):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                for number in range(turn * calls, (turn + 1) * calls):
                    started = time.perf_counter()
                    contenders[name](number)
                    took = time.perf_counter() - started
                    if turn:
                        seconds[name].append(took)
    return {
        name: {"p50_ms": 1000 * float(np.median(took)), "p99_ms": 1000 * float(np.percentile(took, 99))}
        for name, took in seconds.items()
    }


def floor_rates() -> tuple[float, float]:
    """Float32 operations and bytes a second of one thread, measured with a matrix product and a copy."""
    left, right = np.ones((1024, 1024), np.float32), np.ones((1024, 1024), np.float32)
    source = np.ones(2**26, np.uint8)
    target = np.empty_like(source)
    with threadpoolctl.threadpool_limits(1):
        operations = 2 * 1024**3 / min(_seconds(lambda: np.matmul(left, right)) for _ in range(9))
        moved = 2 * len(source) / min(_seconds(lambda: np.copyto(target, source)) for _ in range(9))
    return operations, moved


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def machine() -> dict[str, Any]:
    """The processor, its cores and the Python version, on which the figures depend."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in _lines(info) if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def report(name: str, lines: list[str], figures: dict[str, Any]) -> None:
    """Print a table for people, then one line of JSON, the last one."""
    about = machine()
    print(f"{name}: {about['processor']}, {about['cores']} cores", *lines, "", sep="\n")
    print(json.dumps({"benchmark": name, "machine": about} | figures))

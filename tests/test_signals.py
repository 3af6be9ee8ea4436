"""Polite signals: Ctrl-C, SIGTERM (docker stop) and SIGHUP (a closed terminal) stop a command alike."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.planted import write_interactions
from tests.redis_servers import free_port
from tests.test_commands import BIN, HEARING, QUICK
from trainer.stopping import POLITE, stopped_by_signals


@contextlib.contextmanager
def fitting(folder: Path, *settings: str, under: tuple[str, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    """A fit that takes long, with its run in folder/r. under: the command that starts it."""
    command = [
        *under,
        *HEARING,
        str(BIN / "dr-trainer"),
        "fit",
        str(write_interactions(folder)),
        *QUICK,
        "--set=epochs=500",
    ]
    command += [f"--set={setting}" for setting in settings]
    command += ["--store", str(folder / "s"), "--resume", str(folder / "r")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], text: str) -> None:
    """Read its stderr until a line has `text`."""
    assert process.stderr is not None
    assert any(text in line for line in process.stderr), f"it ended without {text!r}"


def test_a_closed_terminal_is_told_how_to_go_on(tmp_path: Path) -> None:
    """SIGHUP after a checkpoint, as Ctrl-C: the flag to continue with, and 128 + 1."""
    with fitting(tmp_path) as process:
        read_until(process, "epoch 2/")
        process.send_signal(signal.SIGHUP)
        _, err = process.communicate(timeout=60)

    assert process.returncode == 129
    assert err.splitlines()[-1] == f"dr-trainer: stopped; to continue, add --resume {tmp_path / 'r'}"
    assert "Traceback" not in err


def test_nohup_outlives_the_terminal_and_ends_with_a_polite_kill(tmp_path: Path) -> None:
    """SIGHUP that is ignored stays ignored; SIGTERM as Ctrl-C, and 128 + 15."""
    with fitting(tmp_path, under=("nohup",)) as process:
        read_until(process, "epoch 2/")
        process.send_signal(signal.SIGHUP)
        read_until(process, "epoch 4/")
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)

    assert process.returncode == 143
    assert err.splitlines()[-1] == f"dr-trainer: stopped; to continue, add --resume {tmp_path / 'r'}"


def test_before_the_first_checkpoint_nothing_is_kept(tmp_path: Path) -> None:
    """And that is said. With a step a click, the first epoch takes seconds."""
    with fitting(tmp_path, "batch=1") as process:
        read_until(process, "paths an item")
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)

    assert process.returncode == 143
    assert err.splitlines()[-1] == "dr-trainer: stopped; nothing was kept: there was no checkpoint yet"
    assert not (tmp_path / "r" / "checkpoint.safetensors").exists()


@pytest.mark.parametrize("number", POLITE)
def test_a_second_signal_ends_at_once(number: signal.Signals) -> None:
    """After the first nothing of ours stands in its way; after the command all is as it was."""
    before = {polite: signal.getsignal(polite) for polite in POLITE}
    try:
        for polite in POLITE:
            signal.signal(polite, signal.SIG_DFL)  # the shell that runs the tests may ignore some
        with stopped_by_signals() as received:
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
            assert received == [number]
            assert [signal.getsignal(polite) for polite in POLITE] == [signal.SIG_DFL] * len(POLITE)
        assert [signal.getsignal(polite) for polite in POLITE] == [signal.SIG_DFL] * len(POLITE)
    finally:
        for polite, handler in before.items():
            signal.signal(polite, handler)


@contextlib.contextmanager
def serving(folder: Path, *under: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A service that has started, with an empty store, and its address. under: the command that starts it."""
    (folder / "s").mkdir()
    port = free_port()
    command = [
        "env",
        "--default-signal",
        *under,
        str(BIN / "dr-service"),
        "--store",
        str(folder / "s"),
        f"--port={port}",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DR_")}
    environment |= {"DR_DRAIN_SECONDS": "0"}
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    ) as process:
        try:
            read_until(process, "Uvicorn running on")
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def test_a_service_whose_terminal_is_closed_drains(tmp_path: Path) -> None:
    """SIGHUP as SIGTERM: it says so, and ends orderly."""
    with serving(tmp_path) as (process, _):
        process.send_signal(signal.SIGHUP)
        _, err = process.communicate(timeout=60)

    assert process.returncode == 0
    assert "draining for 0 s" in err
    assert "Traceback" not in err


def test_a_service_under_nohup_outlives_the_terminal(tmp_path: Path) -> None:
    """SIGHUP that is ignored stays ignored: a service that drains would keep no connection. SIGTERM ends it."""
    with serving(tmp_path, "nohup") as (process, address):
        process.send_signal(signal.SIGHUP)
        assert "connection" not in httpx.get(f"{address}/livez", trust_env=False).headers
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)

    assert process.returncode == 0
    assert err.count("draining for 0 s") == 1

"""Signals that ask a process to stop: Ctrl-C, SIGTERM (docker stop) and SIGHUP (a closed terminal) act alike."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.planted import write_interactions
from tests.redis_servers import free_port
from tests.test_commands import BIN, QUICK
from trainer.__main__ import main as dr_trainer
from trainer.stopping import STOP_SIGNALS, stopped_by_signals


def fitting(folder: Path) -> list[str]:
    """The arguments of a fit that takes long, with its run in folder/r."""
    places = ["--store", str(folder / "s"), "--resume", str(folder / "r")]
    return ["fit", str(write_interactions(folder)), *QUICK, "--set=epochs=500", *places]


class Interrupting(io.StringIO):
    """A standard error that raises a signal when a line with `text` is written."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__()
        self._text, self._number = text, number

    def write(self, line: str) -> int:
        written = super().write(line)
        if self._text in line:
            signal.raise_signal(self._number)
        return written


@pytest.fixture
def heard() -> Iterator[None]:
    """Give all STOP_SIGNALS their default handlers; the caller of the tests may ignore some of them."""
    before = {polite: signal.signal(polite, signal.SIG_DFL) for polite in STOP_SIGNALS}
    yield
    for polite, handler in before.items():
        signal.signal(polite, handler)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_stopped_training_prints_how_to_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """After a checkpoint, any of the signals makes it print the flag to continue with, and exit with 128 + N."""
    stderr = Interrupting("epoch 2:", number)
    monkeypatch.setattr(sys, "stderr", stderr)

    assert dr_trainer(fitting(tmp_path)) == 128 + number

    last = stderr.getvalue().splitlines()[-1]
    assert last == f"dr-trainer: stopped; to continue, add --resume {tmp_path / 'r'}"


@pytest.mark.usefixtures("heard")
def test_before_the_first_checkpoint_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last line says so, and there is no checkpoint."""
    stderr = Interrupting("paths an item", signal.SIGTERM)
    monkeypatch.setattr(sys, "stderr", stderr)

    assert dr_trainer(fitting(tmp_path)) == 128 + signal.SIGTERM

    assert stderr.getvalue().splitlines()[-1] == "dr-trainer: stopped; nothing was kept: there was no checkpoint yet"
    assert not (tmp_path / "r" / "checkpoint.safetensors").exists()


def test_a_training_under_nohup_outlives_the_terminal(tmp_path: Path) -> None:
    """Under nohup SIGHUP stays ignored; SIGTERM ends the process with 128 + 15."""

    def read_until(text: str) -> None:
        assert process.stderr is not None
        assert any(text in line for line in process.stderr), f"it ended without {text!r}"

    command = ["nohup", "env", "--default-signal=INT,TERM", str(BIN / "dr-trainer"), *fitting(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as process:
        try:
            read_until("epoch 2:")
            process.send_signal(signal.SIGHUP)
            read_until("epoch 4:")
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()

    assert process.returncode == 143
    assert err.splitlines()[-1] == f"dr-trainer: stopped; to continue, add --resume {tmp_path / 'r'}"


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_second_signal_ends_at_once(number: signal.Signals) -> None:
    """The first signal restores the default handlers, and they stay in place after the command."""
    with stopped_by_signals() as received:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        assert received == [number]
        assert [signal.getsignal(polite) for polite in STOP_SIGNALS] == [signal.SIG_DFL] * len(STOP_SIGNALS)
    assert [signal.getsignal(polite) for polite in STOP_SIGNALS] == [signal.SIG_DFL] * len(STOP_SIGNALS)


@contextlib.contextmanager
def serving(folder: Path, *under: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A service that has started, with an empty store, and its address. under: a command to start it with."""
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
            assert process.stderr is not None
            assert any("Uvicorn running on" in line for line in process.stderr)
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def test_a_service_whose_terminal_is_closed_drains(tmp_path: Path) -> None:
    """SIGHUP acts like SIGTERM: the service logs that it drains, and exits with status 0."""
    with serving(tmp_path) as (process, _):
        process.send_signal(signal.SIGHUP)
        _, err = process.communicate(timeout=60)

    assert process.returncode == 0
    assert "draining for 0 s" in err
    assert "Traceback" not in err


def test_a_service_under_nohup_outlives_the_terminal(tmp_path: Path) -> None:
    """SIGHUP stays ignored: a service that drains would answer with `Connection: close`. SIGTERM ends it."""
    with serving(tmp_path, "nohup") as (process, address):
        process.send_signal(signal.SIGHUP)
        assert "connection" not in httpx.get(f"{address}/livez", trust_env=False).headers
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)

    assert process.returncode == 0
    assert err.count("draining for 0 s") == 1

"""Settings and start-up of dr-service: the messages for wrong settings, and the variables that are ignored."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from index_store.__main__ import main as dr_index
from index_store.folder.store import FolderStore
from index_store.store import open_store
from service.http.app import create_app
from service.process.settings import Settings, unknown
from tests.redis_servers import RedisServer, free_port, running

BIN = Path(sys.executable).parent
#: The environment without any DR_ variable.
CLEAN = {name: value for name, value in os.environ.items() if not name.upper().startswith("DR_")}


def refused(tmp_path: Path, *flags: str, **environment: str) -> list[str]:
    """The lines on stderr of a service that does not start because of its settings."""
    environment = {"DR_STORE": str(tmp_path), **environment}
    done = subprocess.run(
        [BIN / "dr-service", *flags], env=CLEAN | environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert done.stdout == ""
    return done.stderr.splitlines()


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without any DR_ variable except DR_STORE."""
    for name in os.environ.keys() - CLEAN.keys():
        monkeypatch.delenv(name)
    monkeypatch.setenv("DR_STORE", "/data/store")
    return monkeypatch


# -- a wrong setting is shown with its value and the expected one --


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("DR_PORT", "http", "a whole number from 0 to 65535, found 'http'"),
        ("DR_PORT", "70000", "a whole number from 0 to 65535, found '70000'"),
        ("DR_WORKERS", "1.5", "a whole number from 1 to 256, found '1.5'"),
        ("DR_MAX_QUEUE", "0", "a whole number of at least 1, found '0'"),
        ("DR_POLL_SECONDS", "0", "a number above 0 and up to 60, found '0'"),
        ("DR_DRAIN_SECONDS", "nan", "a number from 0 to 3600, found 'nan'"),
        ("DR_RESIDENCY", "far", "resident or remote, found 'far'"),
        ("DR_TIMEOUT_MS", "9" * 200, f"a whole number from 1 to 60000, found '{'9' * 80}...'"),
    ],
)
def test_a_wrong_value_is_shown(tmp_path: Path, name: str, value: str, expected: str) -> None:
    """One line gives the wrong value and what was expected."""
    assert refused(tmp_path, **{name: value}) == [f"dr-service: {name}: expected {expected}"]


def test_the_address_of_a_kubernetes_service_is_no_port(tmp_path: Path) -> None:
    """Kubernetes sets DR_PORT for a Service called `dr`; the hint is given for DR_PORT only."""
    (line,) = refused(tmp_path, DR_PORT="tcp://10.0.0.1:8000")

    assert line.startswith(
        "dr-service: DR_PORT: expected a whole number from 0 to 65535, found 'tcp://10.0.0.1:8000'; "
    )
    assert 'a Service called "dr": give the Service a different name or set enableServiceLinks: false' in line
    assert "Kubernetes" not in refused(tmp_path, DR_WORKERS="tcp://10.0.0.1:8000")[0]


def test_all_wrong_settings_are_reported_by_the_names_they_were_set_by(tmp_path: Path) -> None:
    """A wrong flag is named as a flag, a variable as a variable; an empty flag is an error, not an unset one."""
    lines = refused(tmp_path, "--port", "x", "--workers", "", DR_PORT="8000", DR_MAX_BATCH="0")

    assert sorted(lines) == [
        "dr-service: --port: expected a whole number from 0 to 65535, found 'x'",
        "dr-service: --workers: expected a value, found ''",
        "dr-service: DR_MAX_BATCH: expected a whole number from 1 to 1024, found '0'",
    ]


def test_a_secret_is_never_shown(tmp_path: Path) -> None:
    """Neither a token that no header can carry, nor a password in a store's URL."""
    for wrong in (
        {"DR_ADMIN_TOKEN": "hunter2\nhunter3"},
        {"DR_STORE": "redis://me:hunter2@host:port/0", "DR_PORT": "x"},
        {"DR_STORE": "me:hunter2@host:6379"},
    ):
        lines = "\n".join(refused(tmp_path, **wrong))
        assert "expected" in lines
        assert "hunter" not in lines


# -- an empty variable counts as unset --


@pytest.mark.parametrize("blank", ["", "  ", "\n"])
def test_an_empty_variable_counts_as_unset(environment: pytest.MonkeyPatch, blank: str) -> None:
    """Every setting then has its default; white space alone counts as empty."""
    for name in Settings.model_fields:
        environment.setenv(f"DR_{name.upper()}", "/data/store" if name == "store" else blank)

    assert Settings() == Settings.model_construct(store="/data/store")


def test_an_empty_store_variable_counts_as_missing(tmp_path: Path) -> None:
    """The error is that of a store that was not given."""
    assert refused(tmp_path, DR_STORE="")[0].startswith("dr-service: --store (DR_STORE) is missing")


# -- secrets lose white space at their ends --


def test_blanks_around_values_are_removed(environment: pytest.MonkeyPatch) -> None:
    """A Secret made from a file ends in a line break; numbers and words are stripped too."""
    for name, value in {
        "STORE": " /data/store\n", "STORE_PASSWORD": "pass word\r\n", "ADMIN_TOKEN": "\ttoken \n", "PORT": " 9000 ",
        "RESIDENCY": "remote ", "HOST": " ::1", "POLL_SECONDS": "2\n",
    }.items():  # fmt: skip
        environment.setenv(f"DR_{name}", value)

    settings = Settings()

    assert (settings.store, settings.port, settings.residency, settings.host) == ("/data/store", 9000, "remote", "::1")
    assert settings.poll_seconds == 2
    assert settings.store_password
    assert settings.store_password.get_secret_value() == "pass word"
    assert settings.admin_token
    assert settings.admin_token.get_secret_value() == "token"


def test_the_token_of_a_file_with_a_line_break_opens_admin(tmp_path: Path) -> None:
    """The token works without its line break; a token of blanks counts as none, so the admin routes are off."""
    for token, status in (("right-one\n", 200), ("  \n", 403)):
        settings = Settings.model_validate({"store": str(tmp_path), "admin_token": token})
        with TestClient(create_app(settings, FolderStore(str(tmp_path)))) as client:
            answer = client.get("/admin/v1/versions", headers={"Authorization": "Bearer right-one"})
            assert answer.status_code == status


# -- a variable that is not used is reported --


def test_a_mistyped_variable_is_reported() -> None:
    """The message has the setting that was probably meant, and not the value."""
    assert unknown({"DR_TIMEOUT_MSS": "5", "dr_admin_tokn": "hunter2", "DR_FOO": "1", "PATH": "/bin"}) == [
        "DR_FOO is not a setting; docs/reference.md lists them",
        "DR_TIMEOUT_MSS is not a setting; did you mean DR_TIMEOUT_MS?",
        "dr_admin_tokn is not a setting; did you mean DR_ADMIN_TOKEN?",
    ]


def test_unusual_spellings_are_reported() -> None:
    """A name in lower case would win over a flag; the quotation marks of an env file become part of the token."""
    assert unknown({"dr_port": "8000", "DR_ADMIN_TOKEN": '"hunter2"', "DR_STORE_PASSWORD": "a'b"}) == [
        "DR_ADMIN_TOKEN is in quotation marks, which count as part of it; remove them",
        "dr_port is ignored; settings are written in capitals: DR_PORT",
    ]


def test_a_flag_wins_over_every_spelling(tmp_path: Path) -> None:
    """Also when the variable is set both in capitals and in small letters."""
    lines = refused(tmp_path, "--port", "high", DR_PORT="8000", dr_port="8001")

    assert lines == ["dr-service: --port: expected a whole number from 0 to 65535, found 'high'"]


def test_known_variables_are_not_reported() -> None:
    """Those of settings, of Kubernetes for Services called dr and dr-store, of the compose file, and of the tests."""
    ours = {f"DR_{name.upper()}": "" for name in Settings.model_fields}
    of_kubernetes = [
        "DR_SERVICE_HOST", "DR_SERVICE_PORT", "DR_SERVICE_PORT_HTTP", "DR_PORT_8000_TCP", "DR_PORT_8000_TCP_PROTO",
        "DR_PORT_8000_TCP_PORT", "DR_PORT_8000_TCP_ADDR", "DR_STORE_SERVICE_HOST", "DR_STORE_PORT_6379_TCP_ADDR",
    ]  # fmt: skip
    root = Path(__file__).parent.parent
    example = [line.split("=")[0] for line in (root / ".env.example").read_text().splitlines() if line[:3] == "DR_"]
    others = ["DR_TRAINER_STORE", "DR_SERVICE_STORE", "DR_CHAOS", "DR_SOAK_SECONDS"]

    assert unknown(ours | dict.fromkeys([*of_kubernetes, *example, *others], "x")) == []
    assert unknown({"DR_STORE_PORT": "tcp://10.0.0.1:6379"}) == []


# -- Start-up --


def test_a_port_in_use_is_reported_before_anything_is_loaded(tmp_path: Path) -> None:
    """One line names both settings, and the status is 1; also with several workers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        for workers in ("1", "2"):
            done = subprocess.run(
                [BIN / "dr-service", "--store", str(tmp_path), "--port", port, "--workers", workers],
                env=CLEAN, capture_output=True, text=True, check=False, timeout=60,
            )  # fmt: skip
            assert done.returncode == 1
            assert done.stderr == (
                f"dr-service: cannot listen on 127.0.0.1 port {port} (--host, DR_HOST; --port, DR_PORT): "
                "Address already in use\n"
            )


def test_the_start_is_logged_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The line has the store, the reason why nothing is served, residency, admin and address; no password or token."""
    caplog.set_level("INFO", "service.http.app")
    store = open_store("redis://me:hunter2@127.0.0.1:1/0")
    secrets = {"admin_token": "hunter2", "write_token": "hunter2", "store_password": "hunter2"}
    for settings, known, admin in ((secrets, store, "on"), ({}, FolderStore(str(tmp_path)), "off")):
        with TestClient(create_app(Settings.model_validate({"store": "x", **settings}), known)):
            pass
        line = next(line for line in caplog.messages if line.startswith("store "))
        assert f"store {known}; nothing to serve: " in line
        assert f"path lists resident; admin {admin}; writing {admin}; docs at /docs; for 127.0.0.1 port 8000" in line
        caplog.clear()
    assert "hunter2" not in caplog.text


@pytest.mark.parametrize("command", ["dr-trainer", "dr-index", "dr-service"])
def test_every_command_prints_its_release(command: str) -> None:
    """`--version` prints the release of the installed package on stdout."""
    done = subprocess.run([BIN / command, "--version"], env=CLEAN, capture_output=True, text=True, check=True)

    assert done.stdout == f"{command} {metadata.version('deep-retrieval')}\n"


@pytest.mark.parametrize("command", ["dr-trainer evaluate x.csv", "dr-index list"])
def test_an_empty_store_variable_is_unset_for_every_command(command: str) -> None:
    """With a blank DR_STORE, --store is required."""
    done = subprocess.run(
        [BIN / command.split(maxsplit=1)[0], *command.split()[1:]],
        env=CLEAN | {"DR_STORE": " "}, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 2
    assert "the following arguments are required: --store" in done.stderr


def test_a_line_break_after_the_password_is_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], environment: pytest.MonkeyPatch
) -> None:
    """The command dr-index strips DR_STORE and DR_STORE_PASSWORD, too."""
    with running(RedisServer(tmp_path / "redis", "--requirepass", "right-one")) as server:
        environment.setenv("DR_STORE", f"{server.url}\n")
        environment.setenv("DR_STORE_PASSWORD", "right-one\n")
        assert dr_index(["list"]) == 0

    assert capsys.readouterr().out.startswith("no versions in ")


# -- idle connections are kept longer than a proxy keeps them --


def test_an_idle_connection_is_kept_as_long_as_set_and_does_not_delay_the_end(tmp_path: Path) -> None:
    """A connection is closed after the one second set, or kept by default; SIGTERM ends both services."""
    for seconds, kept in (("1", False), ("", True)):
        log = tmp_path / "log"
        port = free_port()
        environment = CLEAN | {"DR_KEEP_ALIVE_SECONDS": seconds, "DR_DRAIN_SECONDS": "0"}
        with log.open("w") as file:
            command = [str(BIN / "dr-service"), "--store", str(tmp_path), "--port", str(port)]
            process = subprocess.Popen(command, env=environment, stderr=file)
        try:
            connection = connected(process, port)
            with connection:
                connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
                answer = b""
                while b'{"status":"ok"}' not in answer:
                    answer += connection.recv(65536)
                assert answer.startswith(b"HTTP/1.1 200")
                assert b"connection: close" not in answer.lower()
                if not kept:
                    assert connection.recv(1) == b""
                process.send_signal(signal.SIGTERM)
                assert process.wait(30) == 0
                assert connection.recv(1) == b""
        finally:
            process.kill()
            process.wait()


def test_the_default_outlasts_the_usual_proxies() -> None:
    """Nginx's keepalive_timeout and an ALB's idle timeout are 60 s; the shipped proxy keeps connections no longer."""
    kept = Settings.model_validate({"store": "x"}).keep_alive_seconds
    proxy = (Path(__file__).parent.parent / "docker/haproxy.cfg").read_text()

    assert kept > 60
    for name in ("timeout http-keep-alive", "timeout server"):
        assert int(re.findall(rf"{name} +(\d+)s", proxy)[0]) < kept


def connected(process: subprocess.Popen[bytes], port: int) -> socket.socket:
    """A connection to the process, made as soon as it listens."""
    while True:
        assert process.poll() is None
        try:
            return socket.create_connection(("127.0.0.1", port), 30)
        except ConnectionRefusedError:
            time.sleep(0.02)

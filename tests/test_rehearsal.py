"""docker-compose.yml rehearsed without Docker: each service's own command, environment and health check."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
import yaml

from index_store.store import open_store
from service.http.problems import Problem
from tests.planted import changed, write_interactions
from tests.proxy import proxy_config
from tests.redis_servers import free_port, program, redis_binary
from tests.test_commands import QUICK

ROOT = Path(__file__).parent.parent
SECRETS = {
    "DR_REDIS_PASSWORD": "pw-of-redis",
    "DR_SERVICE_PASSWORD": "pw-of-the-service",
    "DR_ADMIN_TOKEN": "token",
    "DR_WRITE_TOKEN": "write-token",
}
ADMIN = {"Authorization": f"Bearer {SECRETS['DR_ADMIN_TOKEN']}"}
WRITER = {"Authorization": f"Bearer {SECRETS['DR_WRITE_TOKEN']}"}


def services_of(environment: dict[str, str]) -> dict[str, Any]:
    """The services of docker-compose.yml, with ${NAME:-default} filled in as compose does."""
    text = (ROOT / "docker-compose.yml").read_text()
    text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda named: environment.get(named[1]) or named[2], text)
    services: dict[str, Any] = yaml.safe_load(text.replace("$$", "$"))["services"]
    return services


class Stack:
    """The services as local processes; hosts, ports and folders of the containers are replaced by local ones."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.services = folder, services_of(SECRETS)
        self.redis, self.proxy, self.replicas = free_port(), free_port(), (free_port(), free_port())
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def here(self, text: str, port: int) -> str:
        """`text` with the containers' addresses and folders replaced by local ones. port: that of the replica."""
        for there, here in (
            ("redis:6379", f"127.0.0.1:{self.redis}"),
            ("-p 6379", f"-p {self.redis}"),
            ("127.0.0.1:8000", f"127.0.0.1:{port}"),
            ("127.0.0.1:8080", f"127.0.0.1:{self.proxy}"),
            ("/opt/examples", f"{self.folder}/examples"),
            ("/var/lib/deep-retrieval", f"{self.folder}/training"),
            ("/usr/local/etc/haproxy", str(self.folder)),
        ):
            text = text.replace(there, here)
        return text

    def run(self, service: str, command: list[str], port: int = 0, **options: Any) -> subprocess.Popen[bytes]:
        """Start a command with the environment of a service; of this process's environment it gets PATH alone."""
        own = {"DR_PORT": str(port), "DR_CACHE": f"{self.folder}/cache"} | self.services[service].get("environment", {})
        environment = {name: self.here(str(value), port) for name, value in own.items()}
        environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "no_proxy": "*"}
        words = [self.here(word, port) for word in command]
        return subprocess.Popen(words, env=environment, cwd=self.folder, **options)

    def start(self, service: str, command: list[str], port: int = 0) -> None:
        """Start a service in the background."""
        with (self.folder / f"{service}-{port}.log").open("wb") as log:
            self.processes[f"{service}-{port}"] = self.run(service, command, port, stdout=log, stderr=log)

    def wait_until_healthy(self, service: str, port: int = 0) -> None:
        """Return once the service's health check from the compose file succeeds."""
        kind, *test = self.services[service]["healthcheck"]["test"]
        command = ["sh", "-c", *test] if kind == "CMD-SHELL" else test
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.wait(lambda: self.run(service, command, port, **quiet).wait() == 0, f"{service} healthy")

    def wait(self, done: Callable[[], bool], goal: str) -> None:
        """Wait until `done()` is true, a minute at most."""
        end = time.monotonic() + 60
        while not done():
            if time.monotonic() > end:
                pytest.fail(f"{goal} within a minute: no\n{self.logs()}")
            time.sleep(0.2)

    def logs(self) -> str:
        """The logs of all services."""
        return "\n".join(f"{log.name}: {log.read_text()}" for log in self.folder.glob("*.log"))


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """A stack with nothing started yet, and small data in place of the image's data."""
    for name in ("redis-cli", "haproxy", "wget"):
        program(name)
    stack, shipped = Stack(tmp_path), tmp_path / "examples" / "online_retail"
    shipped.mkdir(parents=True)
    write_interactions(shipped)
    pq.write_table(pa.table({"item_id": list(range(40))}), shipped / "items.parquet")
    pq.write_table(pa.table({"user_id": list(range(120)), "country": ["France"] * 120}), shipped / "users.parquet")
    settings = [flag.removeprefix("--set=") for flag in QUICK]
    (shipped / "config.toml").write_text("\n".join([*settings, 'context = ["country"]']))
    (tmp_path / "haproxy.cfg").write_text(proxy_config(stack.proxy, stack.replicas))
    try:
        yield stack
    finally:
        for process in reversed(stack.processes.values()):
            process.kill()
            process.wait()


def test_the_rehearsal(stack: Stack) -> None:
    """The stack trains, answers, swaps and learns, and one replica stops without a failed request."""
    _, *options = stack.services["redis"]["command"]
    stack.start("redis", [redis_binary(), *options, "--port", str(stack.redis), "--bind", "127.0.0.1"])
    stack.wait_until_healthy("redis")
    for port in stack.replicas:
        stack.start("service", ["dr-service"], port)
    stack.start("proxy", stack.services["proxy"]["command"])
    trainer = stack.run(
        "trainer", ["dr-trainer", *stack.services["trainer"]["command"]], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    output, errors = trainer.communicate()
    assert trainer.returncode == 0, errors.decode()
    first = output.decode().split()[-1]
    for port in stack.replicas:
        stack.wait_until_healthy("service", port)
    stack.wait_until_healthy("proxy")

    with httpx.Client(base_url=f"http://127.0.0.1:{stack.proxy}", trust_env=False, timeout=30) as client:
        check_the_proxy(client, first)
        store = open_store(f"redis://127.0.0.1:{stack.redis}/0", password=SECRETS["DR_REDIS_PASSWORD"])
        trained = store.load(first)
        second = store.publish(changed(trained, context=bytes(trained.parts["context.json"]) + b" "))
        swapped = client.post("/admin/v1/swap", json={"version": second, "expected": first}, headers=ADMIN)
        assert swapped.json() == {"version": second, "previous": first}
        infos = [f"http://127.0.0.1:{port}/v1/info" for port in stack.replicas]
        stack.wait(lambda: {client.get(info).json()["version"] for info in infos} == {second}, "both replicas swap")
        assert client.post("/admin/v1/rollback", headers=ADMIN).json()["version"] == first

        check_the_learner(stack, client, infos, first)

        # One replica is stopped as by `docker compose stop`: the proxy lets no client notice.
        leaving = stack.processes[f"service-{stack.replicas[0]}"]
        leaving.terminate()
        end = time.monotonic() + 60
        while leaving.poll() is None:
            assert time.monotonic() < end, "it does not end"
            assert client.post("/v1/retrieve", json={"history": [0]}).status_code == 200
        assert leaving.returncode == 0
        assert client.post("/v1/retrieve", json={"history": [0]}).status_code == 200

    logs = stack.logs() + errors.decode()
    assert not any(secret in logs for secret in SECRETS.values())
    assert "cannot be held" not in logs  # the service's user may take leases
    check_the_service_cannot_write(stack.redis, first)


def check_the_learner(stack: Stack, client: httpx.Client, infos: list[str], version: str) -> None:
    """What is sent to one replica is learned, and both replicas serve the version that has learned."""
    sent = client.post("/v1/events", json={"events": [{"item_id": 8, "history": [0, 4]}]}, headers=WRITER)
    assert (sent.status_code, sent.json()) == (202, {"accepted": 1})
    *command, _ = stack.services["learner"]["command"]
    stack.start("learner", ["dr-trainer", *command, "1"])  # every second
    stack.wait(lambda: version not in {client.get(info).json()["version"] for info in infos}, "both replicas swap")
    learner = stack.processes.pop("learner-0")
    learner.terminate()
    assert learner.wait() == 128 + signal.SIGTERM
    assert "learned from 1 click" in (stack.folder / "learner-0.log").read_text()


def check_the_proxy(client: httpx.Client, version: str) -> None:
    """A request is answered through the proxy, which itself refuses /metrics and a body that is too large."""
    answer = client.post("/v1/retrieve", json={"history": [0, 4], "context": {"country": "France"}}).json()
    assert answer["version"] == version
    assert len(answer["candidates"]) == 5
    for path, given in (("/metrics", "mine"), ("/%6detrics", 'm"ine')):
        refused = client.get(path, headers={"X-Request-ID": given})
        request_id = Problem.model_validate(refused.json()).request_id
        assert refused.status_code == 404
        assert request_id == refused.headers["x-request-id"]
        assert (request_id == given) == (given == "mine")
    assert client.post("/v1/retrieve", content=b" " * 2_000_000).status_code == 413


def check_the_service_cannot_write(port: int, version: str) -> None:
    """The service's Redis user can read versions, not change or remove them; `make chaos` tries all commands."""
    with redis.Redis(port=port, username="service", password=SECRETS["DR_SERVICE_PASSWORD"]) as client:
        manifest = f"dr:{version}:manifest"
        assert client.get(manifest)
        for command in (("SET", manifest, "x"), ("UNLINK", manifest), ("SREM", "dr:versions", "x"), ("FLUSHALL",)):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command)

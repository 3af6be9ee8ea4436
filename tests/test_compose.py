"""The local stack: valid, hardened, and rehearsed with its own commands, environment and health checks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
import yaml

from service.http.problems import HEADERS, Problem
from service.metrics import Metrics
from tests.planted import write_interactions
from tests.proxy import CONFIG, proxy_config
from tests.redis_servers import free_port, program, redis_binary
from tests.test_commands import QUICK

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
OURS = ("service", "service-gpu", "trainer")
SECRETS = {"DR_REDIS_PASSWORD": "pw-of-redis", "DR_SERVICE_PASSWORD": "pw-of-the-service", "DR_ADMIN_TOKEN": "token"}


def interpolate(value: Any, environment: dict[str, str]) -> Any:
    """`value` with ${NAME:-default} filled in as compose does."""
    if isinstance(value, dict):
        return {key: interpolate(each, environment) for key, each in value.items()}
    if isinstance(value, list):
        return [interpolate(each, environment) for each in value]
    if not isinstance(value, str):
        return value
    filled = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: environment.get(found[1]) or found[2], value)
    return filled.replace("$$", "$")


def check(*command: str) -> None:
    """Run a checker; show what it says if it is not content."""
    done = subprocess.run([str(BIN / command[0]), *command[1:]], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_compose_file_is_one() -> None:
    """By the compose specification, which check-jsonschema brings."""
    check("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml")


def test_the_dockerfile_has_no_lint() -> None:
    """Not even what hadolint would only mention."""
    check("hadolint", "docker/Dockerfile")


def test_what_is_named_is_there() -> None:
    """Services, volumes, files and build targets: what a schema does not see."""
    targets = set(re.findall(r"(?m)^FROM .* AS (\S+)$", DOCKERFILE))
    for name, service in SERVICES.items():
        assert set(service.get("depends_on", {})) <= set(SERVICES), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], volume
        if "build" in service:
            assert service["build"]["target"] in targets, name
    used = set(re.findall(r"\$\{(\w+):-", (ROOT / "docker-compose.yml").read_text()))
    explained = set(re.findall(r"(?m)^(\w+)=", (ROOT / ".env.example").read_text()))
    assert explained <= used
    assert used - explained == {"DR_TRAINER_STORE", "DR_SERVICE_STORE"}  # explained where the cluster is


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_hardened(name: str) -> None:
    """Read-only, without capabilities, from an exact tag; reached from this machine only; health without curl."""
    service = SERVICES[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    if name not in OURS:
        assert re.fullmatch(r"[\w/-]+:v?\d+\.\d+\.\d+(-alpine)?", service["image"])
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:")
    assert name not in {"redis", "redis-1", "redis-2", "redis-3"} or "ports" not in service
    if name not in {"trainer", "cluster"}:  # they end
        assert "curl" not in str(service["healthcheck"]["test"])


def test_images_of_ours_run_as_nobody_in_particular() -> None:
    """The last USER of each stage that is run; torch is the trainer's alone."""
    stages = re.split(r"(?m)^FROM ", DOCKERFILE)
    by_name = {stage.split("\n")[0].split(" AS ")[1]: stage for stage in stages[1:]}
    for name in OURS:
        assert re.findall(r"(?m)^USER (\S+)$", by_name[name])[-1] == "10001:10001"
    assert [name for name, stage in by_name.items() if "[train]" in stage] == ["trainer"]


def test_the_dashboard_shows_metrics_that_exist() -> None:
    """Every name in its queries is one that the service tells; and it shows every metric of ours."""
    queries = re.findall(r'"expr": "(.*)"', (ROOT / "docker/grafana/deep-retrieval.json").read_text())
    shown = {name for query in queries for name in re.findall(r"deepretrieval_\w+", query)}
    metrics = Metrics()
    metrics.requests.labels("/v1/retrieve", 200).inc()
    metrics.duration.labels("/v1/retrieve").observe(1)
    metrics.serving("v1-000000000000", 1, 1)
    told = {line.split("{")[0].split(" ")[0] for line in metrics.text().decode().splitlines() if line[0] != "#"}

    assert shown <= told
    families = {metric.name for metric in metrics.registry.collect()}
    assert families == {re.sub(r"_(bucket|total)$", "", name) for name in shown}


# -- the rehearsal --


class Stack:
    """The services of the compose file as processes of this machine, hosts and ports and folders translated."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {name: free_port() for name in ("redis:6379", "service-1:8000", "service-2:8000", "proxy:8080")}
        self.services = interpolate(SERVICES, SECRETS)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def translate(self, text: str, replica: int = 1) -> str:
        """What names a place in the containers, here."""
        redis_port, service_port = self.ports["redis:6379"], self.ports[f"service-{replica}:8000"]
        for there, here in (
            ("redis:6379", f"127.0.0.1:{redis_port}"),
            ("-p 6379", f"-p {redis_port}"),
            ("127.0.0.1:8000", f"127.0.0.1:{service_port}"),
            ("127.0.0.1:8080", f"127.0.0.1:{self.ports['proxy:8080']}"),
            ("/opt/examples", str(self.folder / "examples")),
            ("/var/lib/deep-retrieval", str(self.folder / "training")),
            ("/var/cache/deep-retrieval", str(self.folder / "cache")),
            ("/usr/local/etc/haproxy/haproxy.cfg", str(self.folder / "haproxy.cfg")),
        ):
            text = text.replace(there, here)
        return text

    def environment(self, name: str, replica: int = 1) -> dict[str, str]:
        """The service's own environment, its image's, and where programs are; nothing else of ours."""
        image = dict(re.findall(r"(DR_\w+)=(\S+)", DOCKERFILE))
        image["DR_PORT"] = str(self.ports[f"service-{replica}:8000"])
        own = {key: str(value) for key, value in self.services[name].get("environment", {}).items()}
        given = {key: self.translate(value, replica) for key, value in {**image, **own}.items()}
        return {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(self.folder), "no_proxy": "*", **given}

    def start(self, name: str, command: list[str], replica: int = 1) -> None:
        """A service that stays."""
        with (self.folder / f"{name}-{replica}.log").open("wb") as log:
            self.processes[f"{name}-{replica}"] = subprocess.Popen(
                [self.translate(word, replica) for word in command],
                env=self.environment(name, replica),
                stdout=log,
                stderr=log,
                cwd=self.folder,
            )

    def wait_until_healthy(self, name: str, replica: int = 1) -> None:
        """By the health check that the compose file names."""
        kind, *test = self.services[name]["healthcheck"]["test"]
        words = [self.translate(word, replica) for word in test]
        command = ["sh", "-c", *words] if kind == "CMD-SHELL" else words
        environment = self.environment(name, replica)

        def healthy() -> bool:
            return subprocess.run(command, env=environment, check=False, capture_output=True).returncode == 0

        self.wait(healthy, f"{name} {replica} healthy")

    def wait(self, done: Callable[[], bool], what: str) -> None:
        """Until `done`, a minute at most."""
        end = time.monotonic() + 60
        while not done():
            if time.monotonic() > end:
                logs = "\n".join(f"{log.name}: {log.read_text()[-1500:]}" for log in self.folder.glob("*.log"))
                pytest.fail(f"{what} within a minute: no\n{logs}")
            time.sleep(0.05)

    def train(self, *more: str) -> str:
        """Run the trainer to its end; the version it published."""
        entrypoint = json.loads(re.findall(r"(?m)^ENTRYPOINT (\[.*\])$", DOCKERFILE)[-1])
        words = [self.translate(word) for word in [*entrypoint, *self.services["trainer"]["command"], *more]]
        done = subprocess.run(
            words, env=self.environment("trainer"), cwd=self.folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert not any(secret in done.stderr + done.stdout for secret in SECRETS.values())
        return done.stdout.split()[-1]


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """Redis, trainer, two replicas and the proxy, in the order of their dependencies; small data for the shipped."""
    for name in ("redis-cli", "haproxy", "wget"):
        program(name)
    stack = Stack(tmp_path)
    shipped = tmp_path / "examples" / "online_retail"
    shipped.mkdir(parents=True)
    (tmp_path / "training").mkdir()
    write_interactions(shipped)
    pq.write_table(pa.table({"item_id": list(range(40))}), shipped / "items.parquet")
    pq.write_table(pa.table({"user_id": list(range(120)), "country": ["France"] * 120}), shipped / "users.parquet")
    settings = [flag.removeprefix("--set=") for flag in QUICK]
    (shipped / "config.toml").write_text("\n".join([*settings, 'context = ["country"]']))
    ports = [stack.ports[f"service-{replica}:8000"] for replica in (1, 2)]
    (tmp_path / "haproxy.cfg").write_text(proxy_config(stack.ports["proxy:8080"], ports))
    try:
        yield stack
    finally:
        for process in reversed(stack.processes.values()):
            process.kill()
            process.wait()


def test_what_the_proxy_says_is_a_problem_as_the_services_are() -> None:
    """Its every error has the body that the OpenAPI documents, and the headers that the service gives it."""
    said = re.findall(r"(?m)^    http-error status (\d+) content-type (\S+)(.*?) lf-string '(.*)'$", CONFIG.read_text())

    assert {int(status) for status, *_ in said} == {400, 404, 408, 413, 429, 500, 502, 503, 504}
    for status, kind, headers, body in said:
        problem = Problem.model_validate_json(body)
        assert kind == "application/problem+json"
        assert problem.status == int(status)
        assert problem.title == HTTPStatus(problem.status).phrase or problem.status == 413  # renamed in Python 3.13
        wanted = HEADERS.get(problem.status, {}) | {"X-Request-ID": problem.request_id}
        assert dict(re.findall(r" hdr (\S+) (\S+)", headers)) == wanted


def test_the_rehearsal(stack: Stack) -> None:
    """Up, trained, healthy; an answer through the proxy; a swap that both replicas follow; down without a failure."""
    command = stack.services["redis"]["command"]
    assert command[0] == "redis-server"
    places = ["--port", str(stack.ports["redis:6379"]), "--bind", "127.0.0.1", "--dir", str(stack.folder)]
    stack.start("redis", [redis_binary(), *command[1:], *places])
    stack.wait_until_healthy("redis")
    for replica in (1, 2):
        stack.start("service", re.findall(r'(?m)^CMD \["(dr-service)"\]$', DOCKERFILE), replica)
    stack.start("proxy", stack.services["proxy"]["command"])
    first = stack.train()
    for replica in (1, 2):
        stack.wait_until_healthy("service", replica)
    stack.wait_until_healthy("proxy")

    admin = {"Authorization": f"Bearer {SECRETS['DR_ADMIN_TOKEN']}"}
    with httpx.Client(base_url=stack.translate("http://127.0.0.1:8080"), trust_env=False, timeout=30) as client:
        answer = client.post("/v1/retrieve", json={"history": [0, 4], "context": {"country": "France"}}).json()
        assert answer["version"] == first
        assert len(answer["candidates"]) == 5
        for path, given in (("/metrics", "mine"), ("/%6detrics", 'm"ine')):
            refused = client.get(path, headers={"X-Request-ID": given})
            named = Problem.model_validate(refused.json()).request_id
            assert refused.status_code == 404
            assert named == refused.headers["x-request-id"]
            assert (named == given) == (given == "mine")
        assert client.post("/v1/retrieve", content=b" " * 2_000_000).status_code == 413

        # A second training, not activated: other settings need another folder to resume from.
        second = stack.train("--seed", "1", "--resume", str(stack.folder / "second"), "--no-activate")
        swapped = client.post("/admin/v1/swap", json={"version": second, "expected": first}, headers=admin)
        assert swapped.json() == {"version": second, "previous": first}
        replicas = [f"http://127.0.0.1:{stack.ports[f'service-{replica}:8000']}/v1/info" for replica in (1, 2)]
        stack.wait(lambda: {client.get(info).json()["version"] for info in replicas} == {second}, "both replicas swap")
        assert client.post("/admin/v1/rollback", headers=admin).json()["version"] == first

        # One replica goes as `docker compose stop` makes it: the proxy lets nobody notice.
        stack.processes["service-1"].terminate()
        end = time.monotonic() + 60
        while stack.processes["service-1"].poll() is None:
            assert time.monotonic() < end, "it does not end"
            assert client.post("/v1/retrieve", json={"history": [0]}).status_code == 200
        assert stack.processes["service-1"].returncode == 0
        assert client.post("/v1/retrieve", json={"history": [0]}).status_code == 200

    logs = "".join(log.read_text() for log in stack.folder.glob("service*.log"))
    assert not any(secret in logs for secret in SECRETS.values())
    assert "held" not in logs  # the service's user may take leases
    check_what_the_service_may_not(stack.ports["redis:6379"])


def check_what_the_service_may_not(port: int) -> None:
    """Its user in Redis reads the versions; it can neither change nor remove them, nor see or stop anything else."""
    with redis.Redis(port=port, username="service", password=SECRETS["DR_SERVICE_PASSWORD"]) as client:
        (manifest,) = [f"dr:{name.decode()}:manifest" for name in list(client.smembers("dr:versions"))[:1]]
        assert client.get(manifest)
        for command in (
            ("SET", manifest, "x"),
            ("UNLINK", manifest),
            ("SREM", "dr:versions", "x"),
            ("SET", "other", "x"),
            ("GET", "other"),
            ("KEYS", "*"),
            ("SCAN", "0"),
            ("FLUSHALL",),
            ("CONFIG", "GET", "*"),
            ("EVAL", "return 1", "0"),
            ("SHUTDOWN",),
            ("ACL", "LIST"),
            ("SUBSCRIBE", "other"),
            ("CLIENT", "LIST"),
            ("CLIENT", "PAUSE", "1"),
            ("CLIENT", "KILL", "TYPE", "pubsub"),
            ("CLIENT", "NO-EVICT", "on"),
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command)

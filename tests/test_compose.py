"""The files of the local stack: valid, hardened, and saying what the service says. test_rehearsal.py starts it."""

from __future__ import annotations

import re
import subprocess
import sys
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.http.problems import HEADERS, Problem
from service.metrics import Metrics
from tests.proxy import CONFIG

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
OURS = ("service", "service-gpu", "trainer")


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

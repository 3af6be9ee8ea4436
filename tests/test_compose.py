"""The files of the local stack are valid, hardened, and agree with the service. test_rehearsal.py starts the stack."""

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
    """Run a checker; if it fails, show its output."""
    done = subprocess.run([str(BIN / command[0]), *command[1:]], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_compose_file_is_valid() -> None:
    """It follows the compose specification that comes with check-jsonschema."""
    check("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml")


def test_the_dockerfile_has_no_lint() -> None:
    """The linter hadolint has no remarks, not even minor ones."""
    check("hadolint", "docker/Dockerfile")


def test_everything_that_the_compose_file_names_exists() -> None:
    """A schema does not check services, volumes, files and build targets."""
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
    assert used - explained == {"DR_TRAINER_STORE", "DR_SERVICE_STORE"}  # explained beside the cluster


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_hardened(name: str) -> None:
    """Read-only, no capabilities, an exact tag, ports open to this machine only, and a health check without curl."""
    service = SERVICES[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    if "build" not in service:
        assert re.fullmatch(r"[\w/-]+:v?\d+\.\d+\.\d+(-alpine)?", service["image"])
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:")
    assert name not in {"redis", "redis-1", "redis-2", "redis-3"} or "ports" not in service
    if name not in {"trainer", "cluster", "learner"}:  # two of these end by themselves, and nobody calls the learner
        assert "curl" not in str(service["healthcheck"]["test"])


def test_our_images_run_as_an_unprivileged_user() -> None:
    """The last USER of each image is 10001; only the trainer's image has torch."""
    stages = re.split(r"(?m)^FROM ", DOCKERFILE)
    by_name = {stage.split("\n")[0].split(" AS ")[1]: stage for stage in stages[1:]}
    for name in OURS:
        assert re.findall(r"(?m)^USER (\S+)$", by_name[name])[-1] == "10001:10001"
    assert [name for name, stage in by_name.items() if "[train]" in stage] == ["trainer"]


def test_the_dashboard_shows_metrics_that_exist() -> None:
    """Its queries name only metrics that the service exports, and every metric of ours is shown."""
    queries = re.findall(r'"expr": "(.*)"', (ROOT / "docker/grafana/deep-retrieval.json").read_text())
    shown = {name for query in queries for name in re.findall(r"deepretrieval_\w+", query)}
    metrics = Metrics()
    metrics.requests.labels("/v1/retrieve", 200).inc()
    metrics.duration.labels("/v1/retrieve").observe(1)
    metrics.serving("v1-000000000000", 1, 1)
    metrics.folds.labels("done").inc()
    exported = {line.split("{")[0].split(" ")[0] for line in metrics.text().decode().splitlines() if line[0] != "#"}

    assert shown <= exported
    families = {metric.name for metric in metrics.registry.collect()}
    assert families == {re.sub(r"_(bucket|total)$", "", name) for name in shown}


def test_errors_of_the_proxy_look_like_those_of_the_service() -> None:
    """Each error has the body that the OpenAPI documents, and the headers that the service gives it."""
    errors = re.findall(
        r"(?m)^    http-error status (\d+) content-type (\S+)(.*?) lf-string '(.*)'$", CONFIG.read_text()
    )

    assert {int(status) for status, *_ in errors} == {400, 404, 408, 413, 429, 500, 502, 503, 504}
    for status, kind, headers, body in errors:
        problem = Problem.model_validate_json(body)
        assert kind == "application/problem+json"
        assert problem.status == int(status)
        assert problem.title == HTTPStatus(problem.status).phrase or problem.status == 413  # renamed in Python 3.13
        wanted = HEADERS.get(problem.status, {}) | {"X-Request-ID": problem.request_id}
        assert dict(re.findall(r" hdr (\S+) (\S+)", headers)) == wanted

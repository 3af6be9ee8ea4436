"""Runs the proxy of the compose file, with its own configuration, in front of replicas on this machine."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.redis_servers import free_port, program

CONFIG = Path(__file__).parent.parent / "docker" / "haproxy.cfg"


def proxy_config(port: int, replicas: Sequence[int]) -> str:
    """docker/haproxy.cfg with the addresses of a proxy and replicas on this machine."""
    config = CONFIG.read_text()
    settings = re.findall(r"(?m)^    server-template \S+ \S+ \S+ resolvers docker init-addr none(.*)$", config)
    assert len(settings) == 1
    servers = "\n".join(f"    server replica{i} 127.0.0.1:{at}{settings[0]}" for i, at in enumerate(replicas, 1))
    config = re.sub(r"(?m)^    server-template .*$", servers, config)
    return config.replace("bind :8080", f"bind 127.0.0.1:{port}")


@contextmanager
def proxied(folder: Path, replicas: Sequence[int]) -> Iterator[int]:
    """Run a proxy in front of these replicas; gives its port."""
    port = free_port()
    (folder / "haproxy.cfg").write_text(proxy_config(port, replicas))
    with (folder / "haproxy.log").open("wb") as log:
        process = subprocess.Popen([program("haproxy"), "-f", folder / "haproxy.cfg"], stdout=log, stderr=log)
    try:
        end = time.monotonic() + 30
        while not _answers(port):
            assert process.poll() is None, (folder / "haproxy.log").read_text()
            assert time.monotonic() < end, "no answer through the proxy"
            time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False

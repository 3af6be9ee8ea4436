"""Go from the shipped purchases to an HTTP answer: train, publish, serve, send a request; then put a product that was
never sold, find it, and take it down. `make demo` runs this file.

With ONCE=1 in the environment, the demo ends there. DEMO_STORE is the folder of the store (default
./demo-store). If the store has a version already, the demo serves that version without training.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pyarrow.compute as pc
import pyarrow.parquet as pq

DATA = Path(__file__).parent / "online_retail"
STORE = Path(os.environ.get("DEMO_STORE", "demo-store"))
RUN = STORE.with_name(STORE.name + "-run")  # folder with the checkpoints of the training
COMMANDS = Path(sys.executable).parent
K = 10
START_SECONDS = 60


def main() -> int:
    """Run the demo and return the exit status."""
    titles = dict(
        zip(*(pq.read_table(DATA / "items.parquet")[c].to_pylist() for c in ("item_id", "title")), strict=True)
    )
    if (STORE / "CURRENT").exists():
        say(f"1. {STORE} has a trained version already; delete it and {RUN} to train again")
    else:
        say("1. training on the purchases of 4,335 customers (at most two minutes on 2 cores)")
        train()
    say("2. starting the service")
    port = free_port(8000)
    address = f"http://127.0.0.1:{port}"
    service = subprocess.Popen(
        [COMMANDS / "dr-service", "--store", str(STORE), "--port", str(port)],
        env={"DR_ADMIN_TOKEN": "demo", "DR_WRITE_TOKEN": "demo", "DR_DRAIN_SECONDS": "0"} | os.environ,
    )
    try:
        # The service is on this machine, so a proxy that the environment names is not used.
        client = httpx.Client(base_url=address, trust_env=False, timeout=10)
        wait_until_ready(service, client)
        customer, body = request()
        say(f"3. asking for customer {customer}, from {body['context']['country']}, whose latest purchases were")
        for item in body["history"][-5:]:
            say(f"     {titles[item]}")
        answer = client.post("/v1/retrieve", json=body).raise_for_status().json()
        say(f"   the answer, of version {answer['version']}, in {answer['took_ms']:.1f} ms:")
        show(answer, titles)
        put_and_delete(client, body, titles)
        short = json.dumps({"history": body["history"][-3:], "context": body["context"], "k": K})
        say("\nask yourself:")
        say(f"  curl -s {address}/v1/retrieve -H 'content-type: application/json' -d '{short}'")
        say(f"  {address}/docs has the whole API")
        if "ONCE" not in os.environ:
            say("the service runs until Ctrl-C")
            service.wait()
    finally:
        service.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            service.wait(15)
        service.kill()
    return 0


def put_and_delete(client: httpx.Client, body: dict[str, Any], titles: dict[str, str]) -> None:
    """Put a product of which only the title is known, ask again, and take it down."""
    token = {"Authorization": f"Bearer {os.environ.get('DR_WRITE_TOKEN', 'demo')}"}
    name, title = "NEW-1", "ALARM CLOCK BAKELIKE YELLOW"
    say(f"\n4. putting a product that was never sold: {title}")
    started = time.perf_counter()
    items = [{"item_id": name, "attributes": {"title": title}}]
    put = client.post("/v1/items", json={"items": items}, headers=token).raise_for_status().json()
    answer = client.post("/v1/retrieve", json={**body, "min_seq": put["seq"]}).raise_for_status().json()
    took = 1000 * (time.perf_counter() - started)
    say(
        f"   {took:.0f} ms later, the answer has it"
        if has(answer, name)
        else "   it is not among the best for this customer"
    )
    show(answer, titles | {name: f"{title}   <- new"})
    started = time.perf_counter()
    gone = client.post("/v1/items:delete", json={"item_ids": [name]}, headers=token).raise_for_status().json()
    answer = client.post("/v1/retrieve", json={**body, "min_seq": gone["seq"]}).raise_for_status().json()
    took = 1000 * (time.perf_counter() - started)
    say(f"   taken down; {took:.0f} ms later, the answer has it {'still' if has(answer, name) else 'no more'}")


def has(answer: dict[str, Any], item: str) -> bool:
    """Whether an answer has an item."""
    return item in [candidate["item_id"] for candidate in answer["candidates"]]


def show(answer: dict[str, Any], titles: dict[str, str]) -> None:
    """Print the candidates with their titles."""
    for rank, candidate in enumerate(answer["candidates"], 1):
        item = candidate["item_id"]
        say(f"{rank:4}  {item:7} {candidate['score']:7.2f}  {titles[item]}")


def train() -> None:
    """Run dr-trainer, which prints its progress on stderr. An interrupted training continues."""
    files = ["--items", DATA / "items.parquet", "--users", DATA / "users.parquet", "--config", DATA / "config.toml"]
    places = ["--store", STORE, "--resume", RUN]
    command = [COMMANDS / "dr-trainer", "fit", DATA / "interactions.parquet", *files, *places]
    trained = subprocess.run([str(part) for part in command], stdout=subprocess.DEVNULL, check=False)
    if trained.returncode:
        sys.exit(
            f"demo: training ended with status {trained.returncode}; run make demo again to continue, or delete "
            f"{RUN} to start over"
        )


def request() -> tuple[int, dict[str, Any]]:
    """A customer from outside the UK, and the request body with the customer's latest purchases and country."""
    customer = 12583
    purchases = pq.read_table(DATA / "interactions.parquet")
    history = purchases.filter(pc.equal(purchases["user_id"], customer))["item_id"].to_pylist()[-60:]
    users = pq.read_table(DATA / "users.parquet")
    country = users.filter(pc.equal(users["user_id"], customer))["country"][0].as_py()
    return customer, {"history": history, "context": {"country": country}, "k": K}


def wait_until_ready(service: subprocess.Popen[bytes], client: httpx.Client) -> None:
    """Return when /readyz answers 200; exit if the service ends or is not ready after START_SECONDS."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if service.poll() is not None:
            sys.exit(f"demo: dr-service ended with status {service.returncode}")
        with contextlib.suppress(httpx.TransportError):
            if client.get("/readyz").status_code == httpx.codes.OK:
                return
        time.sleep(0.1)
    sys.exit(f"demo: the service was not ready after {START_SECONDS} s")


def free_port(wanted: int) -> int:
    """The port `wanted` if it is free, else a different free port."""
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found: int = probe.getsockname()[1]
            return found
    sys.exit("demo: no free port")


def say(text: str) -> None:
    """Print a line on stdout without buffering, so that it stays in order with the output of the commands."""
    print(text, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)

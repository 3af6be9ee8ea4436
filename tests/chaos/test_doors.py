"""Access that must stay closed: /admin, secrets in logs, unpickling, and the rights of the service's user in Redis."""

from __future__ import annotations

import base64
import hmac
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient

from index_store.folder.store import FolderStore
from index_store.store import open_store
from tests.chaos.conftest import Goal, amount
from tests.conftest import Planted
from tests.fleet import ADMIN, BIN, TOKEN, fleet
from tests.redis_servers import RedisServer, running
from tests.test_api import make_app
from tests.test_rehearsal import SECRETS, services_of
from tests.wire import exchange, target

ROUTES = [("GET", "/admin/v1/versions"), ("POST", "/admin/v1/swap"), ("POST", "/admin/v1/rollback")]
RIGHT = TOKEN.encode()

# -- admin --


@pytest.mark.parametrize("token", [None, ""])
def test_admin_is_closed_by_default(tmp_path: Path, token: str | None) -> None:
    """Promise: credentials. If no token is set, or an empty one, every admin route answers 403."""
    with TestClient(make_app(FolderStore(str(tmp_path)), admin_token=token)) as client:
        paths = client.get("/openapi.json").json()["paths"]
        assert {path for _, path in ROUTES} == {path for path in paths if "admin" in path}
        for method, path in ROUTES:
            for headers in (
                {},
                {"Authorization": ""},
                {"Authorization": "Bearer"},
                {"Authorization": "Bearer "},
                ADMIN,
            ):
                for body in ({}, {"version": "v1-000000000000"}):
                    answer = client.request(method, path, headers=headers, json=body)
                    assert answer.status_code == 403, (path, headers)


def test_tokens_are_compared_in_constant_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise: credentials. hmac.compare_digest compares two digests of equal length, whatever was sent."""
    compared: list[tuple[Any, Any]] = []
    verdict: list[bool] = []

    def compare(wanted: Any, sent: Any) -> bool:
        compared.append((wanted, sent))
        return verdict[-1]

    monkeypatch.setattr(hmac, "compare_digest", compare)
    with TestClient(make_app(FolderStore(str(tmp_path)), admin_token=TOKEN)) as client:
        for given in (RIGHT, b"", b"x", RIGHT[:-1], b"\xe9" * 5000):
            for wanted in (True, False):
                verdict.append(wanted)
                answer = client.get(ROUTES[0][1], headers={b"authorization": b"Bearer " + given})
                assert answer.status_code == (200 if wanted else 401), given

    assert len(compared) == 10
    assert {(type(digest), len(digest)) for pair in compared for digest in pair} == {(bytes, 32)}


def wrong_token(random: Random) -> bytes:
    """A token that is not the right one, but may resemble it."""
    place = random.randrange(len(RIGHT))
    near = [RIGHT[:place], RIGHT[place + 1 :], RIGHT[:place] + RIGHT[place + 1 :], RIGHT.swapcase(), RIGHT.title()]
    near += [
        RIGHT + b"\x00x"[1:],
        b"x" + RIGHT,
        RIGHT + b"=",
        RIGHT + RIGHT,
        RIGHT[::-1],
        RIGHT * 500,
        b'"' + RIGHT + b'"',
    ]
    near += [
        RIGHT[:place] + bytes([RIGHT[place] ^ 1]) + RIGHT[place + 1 :],
        RIGHT + b"\xa0",
        b"\x85" + RIGHT,
        b"\xff\xfe",
    ]
    near += [
        RIGHT + b"," + RIGHT,
        RIGHT + b" " + RIGHT,
        RIGHT.replace(b"-", b"%2d"),
        RIGHT.replace(b"-", b"\xe2\x80\x90"),
    ]
    near += [b"", b"*", b"null", b"undefined", bytes(random.choices(range(0x80, 0x100), k=random.randrange(1, 40)))]
    near += [bytes(random.choices(range(0x21, 0x7F), k=random.randrange(1, 40))), base64.b64encode(RIGHT)]
    return random.choice(near)


def wrong_credential(random: Random) -> bytes:
    """Headers that must not give access."""
    wrong = b"Authorization: %b %b\r\n" % (random.choice((b"Bearer", b"bearer", b"Basic", b"")), wrong_token(random))
    right = b"Bearer " + RIGHT
    encoded = base64.b64encode(b"admin:" + RIGHT)
    odd = [
        b"Authorization: %b %b\r\n" % (scheme, RIGHT) for scheme in (b"Basic", b"Digest", b"Token", b"Bearer:", b"B")
    ]
    odd += [
        b"Authorization: %b\r\n" % value
        for value in (RIGHT, b"Bearer" + RIGHT, b"Bearer\t" + RIGHT, b"Basic " + encoded)
    ]
    odd += [
        b"%b: %b\r\n" % (name, right)
        for name in (b"Proxy-Authorization", b"X-Authorization", b"Authorization-", b"Cookie")
    ]
    odd += [b"X-Original-URL: /livez\r\n", b"X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Prefix: /admin\r\n", b""]
    odd += [wrong + wrong, wrong + b"Authorization: %b\r\n" % right]  # the first header counts
    return random.choice(odd) if random.random() < 0.3 else wrong


def fuzzed_request(random: Random) -> bytes:
    """A request to an admin route, whose path may be disguised and whose Host may be invalid."""
    method, path = random.choice(ROUTES)
    tricks = (path, path, path, "/" + path, "//localhost" + path, path + "/", path.replace("/", "//"), path.upper(),
              "/v1/.." + path, path + "/../versions", path.replace("a", "%61"), path.replace("/v1", "%2fv1"),
              "/%2e" + path, path + ";x", path + "%00", path + "%20", path + "?token=" + TOKEN, path + "%3f",
              "/livez/.." + path, "/static-offline-docs/.." + path, "/static-offline-docs/..%2f.." + path,
              "http://localhost" + path, "http://admin" + path, path.replace("/v1", "%5cv1"), path + "#x")  # fmt: skip
    host = random.choice(
        (b"localhost", b"admin", b"[::1", b"localhost/admin", b"a b", b"", b"localhost?x", b"\xff", b"a:b")
    )
    head = b"%b %b HTTP/1.1\r\nHost: %b\r\n" % (method.encode(), random.choice(tricks).encode(), host)
    return head + wrong_credential(random) + b"\r\n"


def test_fuzzed_credentials(planted: Planted, tmp_path: Path, goal: Goal) -> None:
    """Promise: credentials. Wrong tokens and schemes, two headers, odd hosts and disguised paths: none gives access."""
    random = Random(0)
    count, together = amount(10_000), 50
    accepted = broken = 0
    with target(planted, tmp_path) as live:
        for _ in range(count // together):
            requests = [fuzzed_request(random) for _ in range(together)]
            replies = exchange(live.port, b"".join(requests))
            assert len(replies) == together
            for request, reply in zip(requests, replies, strict=True):
                assert reply.status in {401, 404, 405}, (request[:500], reply)
                accepted += reply.status < 400
                broken += reply.status >= 500
        assert live.replica.client.get(ROUTES[0][1]).status_code == 200  # the right token still gives access
        live.check_unharmed()
        assert TOKEN not in live.replica.log()

    goal(f"{count:,} fuzzed credentials: accepted, server errors", f"{accepted}, {broken}", not accepted + broken)


# -- secrets --


def test_no_secret_is_logged(planted: Planted, other: Planted, tmp_path: Path, goal: Goal) -> None:
    """Promise: credentials.

    A process serves, swaps, refuses and loses its store; its log has neither token nor password.
    """
    password = "s3cret-of-the-store"
    arguments = ("--requirepass", password)
    logs = []
    with running(RedisServer(tmp_path / "redis", *arguments)) as server:
        hidden = server.url.replace("//", f"//:{password}@")
        store = open_store(hidden)
        names = store.publish(planted.version), store.publish(other.version)
        store.activate(names[0])
        with (
            fleet(tmp_path / "a", server.url, count=1, store_password=password, poll_seconds=0.05) as (first,),
            fleet(tmp_path / "b", hidden, count=1, residency="remote", poll_seconds=0.05) as (second,),
        ):
            for replica in (first, second):
                assert replica.client.post("/v1/retrieve", json={"history": [1]}).status_code == 200
                assert replica.swap(names[1]).status_code == 200
                assert replica.swap("v9-000000000000").status_code == 404
                for given in (f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", TOKEN):
                    assert replica.client.get(ROUTES[0][1], headers={"Authorization": given}).status_code == 401
            server.stop()
            for replica in (first, second):
                assert replica.swap(names[0]).status_code == 503
            server.arguments = ("--requirepass", "another")
            server.start()
            for replica in (first, second):
                assert replica.swap(names[0]).status_code == 503
                end = time.monotonic() + 30
                while "cannot be followed" not in replica.log():
                    assert time.monotonic() < end, replica.log()
                logs.append(replica.log())
        for store_url in (
            f"redis://:{password}@127.0.0.1:no",
            f"http://:{password}@localhost",
            f"redis://u:{password}@",
        ):
            done = subprocess.run(
                [BIN / "dr-service", "--store", store_url], capture_output=True, text=True, check=False
            )
            assert done.returncode == 2
            logs.append(done.stderr + done.stdout)

    text = "\n".join(logs)
    secrets = [TOKEN[:-1], password[:-1]]
    secrets += [base64.b64encode(secret.encode()).decode()[:-4] for secret in (TOKEN, password)]
    logged = [secret for secret in secrets if secret in text]
    goal(f"{len(text.splitlines())} log lines of faults and refusals: secrets", len(logged), not logged)


# -- pickle --

GUARD = """
import os, pickle, sys

kept, depth, originals = os.environ["GUARD_KEPT"], 0, (pickle.load, pickle.loads)

def tell(what):
    with open(os.environ["GUARD_LOG"], "a") as log:
        log.write(what + "\\n")

def blocked(what):
    tell("blocked " + what)
    raise ImportError("blocked: " + what)

def caller():
    return sys._getframe(2).f_code.co_filename

def run(original, *arguments, **options):
    global depth
    depth += 1
    try:
        return original(*arguments, **options)
    finally:
        depth -= 1

def load(file, **options):
    if not depth and not (
        caller().endswith("/numba/core/caching.py")
        and os.path.dirname(os.path.realpath(file.name)) == kept and file.name.endswith(".nbi")
    ):
        blocked("pickle.load in " + caller())
    tell("kernel")
    return run(originals[0], file, **options)

def loads(data, **options):
    if not depth:
        files = [os.path.join(kept, name) for name in os.listdir(kept) if name.endswith((".nbi", ".nbc"))]
        if "/numba/" not in caller() or not any(bytes(data) in open(file, "rb").read() for file in files):
            blocked("pickle.loads in " + caller())
    tell("kernel")
    return run(originals[1], data, **options)

def watch(event, arguments):
    if event == "pickle.find_class" and not depth:
        blocked("unpickling of " + ".".join(arguments))
    if event == "import" and arguments[0].split(".")[0] == "torch":
        blocked("torch")

pickle.load, pickle.loads = load, loads
sys.modules["_pickle"].load, sys.modules["_pickle"].loads = load, loads
sys.addaudithook(watch)
"""
#: Tries every way to unpickle; prints "open" for each that is not blocked.
ATTEMPTS = """
import collections, io, os, pickle, _pickle
import numpy as np
array = io.BytesIO()
np.save(array, np.array([{}], object), allow_pickle=True)
data = pickle.dumps(collections.OrderedDict)
def numpy_load(): array.seek(0); np.load(array, allow_pickle=True)
def torch_load(): import torch; torch.load
for way in (lambda: pickle.loads(data), lambda: _pickle.loads(data), lambda: pickle.load(io.BytesIO(data)),
            lambda: pickle.Unpickler(io.BytesIO(data)).load(), lambda: pickle._Unpickler(io.BytesIO(data)).load(),
            lambda: _pickle.Unpickler(io.BytesIO(data)).load(), numpy_load, torch_load):
    try: way()
    except ImportError as error: assert "blocked" in str(error)
    else: print("open")
print("done")
"""


def test_nothing_is_unpickled_where_requests_are_served(
    planted: Planted, other: Planted, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, goal: Goal
) -> None:
    """Promise: no pickle. A process loads, serves and swaps while all ways to unpickle are blocked, except for numba.

    Numba may unpickle its cache: the guard lets its calls through for bytes from the cache files beside kernels.py.
    """
    import retrieval.paths.kernels

    guard, log = tmp_path / "guard", tmp_path / "told"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(GUARD)
    kernels = Path(retrieval.paths.kernels.__file__).resolve().parent / "__pycache__"
    for name, value in (("GUARD_LOG", log), ("GUARD_KEPT", kernels)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("PYTHONPATH", str(guard), prepend=os.pathsep)
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    attempts = subprocess.run([sys.executable, "-c", ATTEMPTS], capture_output=True, text=True, check=False)
    assert attempts.stdout == "done\n", attempts.stdout + attempts.stderr
    assert len(log.read_text().splitlines()) == 8
    log.write_text("")

    store = open_store(url)
    names = store.publish(planted.version), store.publish(other.version)
    store.activate(names[0])
    with fleet(tmp_path, url, count=1) as (replica,):
        assert set(log.read_text().split()) == {"kernel"}
        for name in (*names, names[0]):
            assert replica.swap(name).status_code == 200
            answer = replica.client.post("/v1/retrieve", json={"history": [1, 5], "k": 3}).json()
            assert (answer["version"], len(answer["candidates"])) == (name, 3)
            assert replica.client.post("/v1/retrieve", content=b"\x80\x04N.").status_code == 415
        assert replica.client.post("/admin/v1/rollback").status_code == 200
        assert replica.client.get(ROUTES[0][1]).status_code == 200

    reached = [line for line in log.read_text().splitlines() if line != "kernel"]
    goal(
        "a process that loads, serves and swaps: attempts to unpickle, except numba's cache",
        len(reached),
        not reached,
    )


# -- Redis --

#: The commands of the service's ACL, and those that Redis allows to every user.
NEEDED = {
    "auth", "hello", "ping", "select", "multi", "exec", "discard", "watch", "unwatch", "get", "getrange", "strlen",
    "smembers", "set", "unlink", "time", "zadd", "zrem", "publish", "subscribe", "unsubscribe", "cluster|slots",
    "asking", "cluster|shards", "cluster|nodes", "quit", "reset",
}  # fmt: skip


def test_redis_lets_the_service_do_nothing_else(tmp_path: Path, goal: Goal) -> None:
    """Promise: rights in Redis. The service's user in docker-compose.yml may run only the commands that it needs."""
    arguments = services_of(SECRETS)["redis"]["command"][1:]
    with running(RedisServer(tmp_path / "redis", *arguments)) as server:

        def send(*words: str) -> str:
            """The server's reply to the service's user, on a new connection."""
            with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
                replies = connection.makefile("rb")
                for command in (("AUTH", "service", SECRETS["DR_SERVICE_PASSWORD"]), words):
                    data = "".join(f"${len(word)}\r\n{word}\r\n" for word in command)
                    connection.sendall(f"*{len(command)}\r\n{data}".encode())
                    reply = replies.readline().decode()
            return reply

        with redis.Redis(port=server.port, password=SECRETS["DR_REDIS_PASSWORD"]) as admin:
            admin.set_response_callback("COMMAND", lambda reply, **_: reply)
            known = admin.execute_command("COMMAND")
        commands = [entry for command in known for entry in (command[9] or [command])]
        assert len(commands) > 300
        allowed, harmful = set(), 0
        for name, arity, flags in (command[:3] for command in commands):
            words = name.decode().split("|")
            harmful += bool({b"write", b"admin"} & set(flags))
            reply = send(*words, *["x"] * (abs(arity) - len(words)))
            if not ((reply.startswith("-NOPERM") and "to run the" in reply) or "command not allowed" in reply):
                allowed.add(name.decode())  # "command not allowed": DEBUG and MODULE are closed to every user
        extra = {name for name in allowed - NEEDED if not name.startswith("command")}  # COMMAND only describes commands

        for key in ("dr:versions", "dr:v1-000000000000:manifest", "dr:v1-000000000000:path:1", "dr:", "other"):
            for words in (("SET", key, "x"), ("UNLINK", key), ("ZADD", key, "1", "x"), ("ZREM", key, "x")):
                assert send(*words).startswith("-NOPERM"), words
            assert send("PUBLISH", key, "x").startswith("-NOPERM")
        assert send("ZADD", "dr:leases", "1", "x") == ":1\r\n"

    assert allowed >= NEEDED
    asked = f"{len(commands)} commands of Redis, {harmful} of them writing or administering: open beyond the needed"
    goal(asked, len(extra), not extra)

"""The store on a Redis server: its keys, what it refuses, and damage to it."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
import yaml

from index_store.errors import (
    StoreFull,
    StoreMisconfigured,
    StoreUnavailable,
    VersionDamaged,
    VersionIncompatible,
)
from index_store.log import START, Draft
from index_store.manifest import FORMAT
from index_store.store import open_store, prune
from index_store.version import Version
from retrieval.paths.index import PathIndex
from tests.planted import facts_of_version, large_version, parts_of_version, small_version
from tests.redis_servers import RedisServer, free_port, program, running


def keys_of(client: Any, namespace: str) -> set[str]:
    """All keys of a namespace."""
    return {key.decode() for key in client.scan_iter(match=f"{namespace}:*")}


# -- keys --


def test_the_keys_are_those_of_the_contract(url: str, client: Any, namespace: str) -> None:
    """Path lists are packed little-endian int32; `current` is the name itself."""
    store = open_store(url)
    name = store.publish(small_version())
    store.activate(name)

    assert client.get(f"{namespace}:current") == name.encode()
    assert client.get(f"{namespace}:{name}:path:3") == bytes([0, 0, 0, 0, 2, 0, 0, 0])
    assert client.get(f"{namespace}:{name}:path:7") == bytes([1, 0, 0, 0])
    assert client.get(f"{namespace}:{name}:blob:model.onnx:0") == b"an ONNX file a"
    assert json.loads(client.get(f"{namespace}:{name}:manifest") or b"")["version"] == name
    assert client.smembers(f"{namespace}:versions") == {name.encode()}
    of_version = {key for key in keys_of(client, namespace) if name in key}
    # A manifest, two paths, and a blob for each part; that of path_items.npy is its header.
    assert len(of_version) == 1 + 2 + len(small_version().parts)
    assert (client.get(f"{namespace}:{name}:blob:path_items.npy:0") or b"").startswith(b"\x93NUMPY")
    assert keys_of(client, namespace) - of_version == {
        f"{namespace}:{key}"
        for key in ("current", f"mover:{{{namespace}:current}}", "versions", f"counter:{{{namespace}:versions}}")
    }


def test_a_version_of_an_unknown_kind_leaves_no_keys_behind(url: str, client: Any, namespace: str) -> None:
    """Keys of parts that this release does not know are deleted with their version."""
    parts = {"graph2.npy": b"x", **parts_of_version({3: [0, 2]}, item_ids=[10, 20, 30])}
    parts = {name: part for name, part in parts.items() if not name.startswith("path_")}
    store = open_store(url)
    name = store.publish(Version.build(parts, **facts_of_version(3, 1, 2, kind="graph")))
    assert client.get(f"{namespace}:{name}:blob:graph2.npy:0") == b"x"

    store.delete(name)

    assert not [key for key in keys_of(client, namespace) if name in key]


def test_large_parts_are_cut_into_pieces(url: str, client: Any, namespace: str) -> None:
    """A part of more than 1 MiB is cut, and comes back whole, as do thousands of paths."""
    store, version = open_store(url), large_version()
    name = store.publish(version)

    assert client.strlen(f"{namespace}:{name}:blob:model.onnx:0") == 2**20
    assert client.strlen(f"{namespace}:{name}:blob:model.onnx:1") == len(version.parts["model.onnx"]) - 2**20
    assert {k: bytes(v) for k, v in store.load(name).parts.items()} == version.parts


def test_other_keys_are_not_touched(url: str, client: Any, namespace: str) -> None:
    """Publish, delete and sweep leave other keys alone, also those that merely look like the store's."""
    others = {
        f"{namespace}:v1-000000000000:notes": b"1",
        f"{namespace}:v1-000000000000:path:x": b"2",
        f"{namespace}:v1:path:1": b"3",
        f"{namespace}:users": b"4",
        f"{namespace}x:v1-000000000000:path:1": b"5",
    }
    client.mset(others)
    store = open_store(url)
    first, second = store.publish(small_version("1")), store.publish(small_version("2"))
    client.set(f"{namespace}:{first}:notes", b"6")
    store.activate(second)

    store.delete(first)
    store.sweep()

    assert client.mget(list(others)) == list(others.values())
    assert client.get(f"{namespace}:{first}:notes") == b"6"
    assert keys_of(client, namespace) & {f"{namespace}:{first}:manifest", f"{namespace}:{first}:path:3"} == set()


def test_a_number_is_never_given_twice(url: str) -> None:
    """Not even after the newest version was deleted, and published again."""
    store = open_store(url)
    store.delete(store.publish(small_version("1")))

    assert store.publish(small_version("1")).startswith("v2-")


# -- refusals --


def test_a_server_that_may_evict_is_refused(own: RedisServer) -> None:
    """The error names the policy to set, and nothing is written."""
    with own.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        with pytest.raises(StoreMisconfigured, match="set it to noeviction"):
            open_store(own.url).publish(small_version())

        assert keys_of(client, "dr") == {"dr:counter:{dr:versions}"}


def test_a_server_without_room_is_refused(own: RedisServer) -> None:
    """The error gives the bytes needed and free, and nothing is written."""
    with own.client() as client:
        client.config_set("maxmemory", client.info("memory")["used_memory"] + 1_500_000)
        with pytest.raises(StoreFull, match=r"needs 2 MiB .* has 1 MiB free"):
            open_store(own.url).publish(large_version())

        assert keys_of(client, "dr") == {"dr:counter:{dr:versions}"}


def test_a_server_that_fills_up_during_a_publish_keeps_nothing_of_it(own: RedisServer) -> None:
    """The publish fails, other versions stay as they were, and pruning makes room although the server is full."""
    store = open_store(own.url)
    with own.client() as client:
        old = [store.publish(small_version(str(i))) for i in range(3)]
        store.activate(old[2])
        before = keys_of(client, "dr")

        def fill(done: int, total: int) -> None:
            client.config_set("maxmemory", 1)

        with pytest.raises(StoreFull, match="out of memory"):
            store.publish(large_version(), fill)

        assert keys_of(client, "dr") - {"dr:leases"} == before
        store.load(old[2]).verify_digests()
        assert prune(store, keep=1) == old[:2]
        client.config_set("maxmemory", 0)
        store.load(store.publish(large_version()))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("current", b"a session of somebody"),
        ("current", ["a", "list"]),
        ("versions", b"a string"),
        ("versions", {"release": "1.0"}),
        ("versions", {"1.0"}),
        ("current", b"42"),
        ("versions", {"v1", "v2"}),
        ("counter:{%s:versions}", b"1000"),
        ("leases", {b"\xff": 10}),
        ("leases", {"alice": 10}),
    ],
)
def test_another_applications_namespace_is_refused(
    url: str, client: Any, namespace: str, key: str, value: object
) -> None:
    """Every verb that comes across the key raises an error that says what to do, and the key stays as it was."""
    name = f"{namespace}:{key}".replace("%s", namespace)
    if key == "leases":
        assert isinstance(value, dict)
        client.zadd(name, value)
    elif isinstance(value, bytes):
        client.set(name, value)
    elif isinstance(value, list):
        client.rpush(name, *value)
    elif isinstance(value, dict):
        client.hset(name, mapping=value)
    else:
        assert isinstance(value, set)
        client.sadd(name, *value)
    before = client.dump(name)
    store = open_store(url)

    with pytest.raises(StoreMisconfigured, match=r"choose .*namespace="):
        store.publish(small_version())
    with pytest.raises(StoreMisconfigured, match=r"choose .*namespace="):
        store.require_writable() if key[0] in "cl" else store.versions()

    assert client.dump(name) == before
    assert keys_of(client, namespace) == {name}


def test_a_wrong_password_is_reported(tmp_path: Path) -> None:
    """The error names DR_STORE_PASSWORD and does not repeat the password, wherever it came from."""
    with running(RedisServer(tmp_path / "redis", "--requirepass", "right-one")) as server:
        for url, password in (
            (server.url, None),
            (server.url, "hunter2"),
            (server.url.replace("//", "//:hunter2@"), None),
            (server.url.replace("//", "//nobody:hunter2@"), None),
        ):
            with pytest.raises(StoreMisconfigured, match="DR_STORE_PASSWORD") as caught:
                open_store(url, password=password).current()
            assert "hunter2" not in str(caught.value)

        assert open_store(server.url, password="right-one").current() is None


def test_a_user_without_permission_is_reported(own: RedisServer) -> None:
    """The error names the command that the user may not run."""
    with own.client() as client:
        client.execute_command("ACL", "SETUSER", "reader", "on", ">pw", "~dr:*", "+@read", "+@connection", "+time")
    store = open_store(own.url.replace("//", "//reader:pw@"))

    assert store.versions() == []
    with pytest.raises(StoreMisconfigured, match=r"may not do this .*zadd"):
        store.activate("v1-000000000000")


def test_a_wrong_database_is_reported(own: RedisServer) -> None:
    """The URL has the number of a database that the server does not have."""
    with pytest.raises(StoreMisconfigured, match="no such database"):
        open_store(own.url.replace("/0", "/99")).current()


def test_a_cluster_and_a_single_server_are_not_confused(own: RedisServer, redis_cluster: list[RedisServer]) -> None:
    """A URL for the other kind of server raises an error that says which scheme to write."""
    with pytest.raises(StoreMisconfigured, match=r"write redis://"):
        open_store(f"redis+cluster://127.0.0.1:{own.port}").current()
    with pytest.raises(StoreMisconfigured, match=r"write redis\+cluster://"):
        open_store(redis_cluster[0].url).current()


OLD = {
    "5": b"-ERR unknown command 'HELLO', with args beginning with: '3'\r\n",
    "6": b"%3\r\n$7\r\nversion\r\n$6\r\n6.2.14\r\n$5\r\nproto\r\n:3\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n",
}


@pytest.mark.parametrize("release", OLD)
def test_a_server_that_is_too_old_is_refused(release: str) -> None:
    """Redis 5 does not know HELLO; Redis 6 gives its release in the answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                while request := connection.recv(4096):
                    for command in filter(None, re.split(rb"(?=\*\d+\r\n\$)", request)):
                        connection.sendall(OLD[release] if b"HELLO" in command else b"+OK\r\n")

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(StoreMisconfigured, match="upgrade it to Redis 7"):
            open_store(f"redis://127.0.0.1:{listener.getsockname()[1]}").current()


def test_a_server_that_does_not_answer_is_named() -> None:
    """The error names the port."""
    port = free_port()
    for scheme in ("redis", "redis+cluster", "rediss"):
        with pytest.raises(StoreUnavailable, match=f"{port}.*no answer"):
            open_store(f"{scheme}://127.0.0.1:{port}").current()


def test_tls(tmp_path: Path) -> None:
    """With the authority in the URL the store works; without it the certificate is refused."""
    ca = tmp_path / "cert.pem"
    names = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(ca)]
    request = [program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *names, *files]
    subprocess.run(request, check=True, capture_output=True)
    port = free_port()
    tls = ["--tls-port", str(port), "--tls-cert-file", str(ca), "--tls-key-file", str(tmp_path / "key.pem")]
    tls += ["--tls-ca-cert-file", str(ca), "--tls-auth-clients", "no"]
    with running(RedisServer(tmp_path / "redis", *tls, binary=program("redis-server"))):
        store = open_store(f"rediss://127.0.0.1:{port}?ssl_ca_certs={ca}")
        store.load(store.publish(small_version()))

        with pytest.raises(StoreMisconfigured, match="certificate"):
            open_store(f"rediss://127.0.0.1:{port}").current()


def test_a_version_of_a_newer_format_is_refused(url: str, client: Any, namespace: str) -> None:
    """It is not listed, and loading it raises an error that says to upgrade."""
    store = open_store(url)
    name = store.publish(small_version())
    key = f"{namespace}:{name}:manifest"
    client.set(key, json.dumps(json.loads(client.get(key) or b"") | {"format": FORMAT + 1}))

    with pytest.raises(VersionIncompatible, match="upgrade"):
        store.load(name)
    assert store.versions() == []


# -- damage --


@pytest.mark.parametrize("key", ["path:3", "blob:model.onnx:0", "blob:path_ids.npy:0", "manifest"])
@pytest.mark.parametrize("how", ["missing", "other bytes"])
def test_damage_is_noticed_and_repaired(url: str, client: Any, namespace: str, key: str, how: str) -> None:
    """Loading reports the damage; publishing the same version again repairs it under the same name."""
    store = open_store(url)
    name = store.publish(small_version())
    full = f"{namespace}:{name}:{key}"
    content = client.get(full) or b""
    client.delete(full)
    if how == "other bytes":
        client.set(full, content[:-1] + bytes([content[-1] ^ 1]))

    with pytest.raises(VersionDamaged):
        store.load(name)

    assert store.publish(small_version()) == name
    store.load(name).verify_digests()


def test_a_version_that_lost_keys_on_a_cluster_node_is_not_activated(
    redis_cluster: list[RedisServer], namespace: str
) -> None:
    """Nodes fail over one by one, so each node is asked for its keys before `current` moves."""
    store = open_store(f"redis+cluster://127.0.0.1:{redis_cluster[0].port}?namespace={namespace}")
    name = store.publish(large_version())
    with redis_cluster[1].client() as node:
        lost = list(node.scan_iter(match=f"{namespace}:{name}:path:*", count=1000))
        node.unlink(lost[0])

    with pytest.raises(VersionDamaged, match="has 0 bytes instead of"):
        store.activate(name)

    assert store.current() is None
    assert len(lost) > 500


def test_the_service_user_of_the_stack_can_follow_a_cluster(redis_cluster: list[RedisServer]) -> None:
    """With the rights that docker-compose.yml gives it, the user can read, activate, hold versions and append to the
    log, but not publish.
    """
    compose = yaml.safe_load((Path(__file__).parent.parent / "docker-compose.yml").read_text())
    words = compose["x-redis-command"]
    rules = [word for word in words[words.index("service") + 1 :] if not word.startswith(">")]
    for server in redis_cluster:
        with server.client() as node:
            node.execute_command("ACL", "SETUSER", "service", "reset", *rules, ">pw")
    url = f"redis+cluster://127.0.0.1:{redis_cluster[0].port}"
    admin, store = open_store(url), open_store(url.replace("//", "//service:pw@"), remote=True, timeout=5)
    first, second = admin.publish(small_version("1")), admin.publish(small_version("2"))
    store.hold([first])
    store.wait(0.01)

    assert store.activate(first) is None
    assert store.activate(second, expected=first) == first
    assert store.wait(60)
    assert PathIndex.of(store.load(second)).read(np.array([0]), 5).items.tolist() == [0, 2]
    with pytest.raises(StoreMisconfigured):
        store.publish(small_version("3"))
    store.hold([])

    assert store.append([Draft("p", 1, [{}])]) == [1]
    assert [record.seq for record in store.read(START, 10)] == [1]
    assert store.log_start() == START
    assert store.log_end().seq == 1
    with pytest.raises(StoreMisconfigured):
        store.trim(2)
    service = redis.RedisCluster(host="127.0.0.1", port=redis_cluster[0].port, username="service", password="pw")
    assert store.append([Draft("p", 1, [{}])], "events") == [1]
    forbidden = [("UNLINK", "dr:log"), ("SET", "dr:log", "x"), ("XTRIM", "dr:log", "MAXLEN", "0")]
    for command in (*forbidden, ("XTRIM", "dr:events", "MAXLEN", "0"), ("UNLINK", "dr:events")):
        with pytest.raises(redis.exceptions.NoPermissionError):
            service.execute_command(*command)  # type: ignore[no-untyped-call]
    service.close()

"""A client of a Redis 7 or Valkey server or cluster: the commands that a store needs, and the translation of errors.

Only this module calls the client library. There are two retry policies. Outside of requests, a command gets three tries
of three seconds, so that a restart of the server causes no error. During a request, a command gets one short try,
because waiting would delay the requests in the queue.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from index_store.address import Address
from index_store.errors import IndexStoreError, StoreFull, StoreMisconfigured, StoreUnavailable
from index_store.redis import tls
from index_store.version import Buffer

OLDEST = 7  # oldest major release that is supported
TIMEOUT = 3.0  # seconds for one answer, outside of requests
RETRIES = 2  # further tries after the first, outside of requests
CONNECTIONS = 8  # per process and retry policy; a thread waits while all connections are in use
SCANNED = 1000  # keys examined in one step of a scan

#: All errors of the library. Errors of the cluster client have a separate base class.
FAILURES = (redis.RedisError, redis.exceptions.RedisClusterException, OSError)

#: Messages with which a cluster node rejects the user. The library has no error class for these messages.
REFUSED_USER = ("WRONGPASS", "NOAUTH", "invalid username-password pair", "must be called with the client already")

Command = tuple[str | int | float | Buffer, ...]


class Server:
    """A client that connects on first use.

    Every method except `wait` raises StoreUnavailable, StoreMisconfigured or StoreFull.
    """

    def __init__(self, address: Address, request_timeout: float) -> None:
        self.address = address
        self._request_timeout = request_timeout
        self._hints: Any = None  # the subscription that `wait` reads

    @functools.cached_property
    def _client(self) -> Any:
        client = _connect(self.address, TIMEOUT, Retry(ExponentialBackoff(cap=0.5, base=0.05), RETRIES))
        _check_release(client, self.address)
        return client

    @functools.cached_property
    def _request_client(self) -> Any:
        return _connect(self.address, self._request_timeout, Retry(NoBackoff(), 0))

    def get(self, keys: Sequence[str]) -> list[bytes | None]:
        """The values of `keys`, in one round trip to each node."""
        return self._pipelined([("GET", key) for key in keys])

    def put(self, entries: Sequence[tuple[str, Buffer]]) -> None:
        """Write keys. Each single write is atomic, but the group of writes is not."""
        self._pipelined([("SET", key, value) for key, value in entries])

    def remove(self, keys: Sequence[str | bytes]) -> None:
        """Remove keys. The server frees the memory in the background, so that other clients need not wait."""
        self._pipelined([("UNLINK", key) for key in keys])

    def sizes(self, keys: Sequence[str]) -> list[int]:
        """The size of each value in bytes; 0 for a missing key."""
        return self._pipelined([("STRLEN", key) for key in keys])

    def heads(self, keys: Sequence[str], sizes: Sequence[int]) -> list[bytes]:
        """The first sizes[i] bytes of value i; empty for a missing key. For use during requests: one short try."""
        with self._errors():
            pipe = self._request_client.pipeline(transaction=False)
            for key, size in zip(keys, sizes, strict=True):
                pipe.getrange(key, 0, size - 1)
            values: list[bytes] = pipe.execute()
            return values

    def scan(self, pattern: str) -> Iterator[bytes]:
        """All keys of every node that match. A key created or removed during the scan may be included."""
        with self._errors():
            yield from self._client.scan_iter(match=pattern, count=SCANNED)

    def members(self, *keys: str) -> set[bytes]:
        """The union of the sets, read atomically. The keys must be in one slot of a cluster."""
        with self._errors():
            return set(self._client.sunion(keys) if len(keys) > 1 else self._client.smembers(keys[0]))

    def discard(self, key: str, member: str) -> bool:
        """Remove a member from a set. Returns whether the member was in the set."""
        with self._errors():
            return bool(self._client.srem(key, member))

    def move(self, member: str, old: str, new: str) -> bool:
        """Move a member from the set `old` to the set `new` in the same slot. Returns whether it was in `old`."""
        with self._errors():
            return bool(self._client.smove(old, new, member))

    def transact(self, keys: Sequence[str], change: Callable[[Any], Sequence[Command] | None]) -> None:
        """Run the commands that `change(read)` returns as one transaction. If `keys` changed meanwhile, start again.

        `read` has the client's `get`, `smembers` and `xrevrange`. If `change` returns None, nothing is
        written. All keys must be in one slot.
        """
        with self._errors():
            while True:
                with self._client.pipeline(transaction=True) as pipe:
                    pipe.watch(*keys)
                    commands = change(pipe)
                    if commands is None:
                        return
                    pipe.multi()
                    for command in commands:
                        pipe.execute_command(*command)
                    try:
                        pipe.execute()
                    except redis.WatchError:
                        continue
                    return

    def entries(self, key: str, first: int, count: int) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """At most `count` entries of a stream, from the entry `first`-0 on."""
        with self._errors():
            return list(self._client.xrange(key, f"{first}-0", count=count))

    def last_entry(self, key: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """The last entry of a stream, or []."""
        with self._errors():
            return list(self._client.xrevrange(key, count=1))

    def trim(self, key: str, before: int) -> None:
        """Remove the entries of a stream before `before`-0."""
        with self._errors():
            self._client.xtrim(key, minid=f"{before}-0", approximate=False)

    def lease(self, key: str, member: str, milliseconds: int) -> None:
        """Add or renew a lease in the set of leases. The lease ends `milliseconds` from now by the server's clock."""
        with self._errors():
            self._client.zadd(key, {member: self._now(key) + milliseconds})

    def release(self, key: str, members: Sequence[str]) -> None:
        """Remove leases."""
        with self._errors():
            self._client.zrem(key, *members)

    def leases(self, key: str) -> dict[bytes, float]:
        """All leases with the ms until each ends by the server's clock; 0 or less for an ended lease."""
        with self._errors():
            now = self._now(key)
            return {member: float(end) - now for member, end in self._client.zrange(key, 0, -1, withscores=True)}

    def memory(self) -> list[Mapping[str, Any]]:
        """The memory statistics of each node that accepts writes."""
        with self._errors():
            if not self.address.cluster:
                return [self._client.info("memory")]
            nodes = self._client.info("memory", target_nodes=redis.RedisCluster.PRIMARIES)
            return [nodes] if "used_memory" in nodes else list(nodes.values())

    def full(self) -> bool:
        """Whether a node has reached its memory limit and refuses commands that need memory."""
        return any(0 < memory["maxmemory"] <= memory["used_memory"] for memory in self.memory())

    def tell(self, channel: str, message: str) -> None:
        """Publish a message that wakes all clients waiting on `channel`."""
        with self._errors():
            self._client.publish(channel, message)

    def wait(self, channel: str, seconds: float) -> bool:
        """Whether a message arrived on `channel` within `seconds`. Never raises. For one thread at a time."""
        end = time.monotonic() + seconds
        try:
            if self._hints is None:
                self._hints = self._request_client.pubsub(ignore_subscribe_messages=True)
                self._hints.subscribe(channel)
            while (left := end - time.monotonic()) > 0:
                if self._hints.get_message(timeout=left):
                    return True
        except (*FAILURES, IndexStoreError):
            if self._hints is not None:
                with suppress(*FAILURES):
                    self._hints.close()
            self._hints = None
            time.sleep(max(0.0, end - time.monotonic()))
        return False

    def _pipelined(self, commands: Sequence[Command]) -> list[Any]:
        with self._errors():
            pipe = self._client.pipeline(transaction=False)
            for command in commands:
                pipe.execute_command(*command)
            answers: list[Any] = pipe.execute()
            return answers

    def _now(self, key: str) -> int:
        """The time in ms on the node that has `key`. The clocks of nodes and clients may differ."""
        node = {"target_nodes": self._client.get_node_from_key(key)} if self.address.cluster else {}
        seconds, microseconds = self._client.time(**node)
        return int(seconds) * 1000 + int(microseconds) // 1000

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except FAILURES as error:
            raise _translate(error, self.address) from error


def _connect(address: Address, timeout: float, retry: Retry) -> Any:
    options: dict[str, Any] = {
        "username": address.user,
        "password": address.password,
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry": retry,
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),  # only hosted Redis sends them
    }
    if address.tls:
        options["ssl_ca_certs"] = address.ca_file
        options["ssl_certfile"] = address.cert_file
        options["ssl_keyfile"] = address.key_file
        options["ssl_password"] = ""
    if address.cluster:
        return redis.RedisCluster(host=address.host, port=address.port, ssl=address.tls, **options)
    pool = redis.BlockingConnectionPool(  # type: ignore[no-untyped-call]
        max_connections=CONNECTIONS,
        timeout=timeout,
        connection_class=redis.SSLConnection if address.tls else redis.Connection,
        host=address.host,
        port=address.port,
        db=address.db,
        **options,
    )
    return redis.Redis(connection_pool=pool)


def _check_release(client: Any, address: Address) -> None:
    node = {"target_nodes": client.get_default_node()} if address.cluster else {}
    hello = client.execute_command("HELLO", **node)
    facts = hello if isinstance(hello, dict) else dict(zip(hello[::2], hello[1::2], strict=True))
    release = facts[b"version"].decode()
    if int(release.partition(".")[0]) < OLDEST:
        raise StoreMisconfigured(f"{address}: the server is release {release}; upgrade it to Redis {OLDEST} or Valkey")
    if facts.get(b"mode") == b"cluster" and not address.cluster:
        raise StoreMisconfigured(f"{address}: the server is a node of a cluster; write redis+cluster:// in the URL")


def _translate(error: Exception, address: Address) -> IndexStoreError:  # noqa: PLR0911 -- a table in prose
    """Translate the library's error into ours. The server's own text is kept, because it never contains a password."""
    text = str(error)
    if isinstance(error, redis.AuthenticationError | redis.exceptions.AuthorizationError) or any(
        words in text for words in REFUSED_USER
    ):
        return StoreMisconfigured(
            f"{address}: the server rejects the user or password; correct them in the URL or DR_STORE_PASSWORD"
        )
    if isinstance(error, redis.exceptions.NoPermissionError):
        return StoreMisconfigured(
            f"{address}: the user may not do this ({text}); docs/operate.md lists the rights it needs"
        )
    if isinstance(error, redis.exceptions.OutOfMemoryError):
        return StoreFull(f"{address}: the server is out of memory; delete versions with `dr-index prune`")
    if isinstance(error, redis.exceptions.ReadOnlyError):
        return StoreMisconfigured(f"{address}: the server is a replica; name the primary in the URL")
    if "WRONGTYPE" in text:
        return StoreMisconfigured(
            f"{address}: a key has a wrong type, so another application uses it; choose another ?namespace= in the URL"
        )
    if "DB index is out of range" in text:
        return StoreMisconfigured(f"{address}: the server has no such database; correct the number in the URL")
    if "unknown command" in text and "HELLO" in text.upper():
        return StoreMisconfigured(f"{address}: the server is too old; upgrade it to Redis {OLDEST} or Valkey")
    if "Cluster mode is not enabled" in text:
        return StoreMisconfigured(f"{address}: the server is not in cluster mode; write redis:// in the URL")
    if tls_error := tls.translate(error, address):
        return tls_error
    if isinstance(error, redis.ResponseError):
        return StoreUnavailable(f"{address}: the server refused a command: {text}")
    return StoreUnavailable(f"{address}: no answer ({text or type(error).__name__}); {tls.question(error, address)}")

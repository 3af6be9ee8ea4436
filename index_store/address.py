"""What a Redis URL says: which server, as whom, and under which namespace."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from index_store.errors import InvalidName

SCHEMES = ("redis", "rediss", "redis+cluster", "rediss+cluster")
#: No colon, so that no namespace is inside another; no brace, or a cluster would put all keys on one node.
NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
FORM = "redis://[user:password@]host[:port][/db][?namespace=dr&ssl_ca_certs=FILE]"
HINT = f"expected {FORM}, with '#', '/', '?' and '@' of a password percent-encoded"


@dataclass(frozen=True)
class Address:
    """A Redis server, or any node of a cluster. Shown without user and password."""

    host: str
    port: int = 6379
    db: int = 0
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    namespace: str = "dr"
    cluster: bool = False
    tls: bool = False
    ca_file: str | None = None  # certificate authorities that TLS trusts; None: the system's

    def __str__(self) -> str:
        return f"{self.host}:{self.port}" + ("" if self.cluster else f" database {self.db}")

    @classmethod
    def parse(cls, url: str, password: str | None = None) -> Address:
        """Read `url`; `password` is used where it has none. Raises InvalidName, which never repeats the URL."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise InvalidName(f"store URL: a port or host that is none; {HINT}") from None
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        odd = sorted(set(options) - {"namespace", "ssl_ca_certs"})
        if odd:
            raise InvalidName(f"store URL: an option that is neither namespace nor ssl_ca_certs; {HINT}")
        if not parts.hostname or parts.fragment:
            raise InvalidName(f"store URL: the host is missing or cut off; {HINT}")
        namespace = options.get("namespace", cls.namespace)
        if not NAMESPACE.fullmatch(namespace):
            raise InvalidName("store URL: a namespace is 1 to 64 letters, digits, '.', '_' and '-'; change ?namespace=")
        db = parts.path.removeprefix("/")
        cluster, tls = parts.scheme.endswith("+cluster"), parts.scheme.startswith("rediss")
        if db and not (db.isascii() and db.isdecimal()):
            raise InvalidName(f"store URL: the database is a number; expected {FORM}")
        if cluster and int(db or 0):
            raise InvalidName("store URL: a Redis Cluster has database 0 only; separate by ?namespace= instead")
        if not tls and "ssl_ca_certs" in options:
            raise InvalidName("store URL: ssl_ca_certs is for TLS; write rediss:// or rediss+cluster://")
        authorities = options.get("ssl_ca_certs")
        if authorities is not None and not Path(authorities).is_file():
            raise InvalidName(f"store URL: ssl_ca_certs: no such file as {authorities}")
        return cls(
            parts.hostname,
            6379 if port is None else port,
            int(db or 0),
            unquote(parts.username) if parts.username else None,
            unquote(parts.password) if parts.password else password or None,
            namespace,
            cluster,
            tls,
            authorities,
        )

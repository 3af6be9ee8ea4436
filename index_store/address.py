"""What a store URL says: which folder; or which Redis server, as whom, and under which namespace."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, unquote, unquote_to_bytes, urlsplit

from index_store.errors import InvalidName

SCHEMES = ("redis", "rediss", "redis+cluster", "rediss+cluster")
#: No colon, so that no namespace is inside another; no brace, or a cluster would put all keys on one node.
NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")  # redis-py's names
FORM = "redis://[user:password@]host[:port][/db][?namespace=dr&ssl_ca_certs=FILE&ssl_certfile=FILE&ssl_keyfile=FILE]"
HINT = f"expected {FORM}, with '#', '/', '?' and '@' of a password percent-encoded"

#: Beginnings that are refused as a plain path: a scheme, a host and port, user:password@host. `./name` allows them.
NO_NAME = re.compile(r"(//)?[^/]*:")
HOST_AND_PORT = re.compile(r"(//)?([^/@]*@)?(\[[0-9a-fA-F:.]+\]|[^/:@]*):\d+(/|\?|$)")
PLAIN = "a folder whose name has a ':' is written ./name or with its whole path"
WINDOWS = re.compile(r"[A-Za-z]:([/\\]|$)|\.{0,2}\\")


def folder_of(url: str, setting: str = "store URL") -> Path | None:
    """The folder that `url` names, absolute; None if it names a server. Raises InvalidName, without repeating the URL.

    A folder is a plain path, in which a leading ~ is the home folder, or a file URL as in RFC 8089. What looks like
    another URL, or like a host and port, is refused: as a file name it would make a new, empty store.
    """
    try:
        return _folder(url.strip())
    except ValueError as error:
        raise InvalidName(f"{setting}: {error}") from None


def _folder(url: str) -> Path | None:
    if url[:1] in {"'", '"'} and url[-1:] == url[:1]:
        raise ValueError("it begins and ends with a quotation mark; leave them out")
    if WINDOWS.match(url):
        raise ValueError("expected a path with '/' or file:///dir, found a path of Windows")
    scheme, separator, rest = url.partition(":")
    scheme = scheme.lower()
    if separator and scheme in SCHEMES:
        if not rest.startswith("//"):
            raise ValueError(f"'//' is missing after the scheme; expected {FORM}")
        return None
    if separator and scheme == "file":
        return _absolute(_path_of_file_url(rest))
    if NO_NAME.match(url):
        raise ValueError(f"expected a path, file:///dir or redis://host:port/db, found {_found(url)}; {PLAIN}")
    return _absolute(url)


def _readable(option: str, name: str) -> str:
    """The file that an option names, ~ expanded. Raises InvalidName unless it can be read."""
    try:
        file = Path(name).expanduser()
        with file.open("rb"):
            return str(file)
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not the name of a file"
        raise InvalidName(f"store URL: {option}: {name!r} cannot be read: {reason}") from None


def _path_of_file_url(rest: str) -> str:
    """The path of what follows `file:`, decoded. The same folder is file:/x, file:///x and file://localhost/x."""
    form = "expected file:///absolute/folder; a relative one is written as a plain path"
    if "?" in rest or "#" in rest:
        raise ValueError(f"a file URL has no '?' and no '#'; in a name they are %3F and %23; {form}")
    if re.search(r"%(?![0-9A-Fa-f]{2})|%00", rest):
        raise ValueError(f"a '%' without two hexadecimal digits, or %00; a '%' in a name is %25; {form}")
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host.lower() not in {"", "localhost"}:
            raise ValueError(f"between file:// and the next '/' is a host, and only localhost can be; {form}")
        rest = slash + path
    if not rest.strip("/"):
        raise ValueError("the folder is missing; write file:///absolute/folder or a path")
    if not rest.startswith("/"):
        raise ValueError(f"a file URL with a relative path; {form}")
    if rest.startswith("/~"):
        raise ValueError(f"'~' is the home folder in plain paths only: write ~/folder; {form}")
    path = os.fsdecode(unquote_to_bytes(rest))
    if WINDOWS.match(path[1:]):
        raise ValueError(f"a path of Windows; {form}")
    return path


def _found(url: str) -> str:
    scheme, separator, _ = url.partition("://")
    if separator:
        return f"the scheme {scheme!r}" if re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme) else "something else"
    if HOST_AND_PORT.match(url):
        return "a host and port without a scheme (redis://)"
    return "something else before the first ':'"


def _absolute(path: str) -> Path:
    """The same path from the root. ~ is the home folder of this user, ~name of another."""
    if not path:
        raise ValueError("the folder is missing; write file:///absolute/folder or a path")
    try:
        if path.startswith("~") and not os.environ.get("HOME", "/").startswith("/"):
            raise RuntimeError  # empty or relative: as good as not set
        return (Path(path).expanduser() if path.startswith("~") else Path(path)).absolute()
    except RuntimeError:
        raise ValueError("'~': this user has no home folder, or HOME is not set; write the whole path") from None
    except OSError as error:
        raise ValueError(f"a relative path, and the working folder: {error.strerror}") from None


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
    cert_file: str | None = None  # the client's certificate, for a server that wants one
    key_file: str | None = None  # and its key; None: it is in the same file

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
        if options.keys() - {"namespace", *TLS_FILES}:
            raise InvalidName(f"store URL: an option that is neither namespace nor {', '.join(TLS_FILES)}; {HINT}")
        if not parts.hostname or parts.fragment:
            raise InvalidName(f"store URL: the host is missing or cut off; {HINT}")
        namespace = options.get("namespace", cls.namespace)
        if not NAMESPACE.fullmatch(namespace):
            raise InvalidName("store URL: a namespace is 1 to 64 letters, digits, '.', '_' and '-'; change ?namespace=")
        db = parts.path.removeprefix("/")
        cluster, tls = parts.scheme.endswith("+cluster"), parts.scheme.startswith("rediss")
        if db and not (db.isascii() and db.isdecimal() and len(db) < 10):
            raise InvalidName(f"store URL: the database is a number; expected {FORM}")
        if cluster and int(db or 0):
            raise InvalidName("store URL: a Redis Cluster has database 0 only; separate by ?namespace= instead")
        for option in [name for name in TLS_FILES if name in options]:
            if not tls:
                raise InvalidName(f"store URL: {option} is for TLS; write rediss:// or rediss+cluster://")
            options[option] = _readable(option, options[option])
        if "ssl_keyfile" in options and "ssl_certfile" not in options:
            raise InvalidName("store URL: ssl_keyfile without ssl_certfile; name the certificate that the key is for")
        return cls(
            parts.hostname,
            6379 if port is None else port,
            int(db or 0),
            unquote(parts.username) if parts.username else None,
            unquote(parts.password) if parts.password else password or None,
            namespace,
            cluster,
            tls,
            *map(options.get, TLS_FILES),
        )

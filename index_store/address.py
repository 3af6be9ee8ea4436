"""Parse a store URL, which names a folder, or a Redis server with a user, a password and a namespace."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, unquote, unquote_to_bytes, urlsplit

from index_store.errors import InvalidName

SCHEMES = ("redis", "rediss", "redis+cluster", "rediss+cluster")
#: A namespace has no colon, so that the key pattern of one namespace matches no key of a different namespace. It has no
#: brace, because a Redis Cluster puts all keys with the same text in braces on one node.
NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")  # redis-py's names
FORM = "redis://[user:password@]host[:port][/db][?namespace=dr&ssl_ca_certs=FILE&ssl_certfile=FILE&ssl_keyfile=FILE]"
HINT = f"expected {FORM}, with '#', '/', '?' and '@' of a password percent-encoded"

#: A plain path may not begin like a URL, host:port or user:password@host. Write such a folder as ./name.
LIKE_A_URL = re.compile(r"(//)?[^/]*:")
HOST_AND_PORT = re.compile(r"(//)?([^/@]*@)?(\[[0-9a-fA-F:.]+\]|[^/:@]*):\d+(/|\?|$)")
PLAIN = "write a folder whose name has a ':' as ./name or as an absolute path"
WINDOWS = re.compile(r"[A-Za-z]:([/\\]|$)|\.{0,2}\\")


def folder_of(url: str, setting: str = "store URL") -> Path | None:
    """The absolute path of the folder that `url` names; None if `url` names a server.

    A folder is a plain path, in which a leading ~ is the home folder, or a file URL as in RFC 8089. Any other text that
    looks like a URL or like a host and port is refused, because used as a path it would create a new, empty store.
    Raises InvalidName, which never repeats the URL.
    """
    try:
        return _folder(url.strip())
    except ValueError as error:
        raise InvalidName(f"{setting}: {error}") from None


def _folder(url: str) -> Path | None:
    if url[:1] in {"'", '"'} and url[-1:] == url[:1]:
        raise ValueError("it is in quotation marks; remove them")
    if WINDOWS.match(url):
        raise ValueError("expected a path with '/' or file:///dir, found a Windows path")
    scheme, separator, rest = url.partition(":")
    scheme = scheme.lower()
    if separator and scheme in SCHEMES:
        if not rest.startswith("//"):
            raise ValueError(f"'//' is missing after the scheme; expected {FORM}")
        return None
    if separator and scheme == "file":
        return _absolute(_path_of_file_url(rest))
    if LIKE_A_URL.match(url):
        raise ValueError(f"expected a path, file:///dir or redis://host:port/db, found {_describe(url)}; {PLAIN}")
    return _absolute(url)


def _readable(option: str, name: str) -> str:
    """The path of the file that `option` names, with ~ expanded. Raises InvalidName unless the file can be read."""
    try:
        file = Path(name).expanduser()
        with file.open("rb"):
            return str(file)
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a valid file name"
        raise InvalidName(f"store URL: {option}: {name!r} cannot be read: {reason}") from None


def _path_of_file_url(rest: str) -> str:
    """Decode `rest`, the text after `file:` of a URL. file:/x, file:///x and file://localhost/x are the same folder."""
    form = "expected file:///absolute/folder; write a relative folder as a plain path"
    if "?" in rest or "#" in rest:
        raise ValueError(f"a file URL cannot have '?' or '#'; in a name, write %3F or %23; {form}")
    if re.search(r"%(?![0-9A-Fa-f]{2})|%00", rest):
        raise ValueError(f"a '%' without two hexadecimal digits, or %00; in a name, write '%' as %25; {form}")
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host.lower() not in {"", "localhost"}:
            raise ValueError(f"the host between file:// and the next '/' can only be localhost; {form}")
        rest = slash + path
    if not rest.strip("/"):
        raise ValueError("the folder is missing; write file:///absolute/folder or a path")
    if not rest.startswith("/"):
        raise ValueError(f"the path of a file URL must be absolute; {form}")
    if rest.startswith("/~"):
        raise ValueError(f"'~' means the home folder only in a plain path; write ~/folder; {form}")
    path = os.fsdecode(unquote_to_bytes(rest))
    if WINDOWS.match(path[1:]):
        raise ValueError(f"found a Windows path; {form}")
    return path


def _describe(url: str) -> str:
    """Describe the text for an error message, without repeating it, because it may contain a password."""
    scheme, separator, _ = url.partition("://")
    if separator:
        return f"the scheme {scheme!r}" if re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme) else "an invalid scheme"
    if HOST_AND_PORT.match(url):
        return "a host and port without a scheme (redis://)"
    return "no known scheme before the first ':'"


def _absolute(path: str) -> Path:
    """The absolute path. A leading ~ is this user's home folder, and ~name is the home folder of the user `name`."""
    if not path:
        raise ValueError("the folder is missing; write file:///absolute/folder or a path")
    try:
        if path.startswith("~") and not os.environ.get("HOME", "/").startswith("/"):
            raise RuntimeError  # an empty or relative HOME counts as not set
        return (Path(path).expanduser() if path.startswith("~") else Path(path)).absolute()
    except RuntimeError:
        raise ValueError("'~': this user has no home folder, or HOME is not set; write the absolute path") from None
    except OSError as error:
        raise ValueError(f"a relative path, but the working folder cannot be read: {error.strerror}") from None


@dataclass(frozen=True)
class Address:
    """The address of a Redis server, or of any node of a cluster. `str` and `repr` omit user and password."""

    host: str
    port: int = 6379
    db: int = 0
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    namespace: str = "dr"
    cluster: bool = False
    tls: bool = False
    ca_file: str | None = None  # certificate authorities that TLS trusts; None: the system's authorities
    cert_file: str | None = None  # the client's certificate, for a server that requires one
    key_file: str | None = None  # the private key of cert_file; None: the key is in cert_file too

    def __str__(self) -> str:
        return f"{self.host}:{self.port}" + ("" if self.cluster else f" database {self.db}")

    @classmethod
    def parse(cls, url: str, password: str | None = None) -> Address:
        """Parse `url`. `password` is used if the URL has none. Raises InvalidName, which never repeats the URL."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise InvalidName(f"store URL: the host or port is not valid; {HINT}") from None
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        if options.keys() - {"namespace", *TLS_FILES}:
            raise InvalidName(f"store URL: an option other than namespace, {', '.join(TLS_FILES)}; {HINT}")
        if not parts.hostname or parts.fragment:
            raise InvalidName(f"store URL: the host is missing or cut off; {HINT}")
        namespace = options.get("namespace", cls.namespace)
        if not NAMESPACE.fullmatch(namespace):
            raise InvalidName("store URL: a namespace is 1 to 64 letters, digits, '.', '_' and '-'; change ?namespace=")
        db = parts.path.removeprefix("/")
        cluster, tls = parts.scheme.endswith("+cluster"), parts.scheme.startswith("rediss")
        if db and not (db.isascii() and db.isdecimal() and len(db) < 10):
            raise InvalidName(f"store URL: the database must be a number; expected {FORM}")
        if cluster and int(db or 0):
            raise InvalidName("store URL: a Redis Cluster has only database 0; use ?namespace= instead of a database")
        for option in [name for name in TLS_FILES if name in options]:
            if not tls:
                raise InvalidName(f"store URL: {option} needs TLS; write rediss:// or rediss+cluster://")
            options[option] = _readable(option, options[option])
        if "ssl_keyfile" in options and "ssl_certfile" not in options:
            raise InvalidName("store URL: ssl_keyfile without ssl_certfile; name the certificate of that key")
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

"""dr-service: serve a store's current version over HTTP."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

from index_store.command import add_version

if TYPE_CHECKING:  # imported where they are used, so that --help is fast
    from index_store.store import IndexStore
    from service.process.settings import Settings

log = logging.getLogger("service")

EXAMPLE = """example:
  DR_ADMIN_TOKEN=change-me dr-service --store ./demo-store --port 8000
  curl -s localhost:8000/v1/retrieve -H 'content-type: application/json' -d '{"history": ["85123A"], "k": 10}'

Every setting is also an environment variable, DR_STORE, DR_PORT, DR_ADMIN_TOKEN, ...; docs/reference.md lists
them."""


def make_parser() -> argparse.ArgumentParser:
    """The command line of dr-service."""
    parser = argparse.ArgumentParser(
        prog="dr-service", description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", metavar="URL", help="a folder, redis://host:port/db, redis+cluster://host:port")
    parser.add_argument("--host", metavar="H", help="address to listen on; default 127.0.0.1")
    parser.add_argument("--port", metavar="P", help="port to listen on; default 8000")
    parser.add_argument("--workers", metavar="N", help="processes; default 1")
    add_version(parser)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the service until a signal stops it; returns the exit status."""
    options = vars(make_parser().parse_args(arguments))

    from pydantic import ValidationError

    from index_store.errors import InvalidName
    from service.process.settings import Settings, mistakes, unknown

    flags = {name: value for name, value in options.items() if value is not None}
    warnings = unknown(os.environ)
    for name in [name for name in os.environ if name.upper().startswith("DR_") and name != name.upper()]:
        del os.environ[name]  # Settings ignores case, so this variable could override a flag
    # Workers are separate processes and read all settings, also those given as flags, from the environment.
    os.environ.update({f"DR_{name.upper()}": value for name, value in flags.items()})
    try:
        wrong = [f"--{name}: expected a value, found {value!r}" for name, value in flags.items() if not value.strip()]
        settings = Settings()
        _open_store(settings)
    except ValidationError as error:
        wrong += mistakes(error, flags)
    except InvalidName as error:
        wrong += [str(error)]
    if wrong:
        print("\n".join(f"dr-service: {line}" for line in wrong), file=sys.stderr)
        return 2
    _log_to_stderr()
    for line in warnings:
        log.warning("%s", line)
    if problem := _listen_problem(settings.host, settings.port):
        print(f"dr-service: {problem}", file=sys.stderr)
        return 1

    import uvicorn

    from retrieval.query import Limits
    from service.http.connection import Connection

    # These handlers end the process before uvicorn has installed its own handlers. They also end it after uvicorn has
    # stopped, because uvicorn then raises once more the signal that stopped it. While uvicorn serves,
    # service/process/draining.py handles both signals.
    for each in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, lambda *_: sys.exit(0))
    try:
        uvicorn.run(
            "service.__main__:app",
            factory=True,
            host=settings.host,
            port=settings.port,
            workers=settings.workers,
            access_log=False,
            server_header=False,
            log_config=None,
            http=Connection,
            timeout_keep_alive=settings.keep_alive_seconds,
            ws="none",  # there are no websockets; uvicorn would log the path of each request for a websocket
            timeout_graceful_shutdown=Limits.TIMEOUT_MS // 1000,  # the longest timeout of a request
            timeout_worker_healthcheck=60,  # a worker that loads a large version may answer late
        )
    except SystemExit as end:
        return min(int(end.code or 0), 1)  # uvicorn has logged the cause; its own exit statuses are not ours
    return 0


def _listen_problem(host: str, port: int) -> str | None:
    """The reason why the service cannot listen at `host` and `port`, or None.

    Checked before a version is loaded, because loading may take minutes.
    """
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            try:
                probe = socket.socket(family, kind, protocol)
            except OSError:
                continue  # the system has no IPv6; the server skips this address too
            with probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
    except (OSError, UnicodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "not a host"
        if isinstance(error, socket.gaierror | UnicodeError):
            reason += "; expected a host name or an address, without scheme, port, brackets or quotes"
        return f"cannot listen on {host} port {port} (--host, DR_HOST; --port, DR_PORT): {reason}"
    return None


def app() -> object:
    """The app of one process, with settings from the environment. uvicorn calls this function in every worker."""
    from service.http.app import create_app
    from service.process.settings import Settings

    _log_to_stderr()
    settings = Settings()
    made = create_app(settings, _open_store(settings))
    _tune()
    return made


def _tune() -> None:
    """Change three settings of Python whose defaults cost latency. Called after all imports."""
    # Seconds that a thread may run while another thread waits for the interpreter. Python's default of 5 ms is as long
    # as ten searches.
    sys.setswitchinterval(0.0002)
    # The 150,000 objects of imported modules are never garbage. Each collection that went through them stopped all
    # requests for 40 ms.
    gc.collect()
    gc.freeze()
    # A request's objects are freed without the garbage collector. Its default, a collection every 700 new objects, cost
    # 6 % of the answers a second.
    gc.set_threshold(20_000)


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)


def _open_store(settings: Settings) -> IndexStore:
    from index_store.store import open_store

    return open_store(
        settings.store,
        password=settings.store_password.get_secret_value() if settings.store_password else None,
        cache=settings.cache,
        remote=settings.residency == "remote",
        timeout=settings.store_timeout_ms / 1000,
    )


if __name__ == "__main__":
    sys.exit(main())

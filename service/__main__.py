"""dr-service: serve a store's current version over HTTP."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imported where they are used, so that --help is fast
    from index_store.store import IndexStore
    from service.settings import Settings

EXAMPLE = """example:
  DR_ADMIN_TOKEN=change-me dr-service --store ./demo-store --port 8000
  curl -s localhost:8000/v1/retrieve -H 'content-type: application/json' -d '{"history": ["85123A"], "k": 10}'

Every setting is also an environment variable, DR_STORE, DR_PORT, DR_ADMIN_TOKEN, ...; the README lists them."""


#: How long a thread may keep the interpreter while another waits; Python's own 5 ms are ten searches.
SWITCH_SECONDS = 0.0002


def main(arguments: list[str] | None = None) -> int:
    """Run the service until it is told to stop; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="dr-service", description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", metavar="URL", help="a folder, redis://host:port/db, redis+cluster://host:port")
    parser.add_argument("--host", metavar="H", help="address to listen on; default 127.0.0.1")
    parser.add_argument("--port", metavar="P", help="port to listen on; default 8000")
    parser.add_argument("--workers", metavar="N", help="processes; default 1")
    options = vars(parser.parse_args(arguments))

    from pydantic import ValidationError

    from index_store.errors import IndexStoreError
    from service.settings import Settings

    # Workers are processes of their own and read the same environment.
    os.environ.update({f"DR_{name.upper()}": value for name, value in options.items() if value is not None})
    try:
        settings = Settings()
        _open_store(settings)
    except ValidationError as error:
        for entry in error.errors():
            name = str(entry["loc"][0])
            print(f"dr-service: {name} (DR_{name.upper()}): {entry['msg']}", file=sys.stderr)
        return 2
    except IndexStoreError as error:
        print(f"dr-service: {error}", file=sys.stderr)
        return 2

    import uvicorn

    from service.connection import Connection

    # The server raises the signal that ended it once more when all is done; that is our exit.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
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
        ws="none",  # it would log the path, and leave a POST that asks for it unanswered
        timeout_graceful_shutdown=60,  # as long as a request may take
        timeout_worker_healthcheck=60,  # a worker that loads a large version is not dead
    )
    return 0


def app() -> object:
    """The app of one process, from the environment. For uvicorn."""
    from service.app import create_app
    from service.settings import Settings

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    sys.setswitchinterval(SWITCH_SECONDS)
    settings = Settings()
    return create_app(settings, _open_store(settings))


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

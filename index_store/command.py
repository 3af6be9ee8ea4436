"""What the commands have in common: --version, --store, and what the environment says of the store."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any


class _Version(argparse.Action):
    """Prints the release and ends; looked up only then."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,  # noqa: ARG002
        values: str | Sequence[Any] | None,  # noqa: ARG002
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        from importlib import metadata

        try:
            release = metadata.version("deep-retrieval")
        except metadata.PackageNotFoundError:
            release = "of a folder that is not installed; its pyproject.toml says which"
        print(f"{parser.prog} {release}")
        parser.exit()


def add_version(parser: argparse.ArgumentParser) -> None:
    """Add --version."""
    parser.add_argument("--version", action=_Version, nargs=0, help="print the release and end")


def add_store(parser: argparse.ArgumentParser) -> None:
    """Add --store, which is needed where DR_STORE is not set."""
    url = from_environment("DR_STORE")
    parser.add_argument(
        "--store",
        default=url,
        required=url is None,
        metavar="URL",
        help="a folder, redis://host:port/db or redis+cluster://host:port; default: DR_STORE",
    )


def from_environment(name: str) -> str | None:
    """The value of a variable without blanks and line breaks around it; None if nothing is left."""
    return os.environ.get(name, "").strip() or None

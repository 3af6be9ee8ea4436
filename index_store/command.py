"""Options that all commands share: --version, and --store with its environment variables."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any


class _Version(argparse.Action):
    """Print the release and exit. The release is looked up only when the option is given."""

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
            release = "unknown: the package is not installed; see pyproject.toml"
        print(f"{parser.prog} {release}")
        parser.exit()


def add_version(parser: argparse.ArgumentParser) -> None:
    """Add the option --version."""
    parser.add_argument("--version", action=_Version, nargs=0, help="print the release and exit")


def add_store(parser: argparse.ArgumentParser) -> None:
    """Add the option --store, which is required unless DR_STORE is set."""
    url = from_environment("DR_STORE")
    parser.add_argument(
        "--store",
        default=url,
        required=url is None,
        metavar="URL",
        help="a folder, redis://host:port/db or redis+cluster://host:port; default: DR_STORE",
    )


def from_environment(name: str) -> str | None:
    """The value of an environment variable without surrounding white space; None if it is unset or empty."""
    return os.environ.get(name, "").strip() or None

"""dr-index: list, check and delete the versions in a store, choose which one is current, and show the log."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import entry_points
from typing import Any

from index_store.command import add_store, add_version, from_environment
from index_store.errors import IndexStoreError
from index_store.log import Record
from index_store.manifest import Manifest
from index_store.store import IndexStore, find_version, open_store, prune, rollback

EXAMPLES = """examples:
  dr-index list --store ./demo-store
  dr-index activate v2-0123456789ab --expected v1-ba9876543210 --store ./demo-store
  DR_STORE=redis://host:6379/0 DR_STORE_PASSWORD=... dr-index prune --keep 3 --json

Running services notice a new current version within a second. --json prints one JSON document and nothing else."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 1 after an error, 2 for wrong usage, 130 after Ctrl-C."""
    options = make_parser().parse_args(arguments)
    try:
        store = open_store(options.store, password=from_environment("DR_STORE_PASSWORD"))
        store.require_readable()
        document, text = options.run(store, options)
    except IndexStoreError as error:
        print(f"dr-index: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    try:
        print(json.dumps(document, indent=2) if options.json else text, flush=True)
    except BrokenPipeError:  # the program that reads the pipe, for example `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        print(f"dr-index: standard output: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that flushing the buffer at exit succeeds
        return 1
    return 0


LOG_READ = 1000  # records of the log that are read at once

Result = tuple[Any, str]


def _list(store: IndexStore, _: argparse.Namespace) -> Result:
    current, previous = store.current(), store.previous()
    manifests = store.versions()
    marks = {previous: "previous", current: "current"}
    rows = [
        (
            m.version,
            marks.get(m.version, ""),
            m.created,
            str(m.items),
            str(m.structure.get("paths", "")),
            f"{m.size / 2**20:.1f}",
        )
        for m in manifests
    ]
    document = {
        "current": current,
        "previous": previous,
        "versions": [m.summary(marks.get(m.version, "available")) for m in manifests],
    }
    unlisted = []
    for name in (current, previous):
        if name and name not in [m.version for m in manifests]:
            try:
                store.load(name)
            except IndexStoreError as error:
                unlisted.append(f"{marks[name]}: {error}")
    if not rows and unlisted:
        return document, "\n".join(["no version can be read", *unlisted])
    if not rows:
        return document, f"no versions in {store}; publish one with dr-trainer fit"
    rows.insert(0, ("VERSION", "STATE", "CREATED", "ITEMS", "PATHS", "MIB"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return document, "\n".join([*lines, *unlisted])


def _show(store: IndexStore, options: argparse.Namespace) -> Result:
    manifest = _find(store, find_version(store, options.version))
    document = dataclasses.asdict(manifest)
    lines = [
        f"{manifest.version}, created {manifest.created}",
        f"{manifest.items} items, {manifest.k} candidates by default",
        f"{manifest.kind}: " + ", ".join(f"{name} {value}" for name, value in manifest.structure.items()),
        *_health(manifest.metrics.get("paths", {})),
        f"fingerprint {manifest.fingerprint}",
        *(f"  {name:18} {part.size:>12} bytes  sha256 {part.sha256[:12]}" for name, part in manifest.parts.items()),
        *_named("files:", manifest.metrics.get("files")),
        *_named("settings:", manifest.config),
    ]
    return document, "\n".join(lines)


def _health(paths: Mapping[str, Any]) -> list[str]:
    """Lines about the health of the paths that training recorded. Older versions may lack some of the figures."""
    lines = []
    if "gini" in paths:
        lines.append(
            f"{paths['used']} paths used, largest {paths['largest']}, mean {paths['mean_size']:.2f}, "
            f"gini {paths['gini']:.2f}"
        )
    if "reach" in paths:
        spread = ", ".join(f"{perplexity:.1f}" for perplexity in paths["perplexity"])
        lines += [
            f"effective nodes in use in each layer: {spread}",
            f"{paths['reach']:.1%} of the clicked items are in reach of {paths['reach_users']} training users",
        ]
    if paths.get("churn") is not None:
        lines.append(f"{paths['churn']:.0%} of the neighbours have changed since {paths['previous']}")
    return lines


def _named(title: str, values: object) -> list[str]:
    """The title and a line `name = JSON value` for each entry. Empty if there are no entries, as in older versions."""
    if not isinstance(values, Mapping) or not values:
        return []
    return [title, *(f"  {name} = {json.dumps(value, ensure_ascii=False)}" for name, value in values.items())]


def _verify(store: IndexStore, options: argparse.Namespace) -> Result:
    version = find_version(store, options.version)
    store.load(version)
    return {"version": version, "ok": True}, f"{version}: all digests and shapes are correct"


def _activate(store: IndexStore, options: argparse.Namespace) -> Result:
    version = find_version(store, options.version)
    expected = ... if options.expected is None else find_version(store, options.expected)
    previous = store.activate(version, expected)
    return {"version": version, "previous": previous}, f"{version} is current; before it {previous}"


def _rollback(store: IndexStore, _: argparse.Namespace) -> Result:
    version, previous = rollback(store)
    return {"version": version, "previous": previous}, f"{version} is current again; before it {previous}"


def _prune(store: IndexStore, options: argparse.Namespace) -> Result:
    deleted = prune(store, options.keep)
    return {"deleted": deleted}, "\n".join(f"deleted {name}" for name in deleted) or "nothing to delete"


def _log(store: IndexStore, options: argparse.Namespace) -> Result:
    place = store.log_start()
    records: list[Record] = []
    first = place.seq + 1
    while new := store.read(place, LOG_READ):
        place = new[-1].place
        records = [*records, *new][-options.last :]
    document = {"first": first, "last": place.seq, "records": [_described(record) for record in records]}
    if not records:
        return document, f"the log of {store} is empty"
    rows = []
    for record in records:
        time = datetime.fromtimestamp(record.time / 1000, UTC).isoformat(" ", "milliseconds")
        kinds = Counter(str(change.get("op")) for change in record.changes)
        rows.append(f"{record.seq:>9}  {time}  {', '.join(f'{count} {kind}' for kind, count in kinds.items())}")
    return document, "\n".join([f"records {first} to {place.seq}; the last {len(rows)}:", *rows])


def _described(record: Record) -> dict[str, Any]:
    fields = dataclasses.asdict(record) | {"changes": record.changes}
    del fields["payload"]
    return fields


def _fold(store: IndexStore, options: argparse.Namespace) -> Result:
    # To fold, a version must be opened. This package does not import the one that opens versions; it is installed as a
    # plug-in (pyproject.toml).
    (plugin,) = entry_points(group="deep_retrieval", name="fold")
    version = find_version(store, options.version) if options.version else None
    folded = plugin.load()(store, version, activate=not options.no_activate)
    document = {"version": folded.version, "previous": folded.previous, "records": folded.records}
    if folded.version is None:
        return document, f"{folded.previous} has all records of the log; there is nothing to fold"
    state = "published" if options.no_activate else "current"
    records = "1 record" if folded.records == 1 else f"{folded.records} records"
    back = f"; a rollback returns to {folded.rollback}" if folded.rollback and not options.no_activate else ""
    return document, f"{folded.version} is {state}: {folded.previous} and {records}{back}"


def _find(store: IndexStore, version: str) -> Manifest:
    return next((m for m in store.versions() if m.version == version), None) or store.load(version).manifest


def make_parser() -> argparse.ArgumentParser:
    """The argument parser of dr-index."""
    parser = argparse.ArgumentParser(
        prog="dr-index", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_version(parser)
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, run: Callable[[IndexStore, argparse.Namespace], Result], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        add_store(command)
        command.add_argument("--json", action="store_true", help="print one JSON document")
        command.set_defaults(run=run)
        return command

    add("list", _list, "list all versions, oldest first, and mark the current one")
    add("show", _show, "show the manifest of a version").add_argument("version", metavar="V")
    add("verify", _verify, "check every digest and shape of a version").add_argument("version", metavar="V")
    activate = add("activate", _activate, "make a version current")
    activate.add_argument("version", metavar="V")
    activate.add_argument("--expected", metavar="V", help="activate only if this version is current now")
    add("rollback", _rollback, "make the previous version current again")
    keep = add("prune", _prune, "delete old versions, never the current or the previous one")
    keep.add_argument("--keep", type=_count, required=True, metavar="N", help="number of newest versions to keep")
    fold = add("fold", _fold, "make a version of the current one and the log, with the same network, and activate it")
    fold.add_argument(
        "--version", metavar="V", help="fold this version instead, so an earlier network gets the catalogue"
    )
    fold.add_argument("--no-activate", action="store_true", help="publish, but do not make the version current")
    last = add("log", _log, "show the last records of the catalogue's log")
    last.add_argument("--last", type=_positive, default=20, metavar="N", help="number of records; default 20")
    return parser


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, found {text!r}")
    return int(text)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected a whole number of 0 or more, found {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())

"""The command line of dr-trainer: its commands and their options."""

from __future__ import annotations

import argparse
from pathlib import Path

from index_store.command import add_store, add_version

DESCRIPTION = "dr-trainer: train a retrieval index from interactions, publish it, measure it, let it learn from events."

FIT_EXAMPLE = """example:
  dr-trainer fit examples/online_retail/interactions.parquet --items examples/online_retail/items.parquet \\
      --users examples/online_retail/users.parquet --store ./demo-store --set k=20 --set context=country

INTERACTIONS is Parquet or CSV with the columns user_id, item_id (integers or strings), timestamp (integer or
date and time) and optionally rating or weight. Interrupted? Run the same command again with --resume and the folder
that it named. docs/reference.md lists the settings."""

EVALUATE_EXAMPLE = """example:
  dr-trainer evaluate examples/online_retail/interactions.parquet --items examples/online_retail/items.parquet \\
      --users examples/online_retail/users.parquet --store ./demo-store

Measures the users that were held out when the version was trained, with the version's own settings."""

BENCHMARK_EXAMPLE = """example:
  dr-trainer benchmark --data-dir data --datasets ml-1m,purchases.parquet --seeds 3 --report benchmark-report

DIR may contain ml-100k, ml-1m, ml-20m, ml-25m (GroupLens' folders, unzipped), amazon-beauty, amazon-books
(ratings_Beauty.csv, ratings_Books.csv), online-retail (part of a checkout), and any file of interactions, by its name.
Needs pip install 'deep-retrieval[benchmark]'. Interrupted? Run the same command again; it continues."""

SENSITIVITY_EXAMPLE = """example:
  dr-trainer sensitivity examples/online_retail/interactions.parquet --set k=20 --report sensitivity-report

Learns encoder and head once, then paths for each value of K, D, J and alpha: 8.5 times as long as one training.
Interrupted? Run the same command again; it continues."""

FOLLOW_EXAMPLE = """examples:
  dr-trainer follow --store ./demo-store --events ./demo-store
  dr-trainer follow --store ./demo-store --events clicks.jsonl

EVENTS is a store whose service takes events at /v1/events, a file, or - for standard input. A line of a file is an
event: {"history": ["85123A", "22423"], "item_id": "47566"}. A store is followed until the command is stopped; a file is
read to its end, or with --every on and on. Stopped? Run the same command again; it continues."""

REPLAY_EXAMPLE = """example:
  dr-trainer replay examples/online_retail/interactions.parquet --steps 6 --report replay-report

Would an index that learns from events have found more? Trains on the first half of your interactions, then goes through
the second half step by step: asks, measures, learns. Beside it answer an index that never changes, and one that is
trained anew."""


def _table(text: str) -> Path:
    """Parse a command-line argument that names the file or folder of a table."""
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a file or folder, found an empty name")
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"expected a local file or folder, found {text}; copy it to this machine first"
        )
    return Path("/dev/stdin") if text == "-" else Path(text).expanduser()


def make_parser() -> argparse.ArgumentParser:
    """The command line of dr-trainer."""
    parser = argparse.ArgumentParser(prog="dr-trainer", description=DESCRIPTION)
    add_version(parser)
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, text: str, epilog: str) -> argparse.ArgumentParser:
        raw = argparse.RawDescriptionHelpFormatter
        command = commands.add_parser(name, help=text, description=text, epilog=epilog, formatter_class=raw)
        command.add_argument("--json", action="store_true", help="print one JSON document on stdout")
        return command

    fit = add("fit", "train, publish and activate a version", FIT_EXAMPLE)
    measure = add("evaluate", "measure precision, recall and F of a version on its held-out users", EVALUATE_EXAMPLE)
    compare = add(
        "benchmark", "compare Deep Retrieval with other methods on several data sets and seeds", BENCHMARK_EXAMPLE
    )
    play = add("replay", "compare a frozen, a living and a retrained index on your interactions", REPLAY_EXAMPLE)
    live = add("follow", "learn from events, and publish versions that have learned", FOLLOW_EXAMPLE)
    vary = add("sensitivity", "measure how beam, K, D, J and alpha change recall on your data", SENSITIVITY_EXAMPLE)
    for command in (fit, measure, vary, play):
        command.add_argument("interactions", type=_table, metavar="INTERACTIONS", help="Parquet or CSV")
        command.add_argument("--items", type=_table, metavar="F", help="the catalogue: Parquet or CSV with item_id")
    for command in (fit, measure, vary):
        command.add_argument("--users", type=_table, metavar="F", help="context features: Parquet or CSV with user_id")
    for command in (fit, measure, live):
        add_store(command)
    for command in (fit, vary, compare, play):
        command.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting; overrides the file"
        )
    for command in (fit, vary, play):
        command.add_argument("--config", type=Path, metavar="F.toml", help="TOML file of settings, one per line")
        command.add_argument("--seed", type=int, metavar="N", help="short for --set seed=N")
    for command in (compare, vary, play):
        command.add_argument(
            "--report", type=Path, metavar="DIR", help="folder to write a page with tables and plots to"
        )
    for command in (compare, vary):
        command.add_argument(
            "--runs", type=Path, default=Path("runs", command.prog.split()[-1]), metavar="DIR",
            help="folder that keeps the measurements; default: %(default)s",
        )  # fmt: skip
    fit.add_argument(
        "--resume", type=Path, metavar="DIR", help="keep checkpoints in DIR, and continue the run in it if there is one"
    )
    fit.add_argument("--no-activate", action="store_true", help="publish, but do not make the version current")
    fit.add_argument("--allow-collapsed", action="store_true", help="publish even if the check of index health fails")
    measure.add_argument("--version", metavar="V", help="version to measure; default: the current one")
    measure.add_argument("--k", type=int, metavar="N", help="candidates per request; default: the version's k")
    compare.add_argument("--data-dir", type=Path, required=True, metavar="DIR", help="folder with the data sets")
    compare.add_argument("--datasets", metavar="A,B", help="names of data sets; default: all in --data-dir")
    compare.add_argument(
        "--methods", metavar="A,B", help="what is measured beside Deep Retrieval and brute force; default: everything"
    )
    compare.add_argument(
        "--seeds", type=int, default=5, metavar="N", help="number of seeds, 0 to N - 1; default: %(default)s"
    )
    play.add_argument(
        "--start",
        type=_share,
        default=0.5,
        metavar="S",
        help="share of the interactions to train on; default: %(default)s",
    )
    play.add_argument("--steps", type=_count, default=20, metavar="N", help="number of steps; default: %(default)s")
    play.add_argument("--k", type=_count, default=20, metavar="N", help="candidates per request; default: %(default)s")
    play.add_argument(
        "--retrained", type=_count, default=4, metavar="N",
        help="steps at which an index is trained anew, evenly spread; default: %(default)s",
    )  # fmt: skip
    live.add_argument("--events", required=True, metavar="EVENTS", help="a store, a file of JSON lines, or -")
    live.add_argument(
        "--every", type=_count, metavar="SECONDS",
        help="learn at least so often if there are new clicks; default: 300. With a file: wait for more lines",
    )  # fmt: skip
    live.add_argument(
        "--checkpoint", type=Path, default=Path("runs", "follow"), metavar="DIR",
        help="folder that keeps what was read and learned; default: %(default)s",
    )  # fmt: skip
    return parser


def _share(text: str) -> float:
    """Parse a share between 0 and 1."""
    try:
        share = float(text)
    except ValueError:
        share = -1
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"expected a share between 0 and 1, found {text!r}")
    return share


def _count(text: str) -> int:
    """Parse a number of 1 or more."""
    if not (text.isascii() and text.isdecimal()) or not 0 < int(text) <= 10**9:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, found {text!r}")
    return int(text)

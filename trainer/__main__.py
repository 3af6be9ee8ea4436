"""dr-trainer: train a retrieval index from interactions, publish it, measure it."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index_store.errors import IndexStoreError
from trainer.errors import TrainerError

if TYPE_CHECKING:  # imported where they are used, so that --help is fast
    from index_store.version import Manifest

FIT_EXAMPLE = """example:
  dr-trainer fit examples/online_retail/interactions.parquet --items examples/online_retail/items.parquet \\
      --users examples/online_retail/users.parquet --store ./demo-store --set k=20 --set context=country

INTERACTIONS is Parquet or CSV with the columns user_id, item_id (integers or strings), timestamp (integer or
date and time) and perhaps rating or weight. Interrupted? Run the same command again with --resume and the folder
it named. The README lists the settings."""

EVALUATE_EXAMPLE = """example:
  dr-trainer evaluate examples/online_retail/interactions.parquet --items examples/online_retail/items.parquet \\
      --users examples/online_retail/users.parquet --store ./demo-store

Measures the users whom the training of the version held out, with the version's own settings."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, 1 for what went wrong, 2 for wrong usage, 130 for Ctrl-C."""
    options = _parser().parse_args(arguments)
    run: Path | None = None
    if options.command == "fit":
        run = options.resume or Path("runs", time.strftime("%Y%m%d-%H%M%S") + f"-{os.getpid()}")
    try:
        if options.command == "fit":
            assert run is not None
            return _fit(options, run)
        return _evaluate(options)
    except (TrainerError, IndexStoreError) as error:
        print(f"dr-trainer: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        again = f"; to continue, add --resume {run}" if run and (run / "checkpoint.safetensors").exists() else ""
        print(f"\ndr-trainer: stopped{again}", file=sys.stderr)
        return 130


def _fit(options: argparse.Namespace, run_folder: Path) -> int:
    # torch and its friends take seconds to import: not for --help, nor for a wrong setting.
    from index_store.store import open_store
    from trainer.config import load_config

    config = load_config(options.config, options.set, seed=options.seed)
    store = open_store(options.store, password=os.environ.get("DR_STORE_PASSWORD"))
    store.require_writable()  # what is wrong with the store is better told now than after training

    from trainer.checkpoint import Run
    from trainer.data import load_dataset, split_users
    from trainer.export import make_version
    from trainer.progress import choose_progress
    from trainer.train import fit

    progress = choose_progress()
    dataset = load_dataset(options.interactions, config, options.items, options.users)
    split = split_users(dataset, config)
    run = Run(run_folder, config, dataset)
    # A run that is over stays over: to do it again would take `current` back from whatever was activated since.
    done = run.published()
    if done and (done["activated"] or options.no_activate) and _has(store.versions(), done):
        progress.say(f"{run_folder} is finished: {done['version']} is published; dr-index activate makes it current")
        _print(done if options.json else done["version"])
        return 0
    progress.say(f"checkpoints and metrics.jsonl are in {run_folder}")
    trained = fit(config, dataset, split, run, progress)
    version = make_version(config, dataset, split, trained, progress)
    previous = store.current()
    with progress.task("publishing, in %", 100) as advance:
        told = 0

        def report(done: int, total: int) -> None:
            nonlocal told
            advance(100 * done // total - told)
            told = 100 * done // total

        name = store.publish(version, report)
    if not options.no_activate:
        store.activate(name, expected=previous)
    facts = {"version": name, "fingerprint": version.manifest.fingerprint, "activated": not options.no_activate}
    facts |= {"beam": version.manifest.beam, "per_path": version.manifest.per_path, "run": str(run_folder)}
    run.record_published(facts)
    progress.say(f"published {name}" + ("" if options.no_activate else ", now current"))
    _print(facts if options.json else name)
    return 0


def _has(manifests: list[Manifest], done: dict[str, Any]) -> bool:
    return any((m.version, m.fingerprint) == (done["version"], done["fingerprint"]) for m in manifests)


def _evaluate(options: argparse.Namespace) -> int:
    from index_store.store import open_store

    store = open_store(options.store, password=os.environ.get("DR_STORE_PASSWORD"))
    name = options.version or store.current()
    if name is None:
        raise TrainerError(f"{store!r}: no version is current; publish one with dr-trainer fit, or name --version")
    version = store.load(name)

    from trainer.config import config_from
    from trainer.data import load_dataset, split_users
    from trainer.evaluate import evaluate, require_same_data
    from trainer.progress import choose_progress

    config = config_from(dict(version.manifest.config))
    if options.k is not None and options.k < 1:
        raise TrainerError(f"--k: expected at least 1, found {options.k}")
    dataset = load_dataset(options.interactions, config, options.items, options.users)
    progress = choose_progress()
    require_same_data(version, dataset, progress)
    result = evaluate(version, dataset, split_users(dataset, config), options.k or version.manifest.k, progress)
    _print(result if options.json else _table(result))
    return 0


def _table(result: dict[str, Any]) -> str:
    """The figures for people, in percent."""
    k = result["k"]
    lines = [f"{result['version']}: {result['users']} held-out users, history filtered (in brackets: not filtered)", ""]
    lines.append(f"{'':16}{f'P@{k} %':>16}{f'R@{k} %':>16}{f'F@{k} %':>16}")
    for name in ("deep_retrieval", "brute_force", "item_cf", "popularity"):
        cells = (
            f"{100 * result[name][m]:.2f} ({100 * result['unfiltered'][name][m]:.2f})"
            for m in ("precision", "recall", "f_measure")
        )
        lines.append(f"{name.replace('_', ' '):16}" + "".join(f"{cell:>16}" for cell in cells))
    deep, ratio, paths = result["deep_retrieval"], result["ratio_to_brute_force"], result["paths"]
    lines += [
        "",
        f"ratio to brute force: P {ratio['precision']:.3f}, R {ratio['recall']:.3f}, F {ratio['f_measure']:.3f}",
        f"items read a request: {deep['candidates_mean']:.1f} on average, {deep['candidates_p99']:.0f} at most in 99 %",
        f"of brute force's answer, {100 * result['structural_recall']:.1f} % was among them",
        f"paths used: {paths['used']}, the largest holds {paths['largest']}, the mean {paths['mean_size']:.2f}",
    ]
    return "\n".join(lines)


def _print(what: Any) -> None:
    print(what if isinstance(what, str) else json.dumps(what, indent=2))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dr-trainer", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    raw = argparse.RawDescriptionHelpFormatter
    fit = commands.add_parser(
        "fit", help="train, publish and activate a version", epilog=FIT_EXAMPLE, formatter_class=raw
    )
    measure = commands.add_parser(
        "evaluate", help="P/R/F@k of a version on held-out users", epilog=EVALUATE_EXAMPLE, formatter_class=raw
    )
    for command in (fit, measure):
        command.add_argument("interactions", type=Path, metavar="INTERACTIONS", help="Parquet or CSV")
        command.add_argument("--items", type=Path, metavar="F", help="Parquet or CSV with item_id: the catalogue")
        command.add_argument("--users", type=Path, metavar="F", help="Parquet or CSV with user_id and context columns")
        command.add_argument(
            "--store",
            default=os.environ.get("DR_STORE"),
            required="DR_STORE" not in os.environ,
            metavar="URL",
            help="a folder, redis://host:port/db or redis+cluster://host:port; default: DR_STORE",
        )
        command.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    fit.add_argument("--config", type=Path, metavar="F.toml", help="settings, a key a line")
    fit.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one setting; wins over --config")
    fit.add_argument("--seed", type=int, metavar="N", help="short for --set seed=N")
    fit.add_argument(
        "--resume", type=Path, metavar="DIR", help="keep checkpoints in DIR, and continue the run that is there"
    )
    fit.add_argument("--no-activate", action="store_true", help="publish, but leave `current` where it is")
    measure.add_argument("--version", metavar="V", help="default: the current version")
    measure.add_argument(
        "--k", type=int, metavar="N", help="candidates asked for; default: what the version was made for"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

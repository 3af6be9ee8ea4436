"""dr-trainer: train a retrieval index from interactions, publish it, measure it, let it learn from events."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index_store.command import from_environment
from index_store.errors import IndexStoreError
from trainer.arguments import make_parser
from trainer.errors import ConfigError, TrainerError
from trainer.stopping import stopped_by_signals, tell

if TYPE_CHECKING:  # imported only where they are used, so that --help is fast
    from index_store.manifest import Manifest
    from index_store.store import IndexStore
    from index_store.version import Version
    from trainer.progress import Progress


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 1 after an error, 2 for wrong usage, 128 + N after signal N."""
    options = make_parser().parse_args(arguments)
    if options.command == "fit" and options.resume is None:
        options.resume = Path("runs", time.strftime("%Y%m%d-%H%M%S") + f"-{os.getpid()}")
    commands = {
        "fit": _fit,
        "evaluate": _evaluate,
        "benchmark": _benchmark,
        "sensitivity": _sensitivity,
        "replay": _replay,
        "follow": _follow,
    }
    with stopped_by_signals() as signals:
        try:
            return commands[options.command](options)
        except (Exception, KeyboardInterrupt) as error:
            if signals or isinstance(error, KeyboardInterrupt):
                tell(f"\ndr-trainer: stopped{_how_to_continue(options)}")
                return 128 + (signals[0] if signals else signal.SIGINT)
            if isinstance(error, BrokenPipeError):  # the reader of the pipe, such as `head`, has closed it
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return 0
            if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):  # in torch's error message
                tell("dr-trainer: out of memory; choose smaller sizes in the settings, or keep fewer rows")
                return 1
            if "CUDA out of memory" in str(error):
                tell("dr-trainer: the GPU is out of memory; choose a smaller batch or hidden, or --set device=cpu")
                return 1
            # OSError: for example, the temporary folder is full.
            if not isinstance(error, TrainerError | IndexStoreError | OSError):
                raise
            message = str(error) or type(error).__name__
            # Each wrong setting has its own line. Indented lines are a list that belongs to the line before them.
            tell("\n".join(line if line[:1] == " " else f"dr-trainer: {line}" for line in message.splitlines()))
            return 1


def _how_to_continue(options: argparse.Namespace) -> str:
    """The end of the message for a stopped command: how to continue it."""
    if options.command in {"evaluate", "replay"}:
        return ""
    if options.command != "fit":
        return "; to continue, run the same command again"
    if (options.resume / "checkpoint.safetensors").exists():
        return f"; to continue, add --resume {options.resume}"
    return "; nothing was kept: there was no checkpoint yet"


def _fit(options: argparse.Namespace) -> int:
    # torch and its libraries take seconds to import, so import them after the settings have been checked.
    from index_store.store import open_store
    from retrieval.fold import catalogue, require_ids, with_catalogue
    from trainer.config import load_config

    config = load_config(options.config, options.set, seed=options.seed)
    store = open_store(options.store, password=from_environment("DR_STORE_PASSWORD"))
    store.require_writable()  # before training, so that no training is lost if the store cannot be used

    from trainer.data.dataset import load_dataset
    from trainer.data.remarks import remarks
    from trainer.data.split import split_users
    from trainer.deep_retrieval.checkpoint import Run
    from trainer.deep_retrieval.device import choose_device
    from trainer.deep_retrieval.fit import fit
    from trainer.progress import choose_progress, counted
    from trainer.publish.version import make_version

    choose_device(config.device)  # before the files are read, to report a missing GPU early
    progress = choose_progress()
    run_folder = options.resume
    dataset = load_dataset(options.interactions, config, options.items, options.users)
    split = split_users(dataset, config)
    run = Run(run_folder, config, dataset)
    # Do not publish a finished run again: its version would replace a version that has been activated since.
    done = run.published()
    if done and (done["activated"] or options.no_activate) and _has(store.versions(), done):
        progress.say(f"{run_folder} is finished: {done['version']} is published; dr-index activate can make it current")
        _print(done if options.json else done["version"])
        return 0
    current = store.current()
    manifest = next((manifest for manifest in store.versions() if manifest.version == current), None)
    for line in remarks(dataset, config, options.users, manifest):
        progress.say(line)
    require_ids(catalogue(store)[0], dataset.item_ids)  # before hours of training
    progress.say(f"checkpoints and metrics.jsonl are in {run_folder}")
    trained = fit(config, dataset, split, run, progress)
    version = make_version(
        config,
        dataset,
        split,
        trained,
        progress,
        _load_current(store, progress),
        allow_collapsed=options.allow_collapsed,
        files=_files(options),
    )
    # Items that were put or deleted since the catalogue's log began are new or gone in this version too.
    changes, covers = catalogue(store)
    if changes:
        progress.say(f"applying the catalogue's {counted(len(changes), 'change')} of items up to record {covers.seq}")
    version = with_catalogue(version, changes, covers)
    previous = store.current()
    with progress.task("publishing, in %", 100) as advance:
        reported = 0

        def report(done: int, total: int) -> None:
            nonlocal reported
            advance(100 * done // total - reported)
            reported = 100 * done // total

        name = store.publish(version, report)
    if not options.no_activate:
        store.activate(name, expected=previous)
    facts = {"version": name, "fingerprint": version.manifest.fingerprint, "activated": not options.no_activate}
    facts |= {fact: version.manifest.structure[fact] for fact in ("beam", "per_path")} | {"run": str(run_folder)}
    run.record_published(facts)
    progress.say(f"published {name}" + ("" if options.no_activate else ", now current"))
    _print(facts if options.json else name)
    return 0


def _files(options: argparse.Namespace) -> dict[str, str]:
    """The names of the input files, without their folders."""
    paths = {"interactions": options.interactions, "items": options.items, "users": options.users}
    return {kind: path.name for kind, path in paths.items() if path}


def _load_current(store: IndexStore, progress: Progress) -> Version | None:
    """The current version, to compare the new one with; None if there is none or it cannot be read."""
    try:
        name = store.current()
        return store.load(name) if name else None
    except IndexStoreError as error:
        progress.say(f"warning: the new version is not compared with the current one: {error}")
        return None


def _has(manifests: list[Manifest], done: dict[str, Any]) -> bool:
    return any((m.version, m.fingerprint) == (done["version"], done["fingerprint"]) for m in manifests)


def _evaluate(options: argparse.Namespace) -> int:
    from index_store.store import find_version, open_store

    store = open_store(options.store, password=from_environment("DR_STORE_PASSWORD"))
    store.require_readable()
    name = find_version(store, options.version) if options.version else store.current()
    if name is None:
        raise TrainerError(f"{store}: no version is current; publish one with dr-trainer fit, or name --version")
    version = store.load(name)

    from retrieval.searcher import Searcher
    from trainer.config import stored_config
    from trainer.data.dataset import load_dataset
    from trainer.data.split import split_users
    from trainer.evaluate.evaluate import evaluate, require_same_data, table
    from trainer.progress import choose_progress

    try:
        config, unknown = stored_config(version.manifest.config)
    except ConfigError as error:
        raise ConfigError(f"{name} cannot be evaluated by this release: {error}") from None
    if options.k is not None and options.k < 1:
        raise TrainerError(f"--k: expected at least 1, found {options.k}")
    searcher = Searcher.open(version)
    progress = choose_progress()
    if unknown:
        progress.say(f"{name} has settings that this release does not know and ignores: {', '.join(unknown)}")
    # Use the version's type of item ids and its context schema, not those that would be chosen for these files.
    config = config.replace(item_id="string" if isinstance(version.item_ids, list) else "integer")
    dataset = load_dataset(options.interactions, config, options.items, options.users, searcher.schema)
    require_same_data(version, dataset, progress)
    if options.users and not config.context:
        progress.say(f"--users {options.users}: not used, because {name} has no context features")
    result = evaluate(searcher, dataset, split_users(dataset, config), options.k or version.manifest.k, progress)
    _print(result if options.json else table(result, config.split))
    return 0


def _benchmark(options: argparse.Namespace) -> int:
    from trainer.benchmark.datasets import find_datasets

    if options.seeds < 1:
        raise TrainerError(f"--seeds: expected at least 1, found {options.seeds}")
    sources = find_datasets(options.data_dir, options.datasets.split(",") if options.datasets else None)
    _require("faiss", "implicit")

    from trainer.benchmark.benchmark import benchmark
    from trainer.benchmark.table import table
    from trainer.progress import choose_progress

    _check_report(options)
    progress = choose_progress()
    methods = {"methods": options.methods.split(",")} if options.methods else {}
    document = benchmark(sources, options.seeds, options.set, options.runs, progress, **methods)
    _print(
        document if options.json else "\n\n".join(table(name, result) for name, result in document["datasets"].items())
    )
    if options.report:
        from trainer.benchmark.report import write_benchmark

        progress.say(f"report: {write_benchmark(options.report, document)}")
    return 0


def _sensitivity(options: argparse.Namespace) -> int:
    from trainer.config import load_config

    config = load_config(options.config, options.set, seed=options.seed)
    _check_report(options)

    from trainer.benchmark.sensitivity import sensitivity, table
    from trainer.data.dataset import load_dataset
    from trainer.data.remarks import remarks
    from trainer.deep_retrieval.device import choose_device
    from trainer.progress import choose_progress

    choose_device(config.device)
    progress = choose_progress()
    dataset = load_dataset(options.interactions, config, options.items, options.users)
    for line in remarks(dataset, config, options.users, None):
        progress.say(line)
    document = sensitivity(config, dataset, options.runs, progress)
    _print(document if options.json else table(document))
    if options.report:
        from trainer.benchmark.report import write_sensitivity

        progress.say(f"report: {write_sensitivity(options.report, document)}")
    return 0


def _replay(options: argparse.Namespace) -> int:
    from trainer.config import load_config

    config = load_config(options.config, options.set, seed=options.seed)
    _check_report(options)

    from trainer.deep_retrieval.device import choose_device
    from trainer.living.replay import replay, table
    from trainer.progress import choose_progress

    choose_device(config.device)
    progress = choose_progress()
    document = replay(
        options.interactions,
        options.items,
        config.replace(k=options.k),
        progress,
        start=options.start,
        steps=options.steps,
        retrained=options.retrained,
    )
    _print(document if options.json else table(document))
    if options.report:
        from trainer.benchmark.report import write_replay

        progress.say(f"report: {write_replay(options.report, document)}")
    return 0


def _follow(options: argparse.Namespace) -> int:
    from index_store.store import open_store

    password = from_environment("DR_STORE_PASSWORD")
    store = open_store(options.store, password=password)
    store.require_readable()  # a store that does not exist is a wrong name, not a new store
    store.require_writable()
    named = options.events
    is_store = "://" in named or Path(named).expanduser().is_dir()
    events_store = open_store(named, password=password) if is_store else None
    if events_store:
        events_store.require_readable()

    from trainer.data.events import EventSource, FileEvents, StandardInput, StoreEvents
    from trainer.living.checkpoint import Checkpoint
    from trainer.living.follow import EVERY, Follow
    from trainer.progress import choose_progress

    name = str(events_store or (named if named == "-" else Path(named).expanduser().absolute()))
    with Checkpoint(options.checkpoint) as checkpoint:
        state = checkpoint.load(str(store), name)
        place = state.place if state else None
        source: EventSource = StandardInput()
        if events_store:
            source = StoreEvents(events_store, place)
        elif named != "-":
            source = FileEvents(Path(named).expanduser(), place, waits=options.every is not None)

        def report(facts: dict[str, Any]) -> None:
            if options.json:
                print(json.dumps(facts), flush=True)

        Follow(store, source, name, checkpoint, state, options.every or EVERY, choose_progress(), report).run()
    return 0


def _check_report(options: argparse.Namespace) -> None:
    """Raise TrainerError if --report is given and cannot be written, before hours of measuring."""
    if options.report:
        _require("matplotlib")
        from trainer.benchmark.report import require_writable

        require_writable(options.report)


def _require(*modules: str) -> None:
    """Raise TrainerError unless these optional modules are installed."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise TrainerError(f"{', '.join(missing)} missing: pip install 'deep-retrieval[benchmark]'")


def _print(result: Any) -> None:
    print(result if isinstance(result, str) else json.dumps(result, indent=2))


if __name__ == "__main__":
    sys.exit(main())

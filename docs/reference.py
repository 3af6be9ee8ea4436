"""Write docs/reference.md from the code: settings, commands, routes, limits. `make docs` runs this file."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import index_store.__main__
import service.__main__
import trainer.__main__
from index_store.folder.store import FolderStore
from retrieval.query import Limits
from service.http.app import create_app
from service.process.settings import Settings, variable
from trainer.config import GROUPS
from trainer.mistakes import Schema, expected

FILE = Path(__file__).with_suffix(".md")

INTRODUCTION = """# Reference

`make docs` writes this file from the code. To change a description, change it there.

- [Settings of a training run](#settings-of-a-training-run)
- [Settings of the service](#settings-of-the-service)
- [Commands](#commands)
- [HTTP routes](#http-routes)
- [Limits of a request](#limits-of-a-request)

## Settings of a training run

They come from a TOML file (`--config F.toml`, one line `key = value` each) or from `--set key=value`, which overrides
it. A version keeps the settings it was trained with; `dr-index show V` prints them. V stands for the number of items.
"""

SERVICE = """
## Settings of the service

Environment variables. `--store`, `--host`, `--port` and `--workers` are flags too; a flag overrides the variable. An
empty variable counts as unset, white space around a value is ignored, and an unknown name beginning with `DR_` is
reported at the start.
"""

COMMANDS = """
## Commands

`--store` may be left out where `DR_STORE` is set. `--json` prints one JSON document on stdout; messages go to stderr.
Exit status: 0; 1 if something failed; 2 for wrong usage; 128 + N after signal N, except `dr-service`, which ends
with 0.
"""

ROUTES = """
## HTTP routes

`/openapi.json` of a running service has their models, and `/docs` lets you try them. Errors are
`application/problem+json`. Routes under `/admin` need `Authorization: Bearer` with `DR_ADMIN_TOKEN`.
"""

LIMITS = """
## Limits of a request

A request that exceeds one is answered with status 422. Settings of a training run cannot exceed them either.
"""


def reference() -> str:
    """The content of docs/reference.md."""
    return "".join(
        [INTRODUCTION, *_training(), SERVICE, _service(), COMMANDS, *_commands(), ROUTES, *_routes(), LIMITS, _limits()]
    )


def _training() -> Iterator[str]:
    for group in GROUPS:
        title, _, text = inspect.cleandoc(group.__doc__ or "").partition(". ")
        yield f"\n### {title}\n\n{text}\n"
        yield _settings("key", group.model_json_schema()["properties"])


def _service() -> str:
    settings = Settings.model_json_schema()["properties"]
    return _settings("variable", {variable(name): schema for name, schema in settings.items()})


def _settings(name: str, schemas: Mapping[str, Schema]) -> str:
    return _table(
        [name, "default", "values", "meaning"],
        (
            [f"`{key}`", _default(schema), expected(schema).removeprefix("a ").replace("'", "`"), schema["description"]]
            for key, schema in schemas.items()
        ),
    )


def _default(schema: Schema) -> str:
    if "default" not in schema:
        return "required"
    return "unset" if schema["default"] is None else f"`{schema['default']}`"


def _commands() -> Iterator[str]:
    for module in (trainer.__main__, index_store.__main__, service.__main__):
        parser = module.make_parser()
        _, _, text = inspect.cleandoc(module.__doc__ or "").partition(": ")
        yield f"\n### {parser.prog}\n\n{text[:1].upper()}{text[1:]}\n"
        subcommands = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        if subcommands:
            commands: dict[str, argparse.ArgumentParser] = subcommands[0].choices
            yield _table(["command", "meaning"], ([_usage(each), each.description] for each in commands.values()))
            yield _flags(commands)
        else:
            yield _table(["flag", "meaning"], ([flag, meaning] for flag, meaning in _options(parser)))


def _usage(command: argparse.ArgumentParser) -> str:
    """The command with its required arguments, except --store."""
    needed = [
        " ".join([*action.option_strings, str(action.metavar)])
        for action in command._actions
        if action.required and "--store" not in action.option_strings
    ]
    return f"`{' '.join([command.prog, *needed])}`"


def _flags(commands: Mapping[str, argparse.ArgumentParser]) -> str:
    """A table with one row per flag. A flag that several commands have with the same meaning has one row."""
    having: dict[tuple[str, str], list[str]] = {}
    for name, command in commands.items():
        for option in _options(command):
            having.setdefault(option, []).append(name)
    return _table(
        ["flag", "of", "meaning"],
        (
            [flag, "all" if len(names) == len(commands) else ", ".join(names), meaning]
            for (flag, meaning), names in having.items()
        ),
    )


def _options(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """Each flag with the name of its value, and its meaning."""
    for action in parser._actions:
        if action.option_strings and "--help" not in action.option_strings:
            value = f" {action.metavar}" if action.metavar else ""
            yield f"`{action.option_strings[-1]}{value}`", (action.help or "") % vars(action)


def _routes() -> Iterator[str]:
    app = create_app(Settings.model_construct(store="store"), FolderStore("store"))
    document = app.openapi()
    operations = [
        (f"{method.upper()} {path}", operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    yield _table(
        ["route", "meaning", "statuses"],
        (
            [f"`{route}`", operation.get("description", operation["summary"]), ", ".join(operation["responses"])]
            for route, operation in operations
        ),
    )
    for route, operation in operations:
        if "requestBody" in operation:
            name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
            yield from _body(route, document["components"]["schemas"][name])


def _body(route: str, model: Mapping[str, Any]) -> Iterator[str]:
    yield f"\n### Body of {route}\n\n{model['description']}\n"
    yield _table(
        ["field", "meaning"],
        ([f"`{name}`", schema.get("description", "")] for name, schema in model["properties"].items()),
    )


def _limits() -> str:
    """A table of the limits. Values are those of the code; meanings are the comments on the same lines."""
    meanings = dict(re.findall(r"(\w+)\b.* = .*# (.*)", inspect.getsource(Limits)))
    return _table(
        ["limit", "at most", "meaning"],
        (
            [f"`{name}`", f"{value:,}", meanings.get(name, "")]
            for name, value in vars(Limits).items()
            if isinstance(value, int)
        ),
    )


def _table(head: list[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n" + "".join(
        f"| {' | '.join(' '.join(str(cell).split()).replace('|', chr(92) + '|') for cell in line)} |\n"
        for line in lines
    )


if __name__ == "__main__":
    FILE.write_text(reference(), "utf-8")

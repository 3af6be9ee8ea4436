"""The three commands as a user runs them: help, errors, exit codes, and only JSON on stdout with --json."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch

from index_store.__main__ import main as dr_index
from index_store.folder.store import FolderStore
from index_store.manifest import FORMAT
from tests.conftest import Planted
from tests.planted import small_version, write_interactions
from trainer.__main__ import main as dr_trainer
from trainer.errors import ConfigError

BIN = Path(sys.executable).parent
QUICK = [
    f"--set={setting}"
    for setting in (
        "depth=2", "width=6", "paths_per_item=2", "candidate_paths=8", "embedding=8", "hidden=8", "history=6",
        "epochs=3", "warmup_epochs=1", "reassignments=1", "batch=128", "learning_rate=0.02", "k=5", "test_users=20",
    )
]  # fmt: skip


@pytest.mark.parametrize("command", ["dr-trainer", "dr-trainer fit", "dr-trainer evaluate", "dr-index", "dr-service"])
def test_help_has_an_example(command: str) -> None:
    """Every command prints its usage with an example, except dr-trainer, which lists its subcommands."""
    done = subprocess.run(
        [BIN / command.split(maxsplit=1)[0], *command.split()[1:], "--help"], capture_output=True, text=True, check=True
    )

    assert "usage:" in done.stdout
    assert command == "dr-trainer" or "example" in done.stdout


def test_fit_evaluate_and_index(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`fit` publishes and activates unless --no-activate is given; `evaluate` measures the current version."""
    monkeypatch.chdir(tmp_path)
    file, store = write_interactions(tmp_path), str(tmp_path / "store")

    def run(main: Any, *arguments: str) -> Any:
        assert main([*arguments, "--store", store, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    first = run(dr_trainer, "fit", str(file), *QUICK)
    second = run(dr_trainer, "fit", str(file), *QUICK, "--seed", "1", "--no-activate", "--resume", "mine")

    assert first["version"].startswith("v1-")
    assert second["version"].startswith("v2-")
    assert (first["activated"], second["activated"]) == (True, False)
    assert run(dr_index, "list")["current"] == first["version"]
    assert len((tmp_path / "mine" / "metrics.jsonl").read_text().splitlines()) == 3
    assert list((tmp_path / "runs").iterdir())

    measured = run(dr_trainer, "evaluate", str(file))
    assert (measured["version"], measured["k"], measured["users"]) == (first["version"], 5, 20)
    assert run(dr_trainer, "evaluate", str(file), "--version", second["version"], "--k", "3")["k"] == 3
    assert dr_trainer(["evaluate", str(file), "--store", store]) == 0
    assert "ratio to brute force" in capsys.readouterr().out

    assert run(dr_index, "activate", second["version"]) == {"version": second["version"], "previous": first["version"]}
    # A finished run that is resumed returns its result, and does not activate its version again.
    assert run(dr_trainer, "fit", str(file), *QUICK, "--resume", first["run"]) == first
    assert run(dr_index, "list")["current"] == second["version"]
    assert run(dr_index, "rollback") == {"version": first["version"], "previous": second["version"]}
    assert run(dr_index, "show", first["version"])["items"] == 40
    assert run(dr_index, "verify", first["version"])["ok"] is True
    assert run(dr_index, "prune", "--keep", "0") == {"deleted": []}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "widht=3"], "widht: no such setting"),
        (["--set", "width=100000", "--set", "depth=5"], "width, depth: 100000\\^5 paths do not fit in int64"),
        (["--set", "beam=1000"], "beam: expected a whole number from 1 to 256"),
        (["--config", "none.toml"], "none.toml: No such file"),
        (["--users", "none.parquet", "--set", "context=x"], "none.parquet: cannot be read"),
        (["--set", "min_interactions=99"], "rows is left"),
    ],
)
def test_an_error_of_fit_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    """The exit status is 1; nothing is on stdout, and there is no traceback."""
    import re

    monkeypatch.chdir(tmp_path)
    file = write_interactions(tmp_path)

    assert dr_trainer(["fit", str(file), "--store", "s", *arguments]) == 1

    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(message, err)
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            "the GPU is out of memory; choose a s",
        ),
        (MemoryError(), "out of memory; choose smaller sizes"),
        (TimeoutError(), "TimeoutError"),
        (ConfigError("a: wrong\nb: wrong"), "a: wrong\ndr-trainer: b: wrong"),
    ],
)
def test_every_error_has_a_message(
    error: Exception, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory says what to make smaller; an error without a text has its name; every line names the command."""
    monkeypatch.setattr("trainer.config.load_config", Mock(side_effect=error))

    assert dr_trainer(["sensitivity", "x.csv"]) == 1

    assert capsys.readouterr().err.startswith(f"dr-trainer: {message}")


def test_evaluate_without_a_version_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The store is empty."""
    assert dr_trainer(["evaluate", "x.parquet", "--store", str(tmp_path)]) == 1
    assert "publish one with dr-trainer fit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "v1-000000000000"], "no such version"),
        (["verify", "../x"], "not a version name"),
        (["rollback"], "nothing to roll back to"),
        (["activate", "v1-000000000000"], "no such version"),
    ],
)
def test_index_errors_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """The exit status is 1, and the message has the reason."""
    assert dr_index([*arguments, "--store", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err


def test_dr_index_prints_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --json, list, show, verify and prune print text; for an empty store, list says how to fill it."""
    store = FolderStore(str(tmp_path))
    assert dr_index(["list", "--store", str(tmp_path)]) == 0
    assert "publish one with dr-trainer fit" in capsys.readouterr().out
    names = [store.publish(small_version(str(i))) for i in range(3)]
    store.activate(names[1])

    for arguments, expected in (
        (["list"], f"{names[1]}  current"),
        (["show", names[0]], "3 items, 2 candidates by default"),
        (["verify", names[0]], "all digests and shapes are correct"),
        (["prune", "--keep", "1"], f"deleted {names[0]}"),
        (["prune", "--keep", "1"], "nothing to delete"),
    ):
        assert dr_index([*arguments, "--store", str(tmp_path)]) == 0
        assert expected in capsys.readouterr().out


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    """`dr-index list | true` ends quietly."""
    store = FolderStore(str(tmp_path))
    store.publish(small_version())
    command = f"{BIN / 'dr-index'} list --store {tmp_path} | true"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


def test_the_service_starts_answers_and_stops(planted: Planted, tmp_path: Path) -> None:
    """The service runs as a process and shuts down in order on SIGTERM."""
    store = FolderStore(str(tmp_path))
    store.activate(store.publish(planted.version))
    command = [str(BIN / "dr-service"), "--store", str(tmp_path), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        port = next(line.rsplit(":", 1)[1].split()[0] for line in process.stderr if "running on" in line)
        with httpx.Client(trust_env=False, timeout=30) as client:
            answer = client.post(f"http://127.0.0.1:{port}/v1/retrieve", json={"history": [1]})
        assert answer.status_code == 200
        assert "server" not in answer.headers
    finally:
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
    assert "Application shutdown complete" in log
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--store (DR_STORE) is missing"),
        (["--store", "ftp://x"], "found the scheme 'ftp'"),
        (["--store", "x", "--port", "high"], "--port: expected a whole number from 0 to 65535, found 'high'"),
    ],
)
def test_the_service_refuses_wrong_settings(arguments: list[str], message: str) -> None:
    """The exit status is 2; the message names the flag or the value, and for a missing setting its variable."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DR_")}
    done = subprocess.run(
        [BIN / "dr-service", *arguments], capture_output=True, text=True, check=False, env=environment
    )

    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_collapsed_index_is_published_only_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """36 paths cannot have as much entropy as 40 items; the run is kept, and publishing it needs no training."""
    file, store, run = write_interactions(tmp_path), str(tmp_path / "store"), tmp_path / "run"
    command = ["fit", str(file), *QUICK, "--set=gate_entropy=1", "--store", store, "--resume", str(run), "--json"]

    assert dr_trainer(command) == 1
    assert "gate_entropy" in capsys.readouterr().err
    assert FolderStore(store).versions() == []

    trained = (run / "metrics.jsonl").read_bytes()
    assert dr_trainer([*command, "--allow-collapsed"]) == 0
    assert (run / "metrics.jsonl").read_bytes() == trained
    version = json.loads(capsys.readouterr().out)["version"]
    assert dr_index(["show", version, "--store", store]) == 0
    shown = capsys.readouterr().out
    assert "of the clicked items are in reach of 100 training users" in shown
    assert "nodes in use in each layer" in shown


def test_the_same_data_in_another_format_give_the_same_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A version trained on strings in Parquet is measured on digits in CSV: ids are read in the type of the version."""
    file, store = write_interactions(tmp_path), str(tmp_path / "store")
    rows = pq.read_table(file)
    pyarrow.csv.write_csv(rows, tmp_path / "clicks.csv")
    pq.write_table(rows.set_column(1, "item_id", rows["item_id"].cast(pa.string())), tmp_path / "strings.parquet")
    assert dr_trainer(["fit", str(tmp_path / "strings.parquet"), "--store", store, *QUICK]) == 0
    capsys.readouterr()

    figures = []
    for name in ("strings.parquet", "clicks.csv", "interactions.parquet"):
        assert dr_trainer(["evaluate", str(tmp_path / name), "--store", store, "--json"]) == 0
        figures.append(json.loads(capsys.readouterr().out)["deep_retrieval"])

    assert figures[0] == figures[1] == figures[2]


def test_a_closed_pipe_for_progress_stops_nothing() -> None:
    """In `fit 2>&1 | head -n 1`, reporting progress still works after head has ended, and the exit status is 0."""
    reporting = f"{sys.executable} -c 'from trainer.stopping import tell; [tell(str(i)) for i in range(10_000)]'"
    command = f"{reporting} 2>&1 >/dev/null | head -n 1; exit ${{PIPESTATUS[0]}}"

    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


def test_versions_that_cannot_be_read_are_listed_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A version is of another format; an abbreviated name still finds it. `prune --keep 1.5` is refused."""
    store = FolderStore(str(tmp_path))
    name = store.publish(small_version())
    store.activate(name)
    manifest = tmp_path / "versions" / name / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"format": {FORMAT}', '"format": 2'))

    for command in (["list"], ["verify", "v1"]):
        dr_index([*command, "--store", str(tmp_path)])
        captured = capsys.readouterr()
        assert f"{name}: format 2, but this release reads format {FORMAT}; train again" in captured.out + captured.err

    with pytest.raises(SystemExit):
        dr_index(["prune", "--keep", "1.5", "--store", str(tmp_path)])
    assert "--keep: expected a whole number of 0 or more, found '1.5'" in capsys.readouterr().err


def test_a_version_name_may_be_abbreviated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """v2 means the version that begins with v2-, not v20-; for an unknown name the error lists the newest versions."""
    store = FolderStore(str(tmp_path))
    names = [store.publish(small_version(str(i))) for i in range(20)]

    def run(*arguments: str) -> tuple[int, str, str]:
        status = dr_index([*arguments, "--store", str(tmp_path)])
        return status, *capsys.readouterr()

    assert run("activate", "v2")[1] == f"{names[1]} is current; before it None\n"
    assert run("activate", names[19][:7], "--expected", "v2")[1] == f"{names[19]} is current; before it {names[1]}\n"
    assert "current is" in run("activate", "v1", "--expected", "v3")[2]
    assert run("verify", "v1")[1].startswith(f"{names[0]}: all digests")
    assert run("show", "v3")[1].startswith(names[2])
    status, out, err = run("show", "v21")
    assert (status, out) == (1, "")
    newest = ", ".join(names[:16:-1])
    assert err == f"dr-index: v21: no such version in {tmp_path}; the newest are {newest}\n"
    assert dr_trainer(["evaluate", "none.csv", "--version", "v21", "--store", str(tmp_path)]) == 1
    assert "the newest are" in capsys.readouterr().err


def test_an_ambiguous_abbreviation_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The error lists all versions that begin like this, and no version is activated."""
    for folder in ("a", "b"):
        store = FolderStore(str(tmp_path / folder))
        store.publish(small_version(folder))
    (other,) = (tmp_path / "b" / "versions").glob("v1-*")
    other.rename(tmp_path / "a" / "versions" / other.name)

    assert dr_index(["activate", "v1", "--store", str(tmp_path / "a")]) == 1

    (first, second) = sorted(path.name for path in (tmp_path / "a" / "versions").glob("v1-*"))
    assert f"v1: 2 versions begin like this: {first}, {second}; write more of the name" in capsys.readouterr().err
    assert FolderStore(str(tmp_path / "a")).current() is None


def test_show_lists_files_and_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`dr-index show` prints the files and the settings that made a version, one a line."""
    version = small_version()
    config, metrics = {"k": 20, "context": ["country"]}, {"files": {"interactions": "clicks.csv"}}
    manifest = dataclasses.replace(version.manifest, config=config, metrics=metrics)
    name = FolderStore(str(tmp_path)).publish(dataclasses.replace(version, manifest=manifest))

    assert dr_index(["show", name, "--store", str(tmp_path)]) == 0

    lines = capsys.readouterr().out.splitlines()
    at = lines.index("files:")
    assert lines[at:] == ["files:", '  interactions = "clicks.csv"', "settings:", '  context = ["country"]', "  k = 20"]


def test_a_version_with_attributes_strengths_and_impressions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`fit` prints what it read, and `evaluate` accepts the same files."""
    monkeypatch.chdir(tmp_path)
    clicks = pq.read_table(write_interactions(tmp_path))
    rows = clicks.num_rows
    clicks = clicks.append_column("rating", pa.array([1 + row % 5 for row in range(rows)]))
    pq.write_table(clicks.append_column("clicked", pa.array([row % 9 > 0 for row in range(rows)])), "clicks.parquet")
    items = "\n".join(f"{item},group {item % 4}" for item in range(50))
    (tmp_path / "items.csv").write_text(f"item_id,group\n{items}\n51,\n")
    files = ["clicks.parquet", "--items", "items.csv", "--store", "store"]
    settings = ["--set", "attributes=group", "--set", "strength=rating", "--set", "clicked=clicked"]

    assert dr_trainer(["fit", *files, *QUICK, *settings]) == 0
    err = capsys.readouterr().err
    assert "attributes: 4 values in all; 1 item of 51 without any" in err
    assert "120 rows shown and not clicked (clicked)" in err
    assert dr_trainer(["evaluate", *files, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["users"] > 0


def test_a_version_knows_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A users file without context settings is reported as not used; `evaluate` names the files of the training."""
    monkeypatch.chdir(tmp_path)
    write_interactions(tmp_path)
    (tmp_path / "items.csv").write_text("item_id\n" + "\n".join(map(str, range(50))))
    (tmp_path / "users.csv").write_text("user_id,country,age\n1,FR,30\n2,DE,40\n")
    places = ["interactions.parquet", "--store", "store"]
    users = ["--users", str(tmp_path / "users.csv")]

    assert dr_trainer(["fit", *places, "--items", "items.csv", *users, *QUICK, "--json"]) == 0
    out, err = capsys.readouterr()
    assert "not used, because `context` names no column; to use it, --set context=column,... of country, age" in err
    assert dr_index(["show", json.loads(out)["version"], "--store", "store", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["files"] == {
        "interactions": "interactions.parquet",
        "items": "items.csv",
        "users": "users.csv",
    }

    assert dr_trainer(["evaluate", *places]) == 1
    err = capsys.readouterr().err
    assert "evaluate with the files it was trained on: interactions.parquet --items items.csv --users users.csv" in err
    assert dr_trainer(["evaluate", *places, "--items", "items.csv", *users]) == 0
    assert "not used, because v1-" in capsys.readouterr().err

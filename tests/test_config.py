"""Settings of the trainer: which values are refused and how, and how files, flags and stored versions set them."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from index_store.folder.store import FolderStore
from retrieval.query import Limits
from tests.conftest import Planted
from tests.planted import write_interactions
from trainer.__main__ import main as dr_trainer
from trainer.config import TrainConfig, load_config, stored_config
from trainer.errors import ConfigError

COUNT = "expected a whole number of at least 1"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 100, "depth": 10}, "width, depth: 100^10 paths do not fit in int64"),
        ({"width": 2, "depth": 1, "paths_per_item": 3}, "paths_per_item: 3 different paths asked for"),
        ({"depth": 0}, f"depth: {COUNT}, found 0"),
        ({"depth": "3"}, f"depth: {COUNT}, found '3'"),
        ({"depth": True}, f"depth: {COUNT}, found True"),
        ({"depth": 3.0}, f"depth: {COUNT}, found 3.0"),
        ({"depth": [3]}, f"depth: {COUNT}, found [3]"),
        ({"width": "wide"}, f"width: {COUNT} or 'auto', found 'wide'"),
        ({"alpha": -1}, "alpha: expected a number of at least 0 or 'auto', found -1"),
        ({"alpha": "high"}, "alpha: expected a number of at least 0 or 'auto', found 'high'"),
        ({"alpha": float("nan")}, "alpha: expected a number of at least 0 or 'auto', found nan"),
        ({"min_rating": float("inf")}, "min_rating: expected a number, found inf"),
        ({"eta": 0}, "eta: expected a number above 0 and up to 1, found 0"),
        ({"eta": 1.1}, "eta: expected a number above 0 and up to 1, found 1.1"),
        ({"dropout": 1.0}, "dropout: expected a number of at least 0 and below 1 or 'auto', found 1.0"),
        ({"dropout": "0.5"}, "dropout: expected a number of at least 0 and below 1 or 'auto', found '0.5'"),
        ({"taught": 2}, "taught: expected a number from 0 to 1, found 2"),
        ({"taught": True}, "taught: expected a number from 0 to 1, found True"),
        ({"learning_rate": 0}, "learning_rate: expected a number above 0, found 0"),
        ({"rerank": "gbdt"}, "rerank: expected 'lr' or 'softmax', found 'gbdt'"),
        ({"split": "random"}, "split: expected 'users' or 'last-out', found 'random'"),
        ({"device": "tpu"}, "device: expected 'auto', 'cpu' or 'cuda', found 'tpu'"),
        ({"candidate_paths": 2}, "candidate_paths: expected at least paths_per_item = 3, found 2"),
        ({"seed": -1}, "seed: expected a whole number of at least 0, found -1"),
        ({"epochs": 20, "warmup_epochs": 20}, "warmup_epochs: expected less than epochs = 20"),
        ({"warmup_epochs": 0}, f"warmup_epochs: {COUNT} or 'auto', found 0"),
        ({"depth": 40}, "width, depth: 10^40 paths do not fit"),
        ({"depth": 30_000_000, "width": 1000}, "width, depth"),
        ({"seed": 10**400}, "seed: expected a number that fits in 64 bits"),
        ({"min_rating": -(2**63) - 1}, "min_rating: expected a number that fits in 64 bits"),
        ({"context": ["a", "a:categorical"]}, "context: a is named twice"),
        ({"context": ["a:categoric"]}, 'context: expected "column", "column:category" or'),
        ({"context": [1]}, "context: expected a list of column names, found [1]"),
        ({"context": 3}, "context: expected a list of column names, found 3"),
    ],
)
def test_a_setting_that_cannot_work_is_named(values: dict[str, Any], message: str) -> None:
    """The message begins with the setting and says what was expected and what was found."""
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        TrainConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"k": 5000}, f"k: expected a whole number from 1 to {Limits.K}, found 5000"),
        ({"k": 0}, f"k: expected a whole number from 1 to {Limits.K}, found 0"),
        ({"history": 2000}, f"history: expected a whole number from 1 to {Limits.HISTORY}, found 2000"),
        ({"beam": 257}, f"beam: expected a whole number from 1 to {Limits.BEAM} or 'auto', found 257"),
        ({"per_path": 10_001}, f"per_path: expected a whole number from 1 to {Limits.PER_PATH} or 'auto', found 10001"),
        ({"beam": 256, "per_path": 500}, f"beam, per_path: a request may read at most {Limits.READS} items"),
        ({"context": [f"c{i}" for i in range(65)]}, f"context: expected at most {Limits.FEATURES} columns, found 65"),
        ({"context": ["c" * 129]}, f"context: expected names of at most {Limits.FEATURE_NAME} characters, found 129"),
    ],
)
def test_settings_beyond_the_limits_of_a_request_are_refused(values: dict[str, Any], message: str) -> None:
    """Bug 4: `k=5000` could be trained, and then no request could name the k that the version answered by default."""
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        TrainConfig(**values)


def test_the_most_that_a_request_may_ask_for_can_be_trained() -> None:
    """The limits themselves are allowed."""
    config = TrainConfig(k=Limits.K, history=Limits.HISTORY, beam=5, per_path=Limits.PER_PATH)

    assert (config.k, config.history, config.per_path) == (1000, 1000, 10_000)
    assert len(TrainConfig(context=tuple(f"{i:0128}" for i in range(64))).context) == 64


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("k=5000", "k: expected a whole number from 1 to 1000, found 5000"),
        ("history=2000", "history: expected a whole number from 1 to 1000, found 2000"),
        ("per_path=20000", "per_path: expected a whole number from 1 to 10000 or 'auto', found 20000"),
        ("beam=300", "beam: expected a whole number from 1 to 256 or 'auto', found 300"),
        (f"context={'c' * 200}", "context: expected names of at most 128 characters, found 200"),
    ],
)
def test_the_command_refuses_such_settings_before_it_reads_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, message: str
) -> None:
    """Bug 4: the error is one line and the exit status 1; nothing is read or written."""
    assert dr_trainer(["fit", "missing.csv", "--store", str(tmp_path / "store"), "--set", setting]) == 1

    assert capsys.readouterr() == ("", f"dr-trainer: {message}\n")
    assert not list(tmp_path.iterdir())


def test_a_category_too_long_for_a_request_is_refused_when_it_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug 4: no request could send such a value."""
    monkeypatch.chdir(tmp_path)
    write_interactions(tmp_path)
    (tmp_path / "users.csv").write_text(f"user_id,country\n1,{'x' * 257}\n2,DE\n")
    files = ["interactions.parquet", "--users", "users.csv"]

    assert dr_trainer(["fit", *files, "--set", "context=country", "--store", str(tmp_path / "store")]) == 1

    (line,) = capsys.readouterr().err.splitlines()
    assert "column country" in line
    assert f"257 characters; expected at most {Limits.FEATURE_VALUE}" in line


def test_every_mistake_has_a_line() -> None:
    """Wrong values come in the order of the settings, then names that do not exist."""
    with pytest.raises(ConfigError) as refused:
        TrainConfig.model_validate({"sede": 1, "depth": 0, "eta": 2, "nothing_like_it": 3})

    lines = str(refused.value).splitlines()
    assert lines[:3] == [
        f"depth: {COUNT}, found 0",
        "eta: expected a number above 0 and up to 1, found 2",
        "sede: no such setting; did you mean seed?",
    ]
    assert lines[3].startswith("nothing_like_it: no such setting; there are depth, width, ")
    assert len(lines) == 4


def test_a_long_value_is_cut() -> None:
    """If a file's content is passed by mistake, the message shows only its beginning."""
    with pytest.raises(ConfigError) as refused:
        TrainConfig(k="9" * 5000)  # type: ignore[arg-type]

    assert len(str(refused.value)) < 200


def test_replace_checks_what_it_changes() -> None:
    """The other settings stay, and a wrong value is refused as in a new config."""
    config = TrainConfig(depth=2, context=("a",))

    assert config.replace(width=7) == TrainConfig(depth=2, width=7, context=("a",))
    with pytest.raises(ConfigError, match=r"^k: expected a whole number from 1 to 1000, found 5000$"):
        config.replace(k=5000)
    with pytest.raises(ConfigError, match=r"^widht: no such setting; did you mean width\?$"):
        config.replace(widht=3)
    with pytest.raises(ConfigError, match=r"^width, depth: 10000000\^3 paths"):
        config.replace(width=10_000_000, depth=3)


def test_a_config_does_not_change() -> None:
    """It is immutable because all parts of the trainer share it; equal configs have equal hashes."""
    config = TrainConfig(alpha=2)

    with pytest.raises(ValidationError):
        config.k = 3  # type: ignore[misc]
    assert hash(config) == hash(TrainConfig(alpha=2.0))


def test_a_stored_config_of_another_release_is_read() -> None:
    """Settings that this release does not know are named and ignored; those that the version lacks have defaults."""
    stored = TrainConfig(k=3, context=("a",)).to_json() | {"shrink": 0.5, "beems": [1]}
    del stored["device"], stored["epochs"]

    config, unknown = stored_config(stored)

    assert config == TrainConfig(k=3, context=("a",))
    assert unknown == ["beems", "shrink"]
    with pytest.raises(ConfigError, match=r"^start: expected 'tree' or 'random', found 'forest'$"):
        stored_config(stored | {"start": "forest"})


def test_a_version_of_another_release_is_evaluated(
    planted: Planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Settings that this release does not know are named and ignored; a value that it cannot use is refused."""

    def evaluate(folder: str, config: dict[str, Any]) -> tuple[int, str, list[str]]:
        manifest = dataclasses.replace(planted.version.manifest, config=config)
        store = FolderStore(str(tmp_path / folder))
        name = store.publish(dataclasses.replace(planted.version, manifest=manifest))
        store.activate(name)
        status = dr_trainer(["evaluate", str(planted.file), "--store", str(store.folder), "--json"])
        out, err = capsys.readouterr()
        return status, out, err.replace(name, "V").splitlines()

    config = planted.config.to_json()
    status, expected, messages = evaluate("as it is", config)
    assert status == 0
    fewer = {name: value for name, value in config.items() if name != "rerank"}
    status, out, err = evaluate("other names", fewer | {"shrink": 1})
    assert (status, json.loads(out)["deep_retrieval"]) == (0, json.loads(expected)["deep_retrieval"])
    assert err == ["V has settings that this release does not know and ignores: shrink", *messages]
    assert evaluate("wrong value", config | {"split": "halves"}) == (
        1,
        "",
        ["dr-trainer: V cannot be evaluated by this release: split: expected 'users' or 'last-out', found 'halves'"],
    )


def test_later_settings_win(tmp_path: Path) -> None:
    """The order is: defaults, the file, --set, flags."""
    file = tmp_path / "config.toml"
    file.write_text('k = 7\nepochs = 3\nsplit = "last-out"\ncontext = ["country"]\n')

    config = load_config(file, ["epochs=4", "rerank=softmax", "alpha=0.5"], seed=9)

    assert (config.k, config.epochs, config.split, config.rerank) == (7, 4, "last-out", "softmax")
    assert (config.alpha, config.seed, config.context) == (0.5, 9, ("country",))


def test_settings_survive_the_manifest() -> None:
    """The JSON of a config gives the same config again."""
    config = TrainConfig(k=3, context=("a", "b:categorical"), min_rating=4)

    assert stored_config(json.loads(json.dumps(config.to_json()))) == (config, [])


@pytest.mark.parametrize("text", ["k = ", "\xff"])
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, text: str) -> None:
    """The error has its path."""
    file = tmp_path / "config.toml"
    file.write_bytes(text.encode("latin-1"))

    with pytest.raises(ConfigError, match=r"config\.toml: not TOML"):
        load_config(file)


def test_a_file_saved_by_windows_is_read(tmp_path: Path) -> None:
    """The file has a byte order mark and CRLF line ends."""
    file = tmp_path / "config.toml"
    file.write_bytes(b"\xef\xbb\xbfk = 7\r\nepochs = 4\r\n")

    assert (load_config(file).k, load_config(file).epochs) == (7, 4)


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 5000])
def test_a_value_that_toml_cannot_hold_is_refused(tmp_path: Path, value: str) -> None:
    """5,000 digits, or as many brackets, make Python's TOML reader fail with errors of their own."""
    with pytest.raises(ConfigError, match="k: expected a whole number"):
        load_config(None, [f"k={value}"])
    (tmp_path / "config.toml").write_text(f"k = {value}")
    with pytest.raises(ConfigError, match=r"config\.toml: not TOML"):
        load_config(tmp_path / "config.toml")


def test_settings_without_effect_are_reported() -> None:
    """A line for each reason; settings at their defaults are not mentioned."""
    assert TrainConfig().without_effect(500) == []
    assert TrainConfig(alpha=2, eta=0.5, negatives=9, reassignments=99, epochs=5, warmup_epochs=2).without_effect(
        20_000
    ) == ["reassignments: 2 instead of 99; there are too few epochs for more"]
    assert TrainConfig(alpha=2, eta=0.5, negatives=9).without_effect(500) == [
        "no effect of eta, alpha: reassignments = 0",
        "no effect of negatives: 500 items are at most full_softmax_items = 10000, so nothing is sampled",
    ]


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    """The error has the reason."""
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "none.toml")


def test_set_needs_a_value() -> None:
    """`--set k` is refused."""
    with pytest.raises(ConfigError, match="expected key=value"):
        load_config(None, ["k"])


@pytest.mark.parametrize(("items", "width"), [(10, 10), (1447, 28), (54_542, 94)])
def test_width_follows_the_catalogue(items: int, width: int) -> None:
    """By default K is the smallest number with K^3 >= 5 V J, and at least 10."""
    assert TrainConfig().resolve_width(items) == width
    assert items < 100 or (width - 1) ** 3 < 15 * items <= width**3


def test_a_trie_too_large_for_the_network_is_refused() -> None:
    """Ten million items are possible at K = 100; a million at K = 100,000 are not."""
    assert TrainConfig(width=100).resolve_width(10_000_000) == 100
    with pytest.raises(ConfigError, match="width: the trie"):
        TrainConfig(width=100_000, depth=3).resolve_width(1_000_000)
    # The limit is 268,435 rows of 1,000: 267,433 prefixes of two nodes, 1,000 of one, the empty one, and the last row.
    config = TrainConfig(width=1000, depth=3, paths_per_item=1)
    assert config.resolve_width(267_433) == 1000
    with pytest.raises(ConfigError, match="width: the trie"):
        config.resolve_width(267_434)


@pytest.mark.parametrize(
    ("settings", "encoder", "paths"),
    [
        ({}, 100, 12),  # the encoder stops when the answers to tuning users no longer improve
        ({"warmup_epochs": 3}, 3, 12),
        ({"epochs": 20}, 8, 12),
        ({"epochs": 8, "warmup_epochs": 5}, 5, 3),
        ({"epochs": 1}, 1, 1),
        ({"epochs": 1, "warmup_epochs": 9}, 1, 1),
    ],
)
def test_epochs_are_divided_between_encoder_and_paths(settings: dict[str, Any], encoder: int, paths: int) -> None:
    """Two of five epochs are the encoder's; both learn for at least one epoch."""
    config = TrainConfig(**settings)

    assert (config.encoder_epochs, config.path_epochs) == (encoder, paths)


def test_settings_that_follow_from_the_data() -> None:
    """Dropout falls with the clicks per item from 0.5 to 0.2; targets are the next items if these are measured."""
    rates = [TrainConfig().resolve_dropout(clicks, 10) for clicks in (0, 100, 447, 2000, 99999)]
    assert rates == pytest.approx([0.5, 0.5, 0.35, 0.2, 0.2], abs=1e-3)
    assert TrainConfig(dropout=0.1).resolve_dropout(5, 10) == 0.1
    assert [TrainConfig(split=split).resolve_later() for split in ("users", "last-out")] == [0.5, 0]
    assert TrainConfig(later=0.2).resolve_later() == 0.2


def test_reassignments_leave_time_to_settle() -> None:
    """They are spread evenly over the path layers' epochs, with as many epochs after the last as between two."""
    config = TrainConfig(epochs=12, warmup_epochs=4)

    assert config.replace(reassignments=0).reassignment_epochs() == set()
    assert config.replace(reassignments=1).reassignment_epochs() == {4}
    assert config.replace(reassignments=3).reassignment_epochs() == {2, 4, 6}
    assert config.replace(reassignments=99).reassignment_epochs() == set(range(1, 8))
    assert TrainConfig(epochs=6, reassignments=1).reassignment_epochs() == {2}  # two are warm-up by default
    for epochs in (1, 2):
        assert TrainConfig(epochs=epochs).reassignment_epochs() == set()

"""Settings that cannot work are refused by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from trainer.config import TrainConfig, config_from, load_config
from trainer.errors import ConfigError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 100, "depth": 10}, "width, depth: 100\\^10 paths do not fit in int64"),
        ({"width": 2, "depth": 1, "paths_per_item": 3}, "paths_per_item: 3 different paths asked for"),
        ({"beam": 257}, "beam: expected 1 to 256"),
        ({"beam": 0}, "beam: expected 1 to 256"),
        ({"k": 0}, "k: expected at least 1"),
        ({"k": "ten"}, "k: expected a whole number, found 'ten'"),
        ({"k": True}, "k: expected a whole number, found True"),
        ({"alpha": -1}, "alpha: expected at least 0"),
        ({"alpha": "high"}, "alpha: expected a number or 'auto', found 'high'"),
        ({"alpha": float("nan")}, "alpha: expected a finite number"),
        ({"eta": 0}, "eta: expected above 0"),
        ({"eta": 1.1}, "eta: expected above 0"),
        ({"dropout": 1.0}, "dropout: expected at least 0 and below 1"),
        ({"learning_rate": 0}, "learning_rate: expected above 0"),
        ({"rerank": "gbdt"}, "rerank: expected 'lr' or 'softmax'"),
        ({"split": "random"}, "split: expected 'users' or 'last-out'"),
        ({"candidate_paths": 2}, "candidate_paths: expected at least paths_per_item = 3"),
        ({"seed": -1}, "seed: expected at least 0"),
        ({"warmup_epochs": 20}, "warmup_epochs: expected less than epochs = 20"),
        ({"warmup_epochs": 0}, "warmup_epochs: expected at least 1"),
        ({"depth": 40}, "width, depth: 10\\^40 paths do not fit"),
        ({"depth": 30_000_000, "width": 1000}, "width, depth"),
        ({"k": 10**400}, "k: expected a number that fits"),
        ({"beam": 256, "per_path": 500}, "beam, per_path: a request may read at most"),
        ({"context": ["a", "a:categorical"]}, "context: a is named twice"),
        ({"context": ["a:categoric"]}, 'context: expected "column", "column:category" or'),
        ({"context": [1]}, "context: expected a list of column names"),
        ({"beems": 3}, "beems: no such setting"),
    ],
)
def test_a_setting_that_cannot_work_is_named(values: dict[str, Any], message: str) -> None:
    """The message begins with the setting, says what was expected and what was found."""
    with pytest.raises(ConfigError, match=f"^{message}"):
        config_from(values)


def test_later_settings_win(tmp_path: Path) -> None:
    """Defaults, then the file, then --set, then flags."""
    file = tmp_path / "config.toml"
    file.write_text('k = 7\nepochs = 3\nsplit = "last-out"\ncontext = ["country"]\n')

    config = load_config(file, ["epochs=4", "rerank=softmax", "alpha=0.5"], seed=9)

    assert (config.k, config.epochs, config.split, config.rerank) == (7, 4, "last-out", "softmax")
    assert (config.alpha, config.seed, config.context) == (0.5, 9, ("country",))


def test_settings_survive_the_manifest() -> None:
    """What to_json gives makes the same config again."""
    config = config_from({"k": 3, "context": ["a", "b:categorical"], "min_rating": 4})

    assert config_from(config.to_json()) == config


@pytest.mark.parametrize("text", ["k = ", "\xff"])
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, text: str) -> None:
    """With its path."""
    file = tmp_path / "config.toml"
    file.write_bytes(text.encode("latin-1"))

    with pytest.raises(ConfigError, match=r"config\.toml: not TOML"):
        load_config(file)


def test_what_windows_saves_is_read(tmp_path: Path) -> None:
    """B29: TOML with a byte order mark and CRLF."""
    file = tmp_path / "config.toml"
    file.write_bytes(b"\xef\xbb\xbfk = 7\r\nepochs = 4\r\n")

    assert (load_config(file).k, load_config(file).epochs) == (7, 4)


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 5000])
def test_what_toml_cannot_hold_is_a_wrong_value(tmp_path: Path, value: str) -> None:
    """Python's reader fails in its own way at 5,000 digits, and at as many brackets."""
    with pytest.raises(ConfigError, match="k: expected a whole number"):
        load_config(None, [f"k={value}"])
    (tmp_path / "config.toml").write_text(f"k = {value}")
    with pytest.raises(ConfigError, match=r"config\.toml: not TOML"):
        load_config(tmp_path / "config.toml")


def test_what_is_set_and_changes_nothing_is_said() -> None:
    """B34: a line for each reason; nothing of what is as it comes."""
    assert TrainConfig().without_effect(500) == []
    assert TrainConfig(alpha=2, eta=0.5, negatives=9, reassignments=99, epochs=5, warmup_epochs=2).without_effect(
        20_000
    ) == ["reassignments: 2 instead of 99; there are too few epochs for more"]
    assert TrainConfig(alpha=2, eta=0.5, negatives=9).without_effect(500) == [
        "no effect of alpha, eta: reassignments = 0",
        "no effect of negatives: all 500 items are scored, up to full_softmax_items = 10000",
    ]


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    """With the reason."""
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "none.toml")


def test_set_needs_a_value() -> None:
    """`--set k` is not a setting."""
    with pytest.raises(ConfigError, match="expected key=value"):
        load_config(None, ["k"])


@pytest.mark.parametrize(("items", "width"), [(10, 10), (1447, 28), (54_542, 94)])
def test_width_follows_the_catalogue(items: int, width: int) -> None:
    """auto: the smallest K with K^3 >= 5 V J, at least 10."""
    assert TrainConfig().resolve_width(items) == width
    assert items < 100 or (width - 1) ** 3 < 15 * items <= width**3


def test_a_trie_too_large_for_the_network_is_refused() -> None:
    """Ten million items are no trouble at K = 100; a million at K = 100,000 are."""
    assert TrainConfig(width=100).resolve_width(10_000_000) == 100
    with pytest.raises(ConfigError, match="width: the trie"):
        TrainConfig(width=100_000, depth=3).resolve_width(1_000_000)


def test_reassignments_leave_time_to_settle() -> None:
    """Spread evenly after the warm-up, and as long after the last as between two."""
    config = TrainConfig(epochs=12, warmup_epochs=4)

    assert dataclasses.replace(config, reassignments=0).reassignment_epochs() == set()
    assert dataclasses.replace(config, reassignments=1).reassignment_epochs() == {8}
    assert dataclasses.replace(config, reassignments=3).reassignment_epochs() == {6, 8, 10}
    assert dataclasses.replace(config, reassignments=99).reassignment_epochs() == set(range(5, 12))
    assert TrainConfig(epochs=6, reassignments=1).reassignment_epochs() == {4}  # the warm-up is half by default
    assert (TrainConfig(epochs=1).passes, TrainConfig(epochs=1).warmup) == (2, 1)
    for epochs in (1, 2):
        assert TrainConfig(epochs=epochs).reassignment_epochs() == set()

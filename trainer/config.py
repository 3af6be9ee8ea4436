"""TrainConfig: every setting of a training run. Stored whole in the manifest of what the run publishes.

Symbols are the paper's (arXiv 2007.07203v2): D layers, K nodes a layer, J paths an item, S candidate paths.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from trainer.errors import ConfigError

#: Widest beam a version answers. Bounds what one request can cost.
MAX_BEAM = 256
#: The beam's table of live prefixes has at most this many entries (about 4 bytes each).
MAX_TABLE = 2**28


@dataclass(frozen=True)
class TrainConfig:
    """Checked when it is made; raises ConfigError naming the setting."""

    # The structure
    depth: int = 3  # D, layers of a path
    width: int | Literal["auto"] = "auto"  # K, nodes a layer; auto: the least with K^D >= 5 V J, at least 10
    paths_per_item: int = 3  # J, paths an item sits on

    # The network
    embedding: int = 64  # E, floats of an item or user vector
    hidden: int = 128  # units of the GRU and of each path layer
    history: int = 69  # most recent items the encoder reads (Sec. 4.1)
    dropout: float = 0.5  # of the encoder's inputs and output
    context: tuple[str, ...] = ()  # the user's columns the encoder reads: "name" or "name:categorical"

    # The gradient steps
    epochs: int = 12  # passes over the interactions
    warmup_epochs: int = 5  # of them, before the first reassignment
    reassignments: int = 1  # M-steps, spread evenly over the epochs after the warm-up (the paper: one an epoch)
    joint_epochs: int = 0  # of them, with the softmax head learning too; 0: all (the paper: the first half)
    batch: int = 2048  # interactions a gradient step
    learning_rate: float = 0.003  # Adam's, at first; falls to a tenth
    weight_decay: float = 0.00001  # L2, in Adam's gradient
    later: float = 0.5  # share of predictions of any later item instead of the next
    full_softmax_items: int = 10_000  # V above which the head learns from sampled negatives
    negatives: int = 2000  # sampled a step, shared by the batch

    # The assignment
    candidate_paths: int = 30  # S, paths scored an item
    eta: float = 0.999  # decay of a score at each further observation of its item
    alpha: float | Literal["auto"] = "auto"  # penalty on crowded paths; auto: meets the candidate budget
    sweeps: int = 5  # T, of the coordinate descent (Sec. 3.3: 3 to 5)

    # The answer
    k: int = 100  # candidates returned; 5k to 10k are read
    beam: int | Literal["auto"] = "auto"  # W, paths searched a request; auto: measured after training
    per_path: int | Literal["auto"] = "auto"  # n, items read of a path; auto: chosen together with beam
    rerank: Literal["lr", "softmax"] = "lr"  # by logistic regression, or by the softmax head alone

    # The data
    min_rating: float | None = None  # rows rated lower are dropped
    min_interactions: int = 3  # users with fewer are dropped
    split: Literal["users", "last-out"] = "users"  # held-out users' second halves, or everybody's last item
    test_users: int | Literal["auto"] = "auto"  # held out; auto: a tenth of the users, at most 1,000
    seed: int = 0  # of everything that is drawn

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            _check_type(name, getattr(self, name), kind)
        for name in _AT_LEAST_ONE:
            value = getattr(self, name)
            if value != "auto" and value < 1:
                raise ConfigError(f"{name}: expected at least 1, found {value}")
        for name in ("test_users", "warmup_epochs", "reassignments", "joint_epochs", "seed", "weight_decay"):
            value = getattr(self, name)
            if value != "auto" and value < 0:
                raise ConfigError(f"{name}: expected 0 or more, found {value}")
        if self.seed >= 2**63:
            raise ConfigError("seed: expected less than 2^63")
        if not 0 < self.eta <= 1:
            raise ConfigError(f"eta: expected above 0 and at most 1, found {self.eta}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout: expected at least 0 and below 1, found {self.dropout}")
        if not 0 <= self.later <= 1:
            raise ConfigError(f"later: expected 0 to 1, found {self.later}")
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate: expected above 0, found {self.learning_rate}")
        if self.alpha != "auto" and self.alpha < 0:
            raise ConfigError(f"alpha: expected 0 or more, or 'auto', found {self.alpha}")
        if self.beam != "auto" and self.beam > MAX_BEAM:
            raise ConfigError(f"beam: expected at most {MAX_BEAM}, found {self.beam}")
        if self.candidate_paths < self.paths_per_item:
            raise ConfigError(
                f"candidate_paths: expected at least paths_per_item = {self.paths_per_item}, "
                f"found {self.candidate_paths}"
            )
        if isinstance(self.width, int):
            self._check_paths(self.width)

    def _check_paths(self, width: int) -> None:
        if width**self.depth >= 2**63:
            raise ConfigError(f"width, depth: {width}^{self.depth} paths do not fit in int64; make one smaller")
        if self.paths_per_item > width**self.depth:
            raise ConfigError(
                f"paths_per_item: {self.paths_per_item} different paths asked for, "
                f"but width^depth = {width**self.depth} exist"
            )
        if self.candidate_paths > width**self.depth:
            raise ConfigError(
                f"candidate_paths: expected at most width^depth = {width**self.depth}, found {self.candidate_paths}"
            )

    def resolve_width(self, items: int) -> int:
        """K for a catalogue of V items.

        auto: the smallest K with K^D >= 5 V J, at least 10. Then a random assignment is nearly free of
        collisions, and it is left to the penalty how many paths are used (README, Decisions).
        """
        if isinstance(self.width, int):
            width = self.width
        else:
            width = max(10, math.ceil((5 * items * self.paths_per_item) ** (1 / self.depth)))
            self._check_paths(width)
        if min(width ** (self.depth - 1), items * self.paths_per_item) * width > MAX_TABLE:
            raise ConfigError(f"width: the beam's table for {items} items would be too large at K = {width}")
        return width

    def reassignment_epochs(self) -> set[int]:
        """The epochs that end with an M-step. The network settles for as long after the last as between two."""
        after = self.epochs - self.warmup_epochs
        count = min(self.reassignments, after)
        return {self.warmup_epochs + after * number // count for number in range(count)} if count > 0 else set()

    def replace(self, **changes: Any) -> TrainConfig:
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"context": list(self.context)}


_AT_LEAST_ONE = (
    "depth", "width", "paths_per_item", "embedding", "hidden", "history", "epochs", "batch",
    "full_softmax_items", "negatives", "candidate_paths", "sweeps", "k", "beam", "per_path", "min_interactions",
)  # fmt: skip


def load_config(file: Path | None, settings: Iterable[str] = (), **overrides: Any) -> TrainConfig:
    """TrainConfig of a TOML file, then of `key=value` settings, then of `overrides` that are not None."""
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = tomllib.loads(file.read_text("utf-8"))
        except OSError as error:
            raise ConfigError(f"{file}: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: not TOML: {error}") from None
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator:
            raise ConfigError(f"--set {setting}: expected key=value")
        values[key.strip()] = _parse_value(text.strip())
    values |= {key: value for key, value in overrides.items() if value is not None}
    return config_from(values)


def config_from(values: dict[str, Any]) -> TrainConfig:
    """TrainConfig of plain values, such as a manifest's. Raises ConfigError for an unknown key."""
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    for key in values:
        if key not in known:
            raise ConfigError(f"{key}: no such setting; there are {', '.join(sorted(known))}")
    if isinstance(values.get("context"), list):
        values = values | {"context": tuple(values["context"])}
    if isinstance(values.get("context"), str):
        values = values | {"context": tuple(filter(None, values["context"].split(",")))}
    return TrainConfig(**values)


def _parse_value(text: str) -> Any:
    """`text` as TOML has it (3, 0.5, "lr", ["a"]), or else as the string it is (lr, last-out)."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _check_type(name: str, value: Any, kind: Any) -> None:
    """Raise ConfigError unless `value` is one of what the annotation `kind` allows."""
    if kind == tuple[str, ...]:
        if not isinstance(value, tuple) or not all(isinstance(part, str) for part in value):
            raise ConfigError(f"{name}: expected a list of column names, found {value!r}")
        return
    expected = []
    for option in (kind,) if get_origin(kind) is Literal else get_args(kind) or (kind,):
        if get_origin(option) is Literal:
            if value in get_args(option):
                return
            expected += [repr(choice) for choice in get_args(option)]
        elif option is type(None):
            if value is None:
                return
        elif isinstance(value, int | float if option is float else option) and not isinstance(value, bool):
            if not math.isfinite(value):
                raise ConfigError(f"{name}: expected a finite number, found {value}")
            return
        else:
            expected.append("a number" if option is float else "a whole number")
    raise ConfigError(f"{name}: expected {' or '.join(expected)}, found {value!r}")

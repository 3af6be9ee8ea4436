"""TrainConfig: every setting of a training run. Stored whole in the manifest of what the run publishes.

Symbols are the paper's (arXiv 2007.07203v2): D layers, K nodes a layer, J paths an item, S candidate paths.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from retrieval.query import Limits
from trainer.errors import ConfigError

#: Up to so many items a gradient step moves all their vectors, as Adam does, also of those it has not read: a little
#: more is found in a catalogue of 50,000, but with 1.5 million an epoch takes an order longer (README, Decisions).
DENSE_ITEMS = 200_000
#: The least K that width = "auto" gives.
MIN_WIDTH = 10
#: The trie of the paths in use has at most this many entries, 4 bytes each: it is in the ONNX file, which ends at 2 GB.
MAX_TRIE = 2**28


@dataclass(frozen=True)
class TrainConfig:
    """Checked when it is made; raises ConfigError naming the setting."""

    # The structure
    depth: int = 3  # D, layers of a path
    width: int | Literal["auto"] = "auto"  # K, nodes a layer; auto: the least with K^D >= 5 V J, at least 10
    paths_per_item: int = 3  # J, paths an item sits on

    # The network
    embedding: int = 64  # E, floats of an item or user vector, units of the GRU
    hidden: int = 256  # H, units of each path layer's MLP
    history: int = 69  # most recent items the encoder reads (Sec. 4.1)
    dropout: float = 0.5  # of the encoder's inputs and output
    context: tuple[str, ...] = ()  # the user's columns the encoder reads: "name", "name:category" or "name:number"

    # The gradient steps
    epochs: int = 20  # passes over the interactions, two at least: one for the encoder, one for the paths
    warmup_epochs: int | Literal["auto"] = "auto"  # of them, for encoder and head, before there are paths; auto: 2 of 5
    start: Literal["tree", "random"] = "tree"  # the first paths: by a tree over the item vectors, or drawn (Sec. 3.2)
    reassignments: int = 0  # M-steps, spread evenly over the epochs after the warm-up (the paper: one an epoch)
    taught: float = 0.5  # share of the path layers' targets drawn from the head's softmax instead of the clicks
    batch: int | Literal["auto"] = "auto"  # interactions a step of the encoder; auto: a hundredth of all, 256 to 2048
    learning_rate: float = 0.003  # Adam's, at first; falls to a tenth
    weight_decay: float = 0.00001  # L2, in Adam's gradient; not of item vectors beyond 200,000 items
    later: float = 0.5  # share of predictions of any later item instead of the next
    full_softmax_items: int = 10_000  # V above which the head learns from sampled negatives
    negatives: int = 2000  # sampled a step, shared by the batch

    # The assignment
    candidate_paths: int = 80  # S, paths scored an item, or all K^D where they are fewer
    eta: float = 0.999  # decay of a score at each further observation of its item
    alpha: float | Literal["auto"] = "auto"  # penalty on crowded paths; auto: meets the candidate budget
    sweeps: int = 5  # T, of the coordinate descent (Sec. 3.3: 3 to 5)

    # The answer
    k: int = 100  # candidates returned; 5k to 10k are read
    beam: int | Literal["auto"] = "auto"  # W, paths searched a request; auto: measured after training
    per_path: int | Literal["auto"] = "auto"  # n, items read of a path; auto: chosen together with beam
    rerank: Literal["lr", "softmax"] = "lr"  # by logistic regression, or by the softmax head alone

    # What is published; fit --allow-collapsed publishes all the same
    gate_largest: float = 0.05  # share of the items that one path may hold, or 10 k items where that is more
    gate_entropy: float = 0.3  # entropy of the paths at least, relative to that of the items
    gate_reach: float = 0.1  # clicked items that training users reach, relative to what as many reads could

    # The data
    item_id: Literal["auto", "integer", "string"] = (
        "auto"  # type of the ids; auto: integers if all files have only such
    )
    user_id: Literal["auto", "integer", "string"] = "auto"  # likewise
    min_rating: float | None = None  # rows rated lower are dropped
    min_interactions: int = 3  # users with fewer are dropped
    split: Literal["users", "last-out"] = "users"  # held-out users' second halves, or everybody's last item
    test_users: int | Literal["auto"] = "auto"  # held out; auto: a tenth of the users, at most 1,000
    seed: int = 0  # of everything that is drawn
    device: Literal["auto", "cpu", "cuda"] = "auto"  # where training computes; auto: on a GPU where there is one

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            _check_type(name, getattr(self, name), kind)
        for name, (allowed, expected) in _BOUNDS.items():
            value = getattr(self, name)
            if value != "auto" and not allowed(value):
                raise ConfigError(f"{name}: expected {expected}, found {value}")
        if self.warmup_epochs != "auto" and self.warmup_epochs >= self.epochs > 1:
            raise ConfigError(
                f"warmup_epochs: expected less than epochs = {self.epochs}, or no paths would be learned; "
                f"found {self.warmup_epochs}"
            )
        if self.candidate_paths < self.paths_per_item:
            raise ConfigError(
                f"candidate_paths: expected at least paths_per_item = {self.paths_per_item}, "
                f"found {self.candidate_paths}"
            )
        if self.beam != "auto" and self.per_path != "auto" and self.beam * self.per_path > Limits.READS:
            raise ConfigError(f"beam, per_path: a request may read at most {Limits.READS} items, their product")
        self._check_context()
        if isinstance(self.width, int):
            self._check_paths(self.width)
        elif self.depth > 62 or MIN_WIDTH**self.depth >= 2**63:
            raise ConfigError(f"width, depth: {MIN_WIDTH}^{self.depth} paths do not fit in int64; make depth smaller")

    def _check_context(self) -> None:
        if len(self.context) > Limits.FEATURES:
            raise ConfigError(f"context: expected at most {Limits.FEATURES} columns, found {len(self.context)}")
        names = [spec.partition(":")[0] for spec in self.context]
        for spec, name in zip(self.context, names, strict=True):
            if not name or spec not in {name, *(f"{name}:{kind}" for kind in ("category", "categorical", "number"))}:
                raise ConfigError(f'context: expected "column", "column:category" or "column:number", found {spec!r}')
            if len(name) > Limits.FEATURE_NAME:
                raise ConfigError(f"context: a name of {len(name)} characters; expected at most {Limits.FEATURE_NAME}")
            if names.count(name) > 1:
                raise ConfigError(f"context: {name} is named twice")

    def _check_paths(self, width: int) -> None:
        if self.depth > 62 or width**self.depth >= 2**63:
            raise ConfigError(f"width, depth: {width}^{self.depth} paths do not fit in int64; make one smaller")
        if self.paths_per_item > width**self.depth:
            raise ConfigError(
                f"paths_per_item: {self.paths_per_item} different paths asked for, "
                f"but width^depth = {width**self.depth} exist"
            )

    def resolve_width(self, items: int) -> int:
        """K for a catalogue of V items.

        auto: the smallest K with K^D >= 5 V J, at least 10. Then a random assignment is nearly free of
        collisions, and it is left to the penalty how many paths are used.
        """
        if isinstance(self.width, int):
            width = self.width
        else:
            width = max(MIN_WIDTH, math.ceil((5 * items * self.paths_per_item) ** (1 / self.depth)))
            self._check_paths(width)
        rows = sum(min(width**d, items * self.paths_per_item) for d in range(self.depth))
        if rows * width > MAX_TRIE:
            raise ConfigError(
                f"width: the trie of the paths of {items} items would have {rows * width} entries at K = {width}; "
                f"expected at most {MAX_TRIE}; choose a smaller width, or more paths a node by a smaller depth"
            )
        return width

    def resolve_batch(self, interactions: int) -> int:
        """Interactions a step of the encoder. auto: so few that an epoch of few of them has a hundred steps too."""
        return min(2048, max(256, interactions // 100)) if self.batch == "auto" else self.batch

    def samples_negatives(self, items: int) -> bool:
        """Whether the head learns from sampled negatives instead of from all items."""
        return items > self.full_softmax_items

    def steps_are_sparse(self, items: int) -> bool:
        """Whether a gradient step changes the vectors of the items it has read alone."""
        return self.samples_negatives(items) and items > DENSE_ITEMS

    @property
    def passes(self) -> int:
        """The epochs there really are: two at least."""
        return max(2, self.epochs)

    @property
    def warmup(self) -> int:
        """The epochs before there are paths."""
        return (
            max(1, self.passes * 2 // 5) if self.warmup_epochs == "auto" else min(self.warmup_epochs, self.passes - 1)
        )

    def reassignment_epochs(self) -> set[int]:
        """The epochs that end with an M-step. The network settles for as long after the last as between two."""
        after = self.passes - self.warmup
        count = min(self.reassignments, after - 1)
        return {self.warmup + after * number // (count + 1) for number in range(1, count + 1)}

    def without_effect(self, items: int) -> list[str]:
        """Settings that are not at their defaults and change nothing, with the reason; a line each. items: V."""
        changed = [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        unused = {
            "reassignments = 0": () if self.reassignments else ("alpha", "eta", "sweeps", "candidate_paths"),
            f"all {items} items are scored, up to full_softmax_items = {self.full_softmax_items}": (
                () if self.samples_negatives(items) else ("negatives",)
            ),
        }
        lines = [
            f"no effect of {', '.join(names)}: {why}"
            for why, of in unused.items()
            if (names := [name for name in of if name in changed])
        ]
        if self.reassignments > (most := len(self.reassignment_epochs())):
            lines.append(f"reassignments: {most} instead of {self.reassignments}; there are too few epochs for more")
        return lines

    def replace(self, **changes: Any) -> TrainConfig:
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"context": list(self.context)}


def _at_least(least: int) -> tuple[Callable[[float], bool], str]:
    return lambda value: value >= least, f"at least {least}"


#: What each setting must be, and how to say it.
_BOUNDS: dict[str, tuple[Callable[[float], bool], str]] = {
    **{
        name: _at_least(1)
        for name in (
            "depth", "width", "paths_per_item", "embedding", "hidden", "history", "epochs", "warmup_epochs", "batch",
            "full_softmax_items", "negatives", "candidate_paths", "sweeps", "k", "per_path", "min_interactions",
        )
    },
    **{
        name: _at_least(0)
        for name in ("test_users", "reassignments", "seed", "weight_decay", "alpha")
    },
    "beam": (lambda value: 1 <= value <= Limits.BEAM, f"1 to {Limits.BEAM}"),
    "eta": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "dropout": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
    **{
        name: (lambda value: 0 <= value <= 1, "0 to 1")
        for name in ("later", "taught", "gate_largest", "gate_entropy", "gate_reach")
    },
    "learning_rate": (lambda value: value > 0, "above 0"),
}  # fmt: skip


def load_config(file: Path | None, settings: Iterable[str] = (), **overrides: Any) -> TrainConfig:
    """TrainConfig of a TOML file, then of `key=value` settings, then of `overrides` that are not None."""
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = tomllib.loads(file.read_text("utf-8-sig"))  # Windows saves it with a byte order mark
        except OSError as error:
            raise ConfigError(f"{file}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{file}: not TOML: it is not UTF-8; save it as that") from None
        except (ValueError, RecursionError) as error:  # also of a number of 5,000 digits, or 5,000 brackets
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
        values = values | {"context": tuple(filter(None, map(str.strip, values["context"].split(","))))}
    return TrainConfig(**values)


def _parse_value(text: str) -> Any:
    """`text` as TOML has it (3, 0.5, "lr", ["a"]), or else as the string it is (lr, last-out)."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
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
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise ConfigError(f"{name}: expected a number that fits in 64 bits")
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{name}: expected a finite number, found {value}")
            return
        else:
            expected.append("a number" if option is float else "a whole number")
    raise ConfigError(f"{name}: expected {' or '.join(expected)}, found {value!r}")

"""TrainConfig: every setting of a training run, read from a TOML file, from `--set`, or from a stored version."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from trainer.errors import ConfigError
from trainer.settings import Answer, Assignment, Data, Gate, GradientSteps, Network, Structure

GROUPS = (Structure, Network, GradientSteps, Assignment, Answer, Gate, Data)


# pydantic puts the fields of the last base class first, so the fields have the order of GROUPS.
class TrainConfig(Data, Gate, Answer, Assignment, GradientSteps, Network, Structure):
    """All settings, checked when the object is created. Raises ConfigError with a line for each mistake."""

    @model_validator(mode="after")
    def _own_paths_are_candidates(self) -> Self:
        if self.candidate_paths < self.paths_per_item:
            raise ConfigError(
                f"candidate_paths: expected at least paths_per_item = {self.paths_per_item}, "
                f"found {self.candidate_paths}"
            )
        return self

    @property
    def is_the_papers_em(self) -> bool:
        """Whether paths start random and are reassigned (Sec. 3.2); then the path layers learn by eq. (2)."""
        return self.start == "random" and self.reassignments > 0

    def resolve_later(self) -> float:
        """The share of targets that are a later item. auto: it follows from what is measured, see `split`."""
        if self.later != "auto":
            return self.later
        return 0.5 if self.split == "users" else 0.0

    def without_effect(self, items: int) -> list[str]:
        """Messages that list the changed settings without effect, one message for each reason. items: V."""
        changed = [name for name, field in TrainConfig.model_fields.items() if getattr(self, name) != field.default]
        unused = {
            "reassignments = 0": () if self.reassignments else Assignment.model_fields,
            f"{items} items are at most full_softmax_items = {self.full_softmax_items}, so nothing is sampled": (
                () if self.samples_negatives(items) else ("negatives",)
            ),
        }
        lines = [
            f"no effect of {', '.join(names)}: {why}"
            for why, settings in unused.items()
            if (names := [name for name in changed if name in settings])
        ]
        if self.reassignments > (most := len(self.reassignment_epochs())):
            lines.append(f"reassignments: {most} instead of {self.reassignments}; there are too few epochs for more")
        return lines

    def replace(self, **changes: Any) -> TrainConfig:
        """A copy of the settings with `changes`, checked again."""
        return TrainConfig(**dict(self) | changes)

    def to_json(self) -> dict[str, Any]:
        """The JSON object that a manifest stores and `stored_config` reads."""
        return self.model_dump(mode="json")


def load_config(file: Path | None, settings: Iterable[str] = (), **overrides: Any) -> TrainConfig:
    """Make a TrainConfig from a TOML file, `key=value` settings and `overrides`; later values replace earlier ones.

    Overrides that are None change nothing.
    """
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = tomllib.loads(file.read_text("utf-8-sig"))  # some Windows editors write a byte order mark
        except OSError as error:
            raise ConfigError(f"{file}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{file}: not TOML: it is not UTF-8; save it as that") from None
        except (ValueError, RecursionError) as error:  # also raised for 5,000 digits or 5,000 nested brackets
            raise ConfigError(f"{file}: not TOML: {error}") from None
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator:
            raise ConfigError(f"--set {setting}: expected key=value")
        values[key.strip()] = _parse_value(text.strip())
    return TrainConfig(**values | {key: value for key, value in overrides.items() if value is not None})


def stored_config(settings: Mapping[str, Any]) -> tuple[TrainConfig, list[str]]:
    """The config in a version's manifest, and the names of the settings there that this release does not know.

    Unknown settings are ignored, and settings that the manifest lacks get their defaults. So a version stays readable
    when a release adds, renames or removes settings. Raises ConfigError for a value that this release cannot use.
    """
    known = {name: value for name, value in settings.items() if name in TrainConfig.model_fields}
    return TrainConfig(**known), sorted(settings.keys() - known.keys())


def _parse_value(text: str) -> Any:
    """The value of `text` if it is TOML (3, 0.5, "lr", ["a"]), else the text itself (lr, last-out)."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text

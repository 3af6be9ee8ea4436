"""The part of a manifest that belongs to the kind "paths"."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from index_store.errors import VersionDamaged

MAX_DEPTH = 62  # 2^62 paths is the largest power of two below 2^63


@dataclass(frozen=True)
class PathFacts:
    """What `Manifest.structure` says of a version of kind "paths"."""

    depth: int  # D
    width: int  # K
    paths_per_item: int  # J
    paths: int  # P, in use
    postings: int  # sum of the path lists' lengths
    beam: int  # W, paths searched by default
    per_path: int  # n, items read of a path by default
    max_beam: int  # widest beam that the network accepts

    @classmethod
    def of(cls, structure: Mapping[str, Any]) -> PathFacts:
        """Raises VersionDamaged where a fact is missing, unknown, or not a whole number from 1."""
        try:
            facts = cls(**structure)
        except TypeError:
            names = ", ".join(field.name for field in dataclasses.fields(cls))
            raise VersionDamaged(f"structure: expected {names}") from None
        for name, value in dataclasses.asdict(facts).items():
            if type(value) is not int or value < 1:
                raise VersionDamaged(f"{name}: expected a whole number from 1, found {value!r}")
        if facts.beam > facts.max_beam:
            raise VersionDamaged(f"beam: expected at most max_beam, {facts.max_beam}, found {facts.beam}")
        # A huge depth or width is refused before the power is computed, which could take hours.
        if facts.width >= 2**63 or (facts.width > 1 and facts.depth > MAX_DEPTH) or facts.width**facts.depth >= 2**63:
            raise VersionDamaged(f"width, depth: {facts.width}^{facts.depth} paths do not fit in int64")
        return facts

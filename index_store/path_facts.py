"""The content of `Manifest.structure` for a version of kind "paths"."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from index_store.errors import VersionDamaged

MAX_DEPTH = 62  # with two nodes a layer, 62 layers give 2^62 paths, the largest power of two below 2^63


@dataclass(frozen=True)
class PathFacts:
    """The fields of `Manifest.structure` for a version of kind "paths"."""

    depth: int  # D, the number of layers
    width: int  # K, the number of nodes in each layer
    paths_per_item: int  # J, the number of paths that hold an item
    paths: int  # P, the number of paths in use
    postings: int  # sum of the path lists' lengths
    beam: int  # W, the number of paths searched by default
    per_path: int  # n, the number of items read from a path by default
    max_beam: int  # widest beam that the network accepts

    def nodes(self, paths: Iterable[int]) -> list[list[int]]:
        """The nodes of paths, one of each layer, from their ids."""
        powers = [self.width ** (self.depth - 1 - layer) for layer in range(self.depth)]
        return [[path // power % self.width for power in powers] for path in paths]

    @classmethod
    def of(cls, structure: Mapping[str, Any]) -> PathFacts:
        """The facts in `structure`. Raises VersionDamaged if one is missing, unknown, or not a whole number from 1."""
        try:
            facts = cls(**structure)
        except TypeError:
            names = ", ".join(field.name for field in dataclasses.fields(cls))
            raise VersionDamaged(f"structure: expected {names}") from None
        for name, value in dataclasses.asdict(facts).items():
            least = 0 if name == "postings" else 1  # all items may be deleted
            if type(value) is not int or value < least:
                raise VersionDamaged(f"{name}: expected a whole number from {least}, found {value!r}")
        if facts.beam > facts.max_beam:
            raise VersionDamaged(f"beam: expected at most max_beam, {facts.max_beam}, found {facts.beam}")
        # Refuse a huge depth or width first: computing its power could take hours.
        if facts.width >= 2**63 or facts.depth > MAX_DEPTH or facts.width**facts.depth >= 2**63:
            raise VersionDamaged(f"width, depth: {facts.width}^{facts.depth} paths do not fit in int64")
        return facts

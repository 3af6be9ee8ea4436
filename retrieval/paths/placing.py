"""Place a new item: find a vector, a bias, paths and similar items for it, from what is known about it.

What is known are histories of users who clicked it, items that it is like, or its attributes and its title. For an
item that is like another one, a user who has just clicked the other one stands for a clicking user. Attributes predict
a vector, with a regression that was fitted to the items of the version; the network reads it as if it were in a
history, and the item is like the NEAREST items to the vector on the paths that are found. From the users follow:

- its paths: those with the largest sum of the users' path probabilities, divided by 1 plus the number of new items that
  are on the path already. That is the score of the paper's M-step (Sec. 3.2) with a penalty on crowded paths;
- its vector: a linear map, fitted when the version was made, of the mean vector of these users (linear discriminant
  analysis: the softmax head separates the users of an item from all others). The map says little about the length, so
  the vector gets the mean length of the vectors of clicked items;
- its neighbours and the items that it follows: the most frequent in the histories, relative to their popularity;
- its bias is the same for all new items, that of an often clicked item; the learner corrects it.

docs/log-living.md has what was tried, and what it is worth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index_store.errors import VersionDamaged
from retrieval.attributes import AttributeSchema
from retrieval.changes import Evidence, PlacedBy, Placement, Similar
from retrieval.context import ContextSchema
from retrieval.paths.overlay import NEIGHBOURS
from retrieval.paths.rerank import Beams
from retrieval.paths.structure import PathStructure
from retrieval.vocabulary import Vocabulary

TOGETHER = 64  # users searched at once
NEAREST = 5  # items to which an item with attributes alone is like
READ = 5  # items of each path among which these are looked for
GAPS = (1, 2, 3)  # an item follows another if it is so many places after it; it counts 1 / gap
#: Clicks that are added to each item, so that rare items are not similar by chance; relative to those of a new item.
RARE = 1 / 3


@dataclass(frozen=True)
class PlacingFacts:
    """What a version knows about the places of its items; see placing.json.

    users: (E,), the mean user vector at a click. matrix: (E, E), from the mean user vector of an item's clicks minus
    `users` to the item's vector minus `items`. items: (E,), the mean vector of clicked items. length: the mean length
    of their vectors. bias: that of a new item. features: (F + 1, E), see feature_vectors.npy.
    """

    users: NDArray[np.float32]
    matrix: NDArray[np.float32]
    items: NDArray[np.float32]
    length: float
    bias: float
    features: NDArray[np.float16]

    def to_json(self) -> dict[str, Any]:
        """The content of placing.json."""
        arrays = {name: np.round(getattr(self, name), 6).tolist() for name in ("users", "matrix", "items")}
        return {**arrays, "length": self.length, "bias": self.bias}

    @classmethod
    def from_json(cls, document: Any, features: NDArray[np.float16]) -> PlacingFacts:
        """The facts in placing.json and feature_vectors.npy. Raises VersionDamaged for wrong shapes or numbers."""
        size = features.shape[1]
        try:
            users, matrix, items = (np.array(document[name], np.float32) for name in ("users", "matrix", "items"))
            length, bias = float(document["length"]), float(document["bias"])
        except (KeyError, TypeError, ValueError, OverflowError):
            raise VersionDamaged("placing.json: expected users, matrix, items, length and bias") from None
        numbers = np.concatenate([users.ravel(), matrix.ravel(), items.ravel(), [length, bias]])
        if (users.shape, matrix.shape, items.shape) != ((size,), (size, size), (size,)):
            raise VersionDamaged(f"placing.json: expected vectors of {size} numbers")
        if not np.isfinite(numbers).all():
            raise VersionDamaged("placing.json: a number is not finite")
        return cls(users, matrix, items, length, bias, features)


@dataclass(frozen=True)
class Placer:
    """Places items for one version."""

    structure: PathStructure
    vocabulary: Vocabulary
    schema: ContextSchema
    facts: PlacingFacts
    beam: int  # paths searched for a user
    count: int  # J, paths of an item
    network: str  # see Placement
    attributes: AttributeSchema

    def place(self, evidence: Sequence[Evidence]) -> list[Placement]:
        """A placement for each new item. Items of the same call avoid each other's paths.

        Histories without a known item, and unknown items that an item is like, count for nothing. An item of which
        nothing else is known gets the mean vector and no path.
        """
        known = self._histories(evidence)
        users, rows, probabilities = self._search([history for histories, _ in known for history in histories])
        crowd: Counter[int] = Counter()
        placements, start = [], 0
        for histories, placed_by in known:
            these = slice(start, start + len(histories))
            start = these.stop
            if not histories:
                placements.append(Placement(self._vector(self.facts.items), self.facts.bias, [], "none", self.network))
                continue
            chosen = self._choose(rows[these], probabilities[these], crowd)
            crowd.update(chosen)
            mean = users[these].mean(axis=0) - self.facts.users
            near, follows = self._similar(histories)
            placements.append(
                Placement(
                    self._vector(self.facts.items + mean @ self.facts.matrix),
                    self.facts.bias,
                    self.structure.index.path_ids[chosen].tolist(),
                    placed_by,
                    self.network,
                    near,
                    follows,
                )
            )
        return placements

    def _histories(self, evidence: Sequence[Evidence]) -> list[tuple[list[NDArray[np.int64]], PlacedBy]]:
        """The histories that each item is placed by, as item indices, and what these were made of."""
        found: list[tuple[list[NDArray[np.int64]], PlacedBy]] = []
        described: dict[int, NDArray[np.float16]] = {}  # the predicted vectors of those that are placed by attributes
        for each in evidence:
            clicked = [known for history in each.clicked_by if len(known := self.vocabulary.indices(history))]
            like = list(self.vocabulary.indices(each.like)[:, None])
            if not clicked and not like and (features := self.attributes.features(each.attributes)):
                last, *added = self.facts.features[[-1, *features]].astype(np.float32)
                described[len(found)] = self._vector(last + np.sum(added, axis=0) / len(features) ** 0.5)
            found.append((clicked, "clicks") if clicked else (like, "like"))
        for place, nearest in zip(described, self._nearest(list(described.values())), strict=True):
            found[place] = list(nearest[:, None]), "attributes"
        return found

    def _nearest(self, vectors: list[NDArray[np.float16]]) -> Iterator[NDArray[np.int64]]:
        """For each vector, the items with the nearest directions, of those that its paths have."""
        index = self.structure.index
        table, *_ = index.item_arrays
        for start in range(0, len(vectors), TOGETHER):
            part = np.array(vectors[start : start + TOGETHER])
            histories = list(len(table) + np.arange(len(part))[:, None])
            beams = self._run(histories, part.view(np.uint16))
            read = self.structure.read(beams, READ)
            ends = np.cumsum(read.lengths.sum(axis=1))
            for vector, first, end in zip(part, [0, *ends[:-1]], ends, strict=True):
                items = np.unique(read.items[first:end]).astype(np.int64)
                items = items[items < len(table)]
                others = table[items].view(np.float16).astype(np.float32)
                cosine = others @ vector.astype(np.float32) / (np.linalg.norm(others, axis=1) + 1e-9)
                yield items[np.argsort(-cosine, kind="stable")[:NEAREST]]

    def _run(self, histories: Sequence[NDArray[np.int64]], new: NDArray[np.uint16] | None = None) -> Beams:
        """The widest beams of users with these histories and without a context."""
        categories, numbers, _ = self.schema.encode({})
        tile = np.tile(np.array(categories, np.int64), (len(histories), 1))
        of_numbers = np.tile(np.array(numbers, np.float32), (len(histories), 1))
        return self.structure.search(histories, tile, of_numbers, self.beam, new)

    def _search(
        self, histories: list[NDArray[np.int64]]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
        """The user vectors (N, E) of histories, the paths found for each (N, W), and their probabilities (N, W)."""
        found = [self._run(histories[start : start + TOGETHER]) for start in range(0, len(histories), TOGETHER)]
        if not found:
            return np.empty((0, 0), np.float32), np.empty((0, 0), np.int64), np.empty((0, 0), np.float32)
        return (
            np.concatenate([beams.user for beams in found]),
            np.concatenate([beams.paths for beams in found]).astype(np.int64),
            np.exp(np.concatenate([beams.log_probs for beams in found])),
        )

    def _choose(
        self, rows: NDArray[np.int64], probabilities: NDArray[np.float32], crowd: Mapping[int, int]
    ) -> list[int]:
        """The rows of the J best paths for users whose paths and probabilities are given, (N, W) each."""
        used = rows >= 0
        candidates, place = np.unique(rows[used], return_inverse=True)
        scores = np.bincount(place, probabilities[used])
        overlay = self.structure.index.overlay
        crowded = np.array([crowd.get(row, 0) for row in candidates.tolist()], float)
        crowded += overlay.crowd[candidates] if overlay else 0
        best = np.argsort(-scores / (1 + crowded), kind="stable")[: self.count]
        return [int(row) for row in candidates[best]]

    def _vector(self, direction: NDArray[np.float32]) -> NDArray[np.float16]:
        """A vector of the usual length."""
        length = float(np.linalg.norm(direction))
        return (direction * (self.facts.length / length if length > 0 else 0)).astype(np.float16)

    def _similar(self, histories: Sequence[NDArray[np.int64]]) -> tuple[Similar, Similar]:
        """Items that have the new item among their neighbours, and those that it follows, with their similarities.

        In trainer/data/neighbours.py the similarities are of whole catalogues: a cosine is the number of common users,
        divided by the root of the product of both items' users. Here, the share of the histories that have an item is
        known, and the new item is taken to be as popular as its bias says.
        """
        near: Counter[int] = Counter()
        follows: Counter[int] = Counter()
        for history in histories:
            near.update(set(history.tolist()))
            for gap in GAPS:
                if len(history) >= gap:
                    follows[int(history[-gap])] += 1 / gap / sum(1 / g for g in GAPS)  # type: ignore[assignment]
        return self._largest(near, len(histories)), self._largest(follows, len(histories))

    def _largest(self, counts: Counter[int], histories: int) -> Similar:
        _, _, bias, *_ = self.structure.index.item_arrays
        items = np.array(list(counts), np.int64)
        # The clicks of an item, relative to those of a new item, plus RARE.
        clicks = np.exp(np.minimum(bias[items] - self.facts.bias, 50)) + RARE
        similarity = np.array(list(counts.values())) / histories * np.sqrt((1 + RARE) / clicks)
        best = np.argsort(-similarity, kind="stable")[:NEIGHBOURS]
        names = self.vocabulary.names(items[best])
        return Similar(names, np.round(np.minimum(similarity[best], 1), 5).tolist())

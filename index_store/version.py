"""A version: a manifest and its parts. A version is everything that the trainer hands to the service.

A version is complete and is written once. Its parts are plain files. Every kind of version has:

    model.onnx         the network; its inputs and outputs depend on the kind
    item_ids.npy       int64 (V,)         the caller's ids, ascending; an item's index is its position here
    item_ids.json      [str, ...]         instead of item_ids.npy, if ids are strings
    item_vectors.npy   float16 (V, E)     the encoder's input; its product with the user vector is part of the score
    item_bias.npy      float32 (V,)       a constant of each item, added to that product
    context.json       the user's context features and how each is encoded
    golden.json        queries and the answers this version must give

The kind "paths" also has:

    path_ids.npy       int64 (P,)         the paths in use, ascending; a path's nodes are the base-K digits of its id
    path_offsets.npy   int64 (P + 1,)     path p of path_ids has path_items[path_offsets[p]:path_offsets[p + 1]]
    path_items.npy     int32 (postings,)  item indices; within a path, items that came after the training are first,
                                          the others follow by descending item bias
    neighbours.npy     int32 (2, V, M)    for each item, the indices of the M items that are clicked by the same users,
                                          and of the M items that are clicked soon after it; -1: no further
    similarities.npy   uint16 (2, V, M)   how similar they are to it, from 0 to 1, in units of 1 / 65535
    item_since.npy     int64 (V,)         when each item was put, ms since 1970; 0: it was trained with
    item_ends.npy      uint32 (V,)        the second since 1970 at which an item ends; 0: it was deleted;
                                          2^32 - 1: it does not end
    late_items.npy     int32 (L,)         the items that came after the training, ascending; they are in no list of
                                          neighbours.npy
    late_neighbours.npy     int32 (2, L, N)    for each of them, the N items that it is a neighbour of, and that it
                                               follows, in any order
    late_similarities.npy   uint16 (2, L, N)   how similar it is to them; 0: no item
    attributes.json    the attributes of items: their kinds, categories and ranges, and the words of titles; each
                       category, range and word is a feature, of F in all
    attribute_codes.npy     int32 (V, S)       the features of each item's categories and ranges; -1: no further
    attribute_numbers.npy   float64 (V, A)     its numbers, and times in ms since 1970; NaN: none
    title_bytes.npy    uint8 (bytes,)     the titles in UTF-8, one after another
    title_offsets.npy  int64 (V + 1,)     item v has title_bytes[title_offsets[v]:title_offsets[v + 1]]
    feature_vectors.npy     float16 (F + 1, E) what each feature adds to an item vector; last, the vector without any
    changes.json       for each item that the log has changed up to the record `covers`, what is known of it from there
    weights.safetensors     the network's weights, from which the trainer continues; the service does not read them
    placing.json       {"users": (E,), "matrix": (E, E), "items": (E,), "length", "bias"}
    reranker.json      {"kind": "lr" | "softmax", "weights": {feature: weight}, "intercept": number}

The manifest has the digest of each part, one fingerprint over all parts, and a digest of itself.
A version is called `v<counter>-<fingerprint[:12]>`, so a version with different parts has a different name.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index_store.errors import VersionDamaged
from index_store.manifest import Manifest, PartInfo, fingerprint, naming, sha256
from index_store.path_facts import PathFacts

#: Parts that every version has, besides the item ids in `item_ids.npy` or `item_ids.json`.
PARTS = frozenset({"model.onnx", "item_vectors.npy", "item_bias.npy", "context.json", "golden.json"})
#: The additional parts of the kind "paths".
PATHS = frozenset(
    {
        "path_ids.npy",
        "path_offsets.npy",
        "path_items.npy",
        "neighbours.npy",
        "similarities.npy",
        "item_since.npy",
        "item_ends.npy",
        "late_items.npy",
        "late_neighbours.npy",
        "late_similarities.npy",
        "attributes.json",
        "attribute_codes.npy",
        "attribute_numbers.npy",
        "title_bytes.npy",
        "title_offsets.npy",
        "feature_vectors.npy",
        "changes.json",
        "placing.json",
        "reranker.json",
        "weights.safetensors",
    }
)
#: The path lists. This part may be left in the store; then each request reads only the lists it needs.
LISTS = "path_items.npy"
BLOCK = 4096  # rows of an array checked at once, few enough for the processor's cache

Buffer = bytes | memoryview
#: A callback for the progress of a publish. Arguments: the bytes done and the total bytes.
ByteProgress = Callable[[int, int], None]
#: A function that reads path lists left in the store. Arguments: path_ids int64 (W,), each of a path in use, and
#: lengths int64 (W,). Returns the first lengths[w] items of each path w, concatenated, int32.
PathReader = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.int32]]


@dataclass(frozen=True)
class Version:
    """A manifest and its parts, as bytes or as read-only memory maps. A version never changes."""

    manifest: Manifest
    parts: Mapping[str, Buffer]
    #: The folder that has the parts as files, if there is one. ONNX Runtime loads a file faster than bytes.
    folder: str | None = field(default=None, compare=False)
    #: Reads the path lists from the store; None if they are among the parts.
    read_paths: PathReader | None = field(default=None, compare=False)

    @classmethod
    def build(cls, parts: Mapping[str, Buffer], **facts: Any) -> Version:
        """Make and validate a version of `parts` that has no name yet. `facts` are the other fields of Manifest."""
        infos = {name: PartInfo(len(part), sha256(part)) for name, part in sorted(parts.items())}
        version = cls(Manifest(parts=infos, fingerprint=fingerprint(infos), **facts), dict(parts))
        version.validate()
        return version

    def with_parts(self, parts: Mapping[str, Buffer], **facts: Any) -> Version:
        """A version without a name that has `parts` in place of this one's, and `facts` in place of its manifest's."""
        own = {"parts", "version", "fingerprint", "format"}
        kept = {
            field.name: getattr(self.manifest, field.name)
            for field in dataclasses.fields(self.manifest)
            if field.name not in own
        }
        return Version.build({**self.parts, **parts}, **(kept | facts))

    def named(self, counter: int) -> Version:
        """The same version under the name `v<counter>-<fingerprint[:12]>`."""
        name = f"v{counter}-{self.manifest.fingerprint[:12]}"
        return dataclasses.replace(self, manifest=dataclasses.replace(self.manifest, version=name))

    def array(self, part: str) -> NDArray[Any]:
        """The array of a `.npy` part, not copied. Raises VersionDamaged if the part is missing or is not an array."""
        return _parse_npy(self._part(part), f"{self.manifest.version} {part}")

    def document(self, part: str) -> Any:
        """The value of a `.json` part. Raises VersionDamaged if the part is missing or not JSON; NaN is not JSON."""
        try:
            return json.loads(bytes(self._part(part)), parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise VersionDamaged(f"{self.manifest.version} {part}: not JSON ({error})") from None

    @functools.cached_property
    def item_ids(self) -> NDArray[np.int64] | list[str]:
        """The caller's item ids, ascending. The id of item index i is item_ids[i]."""
        if "item_ids.json" in self.parts:
            ids: list[str] = self.document("item_ids.json")
            return ids
        return self.array("item_ids.npy")

    def verify_digests(self) -> None:
        """Raise VersionDamaged unless every part has exactly the bytes that were published."""
        name = self.manifest.version
        expected = parts_here(self.manifest, self.read_paths)
        if set(self.parts) != set(expected):
            differing = sorted(set(self.parts) ^ set(expected))
            raise VersionDamaged(f"{name}: the manifest and the stored parts differ in {', '.join(differing)}")
        for part in expected:
            info = self.manifest.parts[part]
            if len(self.parts[part]) != info.size:
                raise VersionDamaged(f"{name} {part}: {info.size} bytes expected, {len(self.parts[part])} found")
            if sha256(self.parts[part]) != info.sha256:
                raise VersionDamaged(f"{name} {part}: its SHA-256 differs from the published one; publish again")

    def validate(self) -> None:
        """Raise VersionDamaged unless the parts have the right shapes and fit each other and the manifest.

        For a kind that is not "paths", only the common parts are checked. The network and the reranker are checked when
        a version is opened, see `retrieval.searcher.Searcher.open`.
        """
        with naming(self.manifest.version):
            self.manifest.require_part_names()
            self.manifest.require_counts()
            self._validate_items()
            if self.manifest.kind == "paths":
                self._validate_paths()

    def _validate_items(self) -> None:
        manifest, parts = self.manifest, set(self.manifest.parts)
        ids_part = {"item_ids.npy", "item_ids.json"} & parts
        if not parts >= PARTS or len(ids_part) != 1:
            missing = [*sorted(PARTS - parts), *([] if ids_part else ["item_ids.npy or item_ids.json"])]
            raise VersionDamaged(
                f"missing parts: {', '.join(missing)}" if missing else "it has both item_ids.npy and item_ids.json"
            )
        # With external data, a model could read any file. External data has the key "location"; our exports do not.
        if b"location" in bytes(self.parts["model.onnx"]):
            raise VersionDamaged("model.onnx refers to external data; export it as one file")
        _check(self.array("item_vectors.npy"), "item_vectors", np.float16, (manifest.items, manifest.embedding))
        _check(self.array("item_bias.npy"), "item_bias", np.float32, (manifest.items,))
        ids = self.item_ids
        if isinstance(ids, list):
            if len(ids) != manifest.items or not all(isinstance(i, str) for i in ids) or sorted(set(ids)) != ids:
                raise VersionDamaged(f"item_ids: expected {manifest.items} different strings in ascending order")
        else:
            _check(ids, "item_ids", np.int64, (manifest.items,))
            _check_ascending(ids, "item_ids")
        for part in ("context.json", "golden.json"):
            self.document(part)

    def _validate_paths(self) -> None:
        facts, items = PathFacts.of(self.manifest.structure), self.manifest.items
        different = sorted(set(self.manifest.parts) - {"item_ids.npy", "item_ids.json"} ^ (PARTS | PATHS))
        if different:
            raise VersionDamaged(f"missing or unknown parts: {', '.join(different)}")
        path_ids, offsets = self.array("path_ids.npy"), self.array("path_offsets.npy")
        _check(path_ids, "path_ids", np.int64, (facts.paths,))
        _check(offsets, "path_offsets", np.int64, (facts.paths + 1,))
        _check_ascending(path_ids, "path_ids")
        if path_ids[0] < 0 or path_ids[-1] >= facts.width**facts.depth:
            raise VersionDamaged("path_ids: a path outside 0..width^depth - 1")
        if offsets[0] != 0 or np.any(offsets[1:] < offsets[:-1]) or offsets[-1] != facts.postings:
            raise VersionDamaged("path_offsets: expected to rise from 0 to the number of postings")
        self.document("reranker.json")
        self.document("placing.json")
        _check(self.array("item_ends.npy"), "item_ends", np.uint32, (items,))
        _check(self.array("item_since.npy"), "item_since", np.int64, (items,))
        late = self.array("late_items.npy")
        _check(late, "late_items", np.int32, late.shape[:1])
        _check_ascending(late, "late_items")
        if len(late) and (late[0] < 0 or late[-1] >= items):
            raise VersionDamaged(f"late_items: an item index is outside 0..{items - 1}")
        self._validate_attributes()
        self._validate_neighbours("neighbours", "similarities", items)
        self._validate_neighbours("late_neighbours", "late_similarities", len(late))
        if self.read_paths is None:
            path_items = self.array(LISTS)
            _check(path_items, "path_items", np.int32, (facts.postings,))
            if path_items.min(initial=0) < 0 or path_items.max(initial=0) >= items:
                raise VersionDamaged(f"path_items: an item index is outside 0..{items - 1}")

    def _validate_attributes(self) -> None:
        items, embedding = self.manifest.items, self.manifest.embedding
        self.document("attributes.json")
        shapes = {name: self.array(f"{name}.npy").shape for name in ("attribute_codes", "attribute_numbers")}
        _check(self.array("attribute_codes.npy"), "attribute_codes", np.int32, (items, *shapes["attribute_codes"][1:2]))
        numbers = self.array("attribute_numbers.npy")
        if numbers.dtype != np.float64 or numbers.ndim != 2 or len(numbers) != items:
            raise VersionDamaged(f"attribute_numbers: expected float64 with {items} rows")
        titles, offsets = self.array("title_bytes.npy"), self.array("title_offsets.npy")
        _check(titles, "title_bytes", np.uint8, titles.shape[:1])
        _check(offsets, "title_offsets", np.int64, (items + 1,))
        if offsets[0] != 0 or np.any(offsets[1:] < offsets[:-1]) or offsets[-1] != len(titles):
            raise VersionDamaged("title_offsets: expected to rise from 0 to the number of bytes")
        features = self.array("feature_vectors.npy")
        _check(features, "feature_vectors", np.float16, (max(1, *features.shape[:1]), embedding))

    def _validate_neighbours(self, neighbours: str, similarities: str, rows: int) -> None:
        found, items = self.array(f"{neighbours}.npy"), self.manifest.items
        count = found.shape[-1] if found.ndim else 0
        _check(found, neighbours, np.int32, (2, rows, count))
        _check(self.array(f"{similarities}.npy"), similarities, np.uint16, (2, rows, count))
        if found.min(initial=-1) < -1 or found.max(initial=-1) >= items:
            raise VersionDamaged(f"{neighbours}: an item index is outside 0..{items - 1}")

    def _part(self, part: str) -> Buffer:
        try:
            return self.parts[part]
        except KeyError:
            raise VersionDamaged(f"{self.manifest.version}: the part {part} is missing; publish again") from None


def parts_here(manifest: Manifest, read_paths: PathReader | None) -> list[str]:
    """The parts that a loaded version contains: all parts, or all but the path lists if `read_paths` is given."""
    return [part for part in manifest.parts if part != LISTS or read_paths is None]


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def npy(array: NDArray[Any]) -> bytes:
    """`array` as the bytes of a .npy file."""
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(array), allow_pickle=False)
    return file.getvalue()


def _parse_npy(buffer: Buffer, name: str) -> NDArray[Any]:
    head = io.BytesIO(bytes(buffer[:4096]))
    try:
        if np.lib.format.read_magic(head) != (1, 0):
            raise ValueError("not a version 1.0 header")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(head)
        if fortran or dtype.hasobject:
            raise ValueError("expected a C-ordered array of numbers")
        if head.tell() + dtype.itemsize * int(np.prod(shape, dtype=object)) != len(buffer):
            raise ValueError(f"its size does not match its shape {shape}")
        return np.frombuffer(buffer, dtype, offset=head.tell()).reshape(shape)
    except ValueError as error:
        raise VersionDamaged(f"{name}: not a .npy array ({error})") from None


def _check(array: NDArray[Any], name: str, dtype: type, shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape:
        raise VersionDamaged(
            f"{name}: expected {np.dtype(dtype)} of shape {shape}, found {array.dtype} of shape {array.shape}"
        )
    if array.dtype.kind == "f" and not _is_finite(array):
        raise VersionDamaged(f"{name}: some values are not finite; training diverged, lower the learning rate")


def _is_finite(array: NDArray[Any]) -> bool:
    """Whether all values are finite. For float16 the bits are compared, which is 20 times faster than np.isfinite."""
    blocks = (array[start : start + BLOCK] for start in range(0, len(array), BLOCK))
    if array.dtype == np.float16:
        return all(np.max(block.view(np.uint16) & 0x7FFF, initial=0) < 0x7C00 for block in blocks)
    return all(np.isfinite(block).all() for block in blocks)


def _check_ascending(array: NDArray[Any], name: str) -> None:
    if np.any(array[1:] <= array[:-1]):
        raise VersionDamaged(f"{name}: expected strictly ascending values")

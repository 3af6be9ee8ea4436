"""Manifest and Version: everything the trainer hands to the service.

A version is write-once and complete. Its parts are plain files:

    model.onnx         encoder and beam search: history (item vectors), length, categories, numbers, beam
                       -> user, paths (rows of path_ids, -1 for none), path_log_probs
    path_ids.npy       int64 (P,)         the paths in use, ascending; opaque numbers
    path_offsets.npy   int64 (P + 1,)     path p holds path_items[path_offsets[p]:path_offsets[p + 1]]
    path_items.npy     int32 (postings,)  item indices, in each path by descending item bias
    item_ids.npy       int64 (V,)         the caller's ids, ascending: an item's index is its place here
    item_ids.json      [str, ...]         the same, where ids are strings
    item_vectors.npy   float16 (V, E)     what the encoder reads, and what is scored against the user vector
    item_bias.npy      float32 (V,)
    reranker.json      {"kind": "lr" | "softmax", "weights": {feature: weight}}
    context.json       the user's context features and how each is encoded
    golden.json        queries with the answers this version must give

The manifest has the digest of each part, one fingerprint over all of them, and a digest of itself.
A version is called `v<counter>-<fingerprint[:12]>`; nothing in it can change without changing its name.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index_store.errors import InvalidName, VersionDamaged, VersionIncompatible
from retrieval.paths.index import Index, PathReader, Reranker
from retrieval.query import Limits

FORMAT = 3
NAME = re.compile(r"^[a-z0-9][a-z0-9._-]{0,63}\Z")

#: Parts every version has. Item ids are one part more: `item_ids.npy` or `item_ids.json`.
PARTS = (
    "model.onnx",
    "path_ids.npy",
    "path_offsets.npy",
    "path_items.npy",
    "item_vectors.npy",
    "item_bias.npy",
    "reranker.json",
    "context.json",
    "golden.json",
)

#: The part that a version may leave where it is stored, to be read a few path lists at a time.
LISTS = "path_items.npy"
BLOCK = 4096  # rows of an array looked at together

Buffer = bytes | memoryview
#: Called while a version is published, with the bytes done and the bytes in all.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PartInfo:
    """Size in bytes and SHA-256 of one part."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a version is, small enough to read without loading it."""

    depth: int  # D
    width: int  # K
    paths_per_item: int  # J
    embedding: int  # E
    history: int  # most recent items the encoder reads
    items: int  # V
    paths: int  # P, paths in use
    postings: int  # sum of the path lists' lengths
    k: int  # candidates returned by default
    beam: int  # W, paths searched by default
    per_path: int  # n, items read of a path by default
    max_beam: int  # widest beam the ONNX file accepts
    created: str  # ISO 8601, UTC
    config: Mapping[str, Any]  # TrainConfig, whole
    metrics: Mapping[str, Any]  # what training measured
    parts: Mapping[str, PartInfo]
    version: str = ""  # given by the store when it is published
    fingerprint: str = ""
    format: int = FORMAT

    def reach(self, k: int) -> tuple[int, int]:
        """(beam, items per path) for a request of k items that names neither.

        The defaults were measured for `self.k` items; for more, the beam widens in proportion, then the paths
        are read deeper, at most Limits.READS items in all.
        """
        more = max(1.0, k / self.k)
        beam = max(self.beam, min(self.max_beam, math.ceil(self.beam * more)))
        per_path = math.ceil(self.per_path * max(1.0, more * self.beam / beam))
        return beam, min(per_path, Limits.READS // beam)

    def to_json(self) -> bytes:
        """UTF-8 JSON ending in a newline, with `manifest_sha256` over everything else."""
        fields = dataclasses.asdict(self)
        fields["manifest_sha256"] = _sha256(_canonical(fields))
        return json.dumps(fields, indent=2, sort_keys=True, allow_nan=False).encode() + b"\n"

    @classmethod
    def from_json(cls, text: bytes, name: str) -> Manifest:
        """Read and check the manifest of version `name`.

        Raises VersionIncompatible for another format, VersionDamaged for anything that does not fit.
        """
        try:
            fields = json.loads(text)
            stated = fields.pop("manifest_sha256")
            found_format = fields["format"]
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise VersionDamaged(f"{name}: manifest.json is not a manifest ({type(error).__name__})") from None
        if found_format != FORMAT:
            newer = isinstance(found_format, int) and found_format > FORMAT
            raise VersionIncompatible(
                f"{name}: format {found_format!r}, but this release reads format {FORMAT}; "
                + ("upgrade it" if newer else "train again")
            )
        try:
            digest = _sha256(_canonical(fields))
            parts = {part: PartInfo(**info) for part, info in fields.pop("parts").items()}
            manifest = cls(parts=parts, **fields)
            if not all(isinstance(text, str) for text in (manifest.version, manifest.fingerprint, manifest.created)):
                raise TypeError("a name that is no text")
            if not all(isinstance(info.sha256, str) and type(info.size) is int for info in parts.values()):
                raise TypeError("a part's size is no number or its digest no text")
        except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise VersionDamaged(f"{name}: manifest.json lacks or has unknown fields ({error})") from None
        if stated != digest:
            raise VersionDamaged(f"{name}: manifest.json does not match its own digest; publish again")
        if manifest.version != name or not name.endswith(f"-{manifest.fingerprint[:12]}"):
            raise VersionDamaged(f"{name}: manifest.json is that of {manifest.version}")
        if manifest.fingerprint != fingerprint(parts):
            raise VersionDamaged(f"{name}: the fingerprint is not that of the parts; publish again")
        return manifest


@dataclass(frozen=True)
class Version:
    """A manifest and its parts, as bytes or as read-only memory maps. Nothing here ever changes."""

    manifest: Manifest
    parts: Mapping[str, Buffer]
    #: Where the parts lie as files, if they do: the ONNX runtime loads a file faster than bytes.
    folder: str | None = field(default=None, compare=False)
    #: What reads the path lists, where they are not among the parts.
    read_paths: PathReader | None = field(default=None, compare=False)

    @classmethod
    def build(cls, parts: Mapping[str, bytes], **facts: Any) -> Version:
        """Make an unnamed version of `parts`; `facts` are the other fields of Manifest. Validates it."""
        infos = {name: PartInfo(len(part), _sha256(part)) for name, part in sorted(parts.items())}
        version = cls(Manifest(parts=infos, fingerprint=fingerprint(infos), **facts), dict(parts))
        version.validate()
        return version

    def named(self, counter: int) -> Version:
        """The same version under the name `v<counter>-<fingerprint[:12]>`."""
        name = f"v{counter}-{self.manifest.fingerprint[:12]}"
        return dataclasses.replace(self, manifest=dataclasses.replace(self.manifest, version=name))

    def array(self, part: str) -> NDArray[Any]:
        """The array of a `.npy` part, without copying it. Raises VersionDamaged if it is not one."""
        return _parse_npy(self.parts[part], f"{self.manifest.version} {part}")

    def document(self, part: str) -> Any:
        """The value of a `.json` part. Raises VersionDamaged if it is not JSON."""
        try:
            return json.loads(bytes(self.parts[part]))
        except (ValueError, RecursionError) as error:
            raise VersionDamaged(f"{self.manifest.version} {part}: not JSON ({error})") from None

    @functools.cached_property
    def item_ids(self) -> NDArray[np.int64] | list[str]:
        """The caller's item ids, ascending, by item index."""
        if "item_ids.json" in self.parts:
            ids: list[str] = self.document("item_ids.json")
            return ids
        return self.array("item_ids.npy")

    @functools.cached_property
    def index(self) -> Index:
        """The path lists and item vectors, as views of the parts."""
        return Index(
            self.array("path_ids.npy"),
            self.array("path_offsets.npy"),
            np.empty(0, np.int32) if self.read_paths else self.array(LISTS),
            self.array("item_vectors.npy"),
            self.array("item_bias.npy"),
            self.read_paths,
        )

    @functools.cached_property
    def reranker(self) -> Reranker:
        return Reranker.from_json(self.document("reranker.json"))

    def verify_digests(self) -> None:
        """Raise VersionDamaged unless every part has exactly the bytes that were published."""
        name = self.manifest.version
        expected = parts_here(self.manifest, self.read_paths)
        if set(self.parts) != set(expected):
            odd = sorted(set(self.parts) ^ set(expected))
            raise VersionDamaged(f"{name}: the manifest and the stored parts differ in {', '.join(odd)}")
        for part in expected:
            info = self.manifest.parts[part]
            if len(self.parts[part]) != info.size:
                raise VersionDamaged(f"{name} {part}: {info.size} bytes expected, {len(self.parts[part])} found")
            if _sha256(self.parts[part]) != info.sha256:
                raise VersionDamaged(f"{name} {part}: its SHA-256 is not the published one; publish again")

    def validate(self) -> None:
        """Raise VersionDamaged unless the parts have the right shapes and fit each other."""
        try:
            self._validate()
        except VersionDamaged as error:
            name = self.manifest.version
            raise VersionDamaged(str(error) if name in str(error) else f"{name}: {error}") from None

    def _validate(self) -> None:
        manifest = self.manifest
        for count in dataclasses.fields(Manifest):
            found = getattr(manifest, count.name)
            if count.type == "int" and (type(found) is not int or found < 1):
                raise VersionDamaged(f"{count.name}: expected a whole number from 1, found {found!r}")
        if manifest.beam > manifest.max_beam:
            raise VersionDamaged(f"beam: expected at most max_beam, {manifest.max_beam}, found {manifest.beam}")
        ids_part = {"item_ids.npy", "item_ids.json"} & set(self.parts)
        if set(manifest.parts) != {*PARTS, *ids_part} or len(ids_part) != 1:
            odd = sorted(set(manifest.parts) ^ set(PARTS))
            raise VersionDamaged(f"expected the parts {', '.join(PARTS)} and item_ids; odd: {', '.join(odd)}")
        # External data would let a model read other files. Every form of it has this key; our exports do not.
        if b"location" in bytes(self.parts["model.onnx"]):
            raise VersionDamaged("model.onnx refers to external data; export it as one file")
        items, paths, postings = manifest.items, manifest.paths, manifest.postings
        index = self.index
        _check(index.path_ids, "path_ids", np.int64, (paths,))
        _check(index.path_offsets, "path_offsets", np.int64, (paths + 1,))
        if self.read_paths is None:
            _check(index.path_items, "path_items", np.int32, (postings,))
            if index.path_items.min() < 0 or index.path_items.max() >= items:
                raise VersionDamaged(f"path_items: an item index outside 0..{items - 1}")
        _check(index.item_vectors, "item_vectors", np.float16, (items, manifest.embedding))
        _check(index.item_bias, "item_bias", np.float32, (items,))
        ids = self.item_ids
        if isinstance(ids, list):
            if len(ids) != items or not all(isinstance(i, str) for i in ids) or sorted(set(ids)) != ids:
                raise VersionDamaged(f"item_ids: expected {items} different strings in ascending order")
        else:
            _check(ids, "item_ids", np.int64, (items,))
            _check_ascending(ids, "item_ids")
        _check_ascending(index.path_ids, "path_ids")
        offsets = index.path_offsets
        if offsets[0] != 0 or offsets[-1] != postings or np.any(np.diff(offsets) < 1):
            raise VersionDamaged("path_offsets: expected to rise from 0 to the number of postings, no path empty")
        for part in ("context.json", "golden.json"):
            self.document(part)
        self.reranker  # noqa: B018 -- reading it checks it


def parts_here(manifest: Manifest, read_paths: PathReader | None) -> list[str]:
    """The parts that a version has itself: all, but for the path lists where `read_paths` reads them."""
    return [part for part in manifest.parts if part != LISTS or read_paths is None]


def fingerprint(parts: Mapping[str, PartInfo]) -> str:
    """SHA-256 over the names and digests of all parts."""
    return _sha256(_canonical({name: info.sha256 for name, info in parts.items()}))


def npy(array: NDArray[Any]) -> bytes:
    """`array` as the bytes of a .npy file."""
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(array), allow_pickle=False)
    return file.getvalue()


def check_name(name: str) -> str:
    """Return `name` if it may be a version's, else raise InvalidName. It is never a path or a URL."""
    if not NAME.fullmatch(name):
        raise InvalidName("not a version name: expected lower-case letters, digits, '.', '_' and '-', at most 64")
    return name


def _parse_npy(buffer: Buffer, what: str) -> NDArray[Any]:
    head = io.BytesIO(bytes(buffer[:4096]))
    try:
        if np.lib.format.read_magic(head) != (1, 0):
            raise ValueError("not a version 1.0 header")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(head)
        if fortran or dtype.hasobject:
            raise ValueError("expected a C-ordered array of numbers")
        if head.tell() + dtype.itemsize * int(np.prod(shape, dtype=object)) != len(buffer):
            raise ValueError(f"its size is not that of shape {shape}")
        return np.frombuffer(buffer, dtype, offset=head.tell()).reshape(shape)
    except ValueError as error:
        raise VersionDamaged(f"{what}: not a .npy array ({error})") from None


def _check(array: NDArray[Any], what: str, dtype: type, shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape:
        raise VersionDamaged(
            f"{what}: expected {np.dtype(dtype)} of shape {shape}, found {array.dtype} of shape {array.shape}"
        )
    if array.dtype.kind == "f" and not _is_finite(array):
        raise VersionDamaged(f"{what}: has values that are not finite; training diverged, lower the learning rate")


def _is_finite(array: NDArray[Any]) -> bool:
    """Whether no value is infinite or none, a cache's worth at a time; of float16 by its bits, 20 times faster."""
    blocks = (array[start : start + BLOCK] for start in range(0, len(array), BLOCK))
    if array.dtype == np.float16:
        return all(np.max(block.view(np.uint16) & 0x7FFF, initial=0) < 0x7C00 for block in blocks)
    return all(np.isfinite(block).all() for block in blocks)


def _check_ascending(array: NDArray[Any], what: str) -> None:
    if np.any(np.diff(array) <= 0):
        raise VersionDamaged(f"{what}: expected to be strictly ascending")


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _sha256(data: Buffer) -> str:
    return hashlib.sha256(data).hexdigest()

"""How a version is spread over the keys of a key-value server.

    {ns}:current                    the current version's name
    {ns}:previous:{{ns}:current}    the one before; the tag in braces keeps them on one node, to move together
    {ns}:mover:{{ns}:current}       who moved them last, 32 hexadecimal digits drawn for each move
    {ns}:versions                   set: the versions that are whole
    {ns}:publishing:{{ns}:versions} set: those being published
    {ns}:counter:{{ns}:versions}    "v7": the last number given to a version; never goes back
    {ns}:leases                     sorted set: "version holder" -> when it ends, in ms of the server's clock
    {ns}:{version}:manifest
    {ns}:{version}:path:{path_id}   the path's items, packed little-endian int32
    {ns}:{version}:blob:{part}:{i}  the i-th piece of a part

Of `path_items.npy` the only blob is its header: the rest is the path lists end to end, so each item of a list is
stored once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from index_store.version import LISTS, Buffer, Version

#: Bytes of a blob. Small, because a server answers nobody else while it sends one.
PIECE = 2**20


@dataclass(frozen=True)
class Keys:
    """The names of all keys in a namespace."""

    namespace: str

    @property
    def current(self) -> str:
        return f"{self.namespace}:current"

    @property
    def previous(self) -> str:
        return f"{self.namespace}:previous:{{{self.namespace}:current}}"

    @property
    def mover(self) -> str:
        return f"{self.namespace}:mover:{{{self.namespace}:current}}"

    @property
    def versions(self) -> str:
        return f"{self.namespace}:versions"

    @property
    def publishing(self) -> str:
        return f"{self.namespace}:publishing:{{{self.namespace}:versions}}"

    @property
    def counter(self) -> str:
        return f"{self.namespace}:counter:{{{self.namespace}:versions}}"

    @property
    def leases(self) -> str:
        return f"{self.namespace}:leases"

    def manifest(self, version: str) -> str:
        return f"{self.namespace}:{version}:manifest"

    def path(self, version: str, path_id: int) -> str:
        return f"{self.namespace}:{version}:path:{path_id}"

    def blobs(self, version: str, part: str, size: int) -> list[str]:
        """The keys of a part of `size` bytes, in order."""
        return [f"{self.namespace}:{version}:blob:{part}:{i}" for i in range(-(-size // PIECE))]

    def pattern(self, version: str = "v*") -> str:
        """A glob that all keys of `version` match, and perhaps others; see `version_of`."""
        return f"{self.namespace}:{version}:*"

    def version_of(self, key: bytes) -> str | None:
        """The version that `key` belongs to, or None if it is not one of ours."""
        found = re.fullmatch(
            rf"{re.escape(self.namespace)}:(v\d+-[0-9a-f]{{12}}):(manifest|path:-?\d+|blob:[a-z_]+\.[a-z]+:\d+)",
            key.decode("ascii", "replace"),
        )
        return found[1] if found else None

    def entries(self, version: Version) -> Iterator[tuple[str, Buffer]]:
        """Every key of `version` but its manifest, with what it holds."""
        name = version.manifest.version
        for part, content in version.parts.items():
            if part != LISTS:
                for i, key in enumerate(self.blobs(name, part, len(content))):
                    yield key, content[i * PIECE : (i + 1) * PIECE]
        if LISTS not in version.parts:
            return
        lists, items = version.parts[LISTS], version.array(LISTS)
        yield self.blobs(name, LISTS, 1)[0], lists[: len(lists) - 4 * len(items)]
        packed = items.astype("<i4", copy=False).view(np.uint8).data
        path_ids, ends = version.array("path_ids.npy").tolist(), (4 * version.array("path_offsets.npy")).tolist()
        for path_id, start, end in zip(path_ids, ends[:-1], ends[1:], strict=True):
            yield self.path(name, path_id), packed[start:end]

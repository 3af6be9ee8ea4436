"""The keys of a store on a Redis server. {ns} is the namespace.

    {ns}:current                    the current version's name
    {ns}:previous:{{ns}:current}    the previous version's name; the hash tag in braces keeps both keys on one node
    {ns}:mover:{{ns}:current}       id of the last move of both pointers: 32 random hexadecimal digits
    {ns}:versions                   set: the complete versions
    {ns}:publishing:{{ns}:versions} set: the versions being published or deleted
    {ns}:counter:{{ns}:versions}    the last number given to a version, such as "v7"; never decreases
    {ns}:log                        stream: the changes of the catalogue; the entry n-0 is record n
    {ns}:events                     stream: the events from which the trainer learns, likewise
    {ns}:producers:{{ns}:log}       JSON: the last number of each producer of records; and the same for events
    {ns}:task:{task}                id of the process that does the task, until its lease ends
    {ns}:leases                     sorted set: "version holder" -> end of the lease, in ms of the server's clock
    {ns}:{version}:manifest
    {ns}:{version}:path:{path_id}   the path's items, packed little-endian int32
    {ns}:{version}:blob:{part}:{i}  the i-th piece of a part

The part `path_items.npy` has one blob, the header of the file. The other bytes of this part are the concatenated path
lists, which are stored only once, in the path keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from index_store.log import LogName
from index_store.manifest import PART, VERSION
from index_store.version import LISTS, Buffer, Version

#: Largest size of a blob in bytes. It is small, because the server answers no other client while it sends a blob.
PIECE = 2**20


@dataclass(frozen=True)
class Keys:
    """The names of the keys in a namespace."""

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

    def log(self, name: LogName) -> str:
        return f"{self.namespace}:{name}"

    def producers(self, name: LogName) -> str:
        return f"{self.namespace}:producers:{{{self.namespace}:{name}}}"

    @property
    def leases(self) -> str:
        return f"{self.namespace}:leases"

    def task(self, name: str) -> str:
        return f"{self.namespace}:task:{name}"

    def manifest(self, version: str) -> str:
        return f"{self.namespace}:{version}:manifest"

    def path(self, version: str, path_id: int) -> str:
        return f"{self.namespace}:{version}:path:{path_id}"

    def blobs(self, version: str, part: str, size: int) -> list[str]:
        """The keys of a part of `size` bytes, in order."""
        return [f"{self.namespace}:{version}:blob:{part}:{i}" for i in range(-(-size // PIECE))]

    def pattern(self, version: str = "v*") -> str:
        """A glob that matches all keys of `version`. It may match foreign keys too; `version_of` tells them apart."""
        return f"{self.namespace}:{version}:*"

    def version_of(self, key: bytes) -> str | None:
        """The version that `key` belongs to; None if `key` is not a key of a version in this namespace."""
        match = re.fullmatch(
            rf"{re.escape(self.namespace)}:({VERSION.pattern}):(manifest|path:-?\d+|blob:{PART}:\d+)",
            key.decode("ascii", "replace"),
        )
        return match[1] if match else None

    def entries(self, version: Version) -> Iterator[tuple[str, Buffer]]:
        """Every key of `version` except its manifest, with its value."""
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

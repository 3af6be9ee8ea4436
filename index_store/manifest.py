"""A version's manifest: a head that every kind of version has, and a part of its own kind.

The head says what any reader must know: how many items, what a request gets by default, which parts with which digests.
`structure` belongs to the kind: for "paths" it is `retrieval.paths.structure.PathFacts`. Only the code that opens that
kind looks into it, so a new kind of version needs no change here. `config` and `metrics` are for people and for the
trainer; whatever keys they have, the version can be read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from index_store.errors import InvalidName, VersionDamaged, VersionIncompatible

FORMAT = 4
NAME = re.compile(r"^[a-z0-9][a-z0-9._-]{0,63}\Z")


@dataclass(frozen=True)
class PartInfo:
    """Size in bytes and SHA-256 of one part."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a version is, small enough to read without loading it."""

    kind: str  # of structure that answers: "paths"
    items: int  # V
    embedding: int  # E, of the item vectors
    history: int  # most recent items that the encoder reads
    k: int  # candidates returned by default
    created: str  # ISO 8601, UTC
    structure: Mapping[str, Any]  # the kind's own part
    config: Mapping[str, Any]  # the trainer's settings
    metrics: Mapping[str, Any]  # what training measured
    parts: Mapping[str, PartInfo]
    version: str = ""  # given by the store when it is published
    fingerprint: str = ""
    format: int = FORMAT

    def to_json(self) -> bytes:
        """UTF-8 JSON ending in a newline, with `manifest_sha256` over everything else."""
        fields = dataclasses.asdict(self)
        fields["manifest_sha256"] = sha256(canonical(fields))
        return json.dumps(fields, indent=2, sort_keys=True, allow_nan=False).encode() + b"\n"

    @classmethod
    def from_json(cls, text: bytes, name: str) -> Manifest:
        """Read and check the manifest of version `name`.

        Raises VersionIncompatible for another format, VersionDamaged for anything that does not fit.
        """
        try:
            fields = json.loads(text)
            stated = fields.pop("manifest_sha256")
            its_format = fields["format"]
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise VersionDamaged(f"{name}: manifest.json is not a manifest ({type(error).__name__})") from None
        if its_format != FORMAT:
            newer = isinstance(its_format, int) and its_format > FORMAT
            raise VersionIncompatible(
                f"{name}: format {its_format!r}, but this release reads format {FORMAT}; "
                + ("upgrade it" if newer else "train again")
            )
        try:
            digest = sha256(canonical(fields))
            parts = {part: PartInfo(**info) for part, info in fields.pop("parts").items()}
            manifest = cls(parts=parts, **fields)
            manifest._require_types()
        except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise VersionDamaged(f"{name}: manifest.json lacks or has unknown fields ({error})") from None
        if stated != digest:
            raise VersionDamaged(f"{name}: manifest.json does not match its own digest; publish again")
        if manifest.version != name or not name.endswith(f"-{manifest.fingerprint[:12]}"):
            raise VersionDamaged(f"{name}: manifest.json is that of {manifest.version}")
        if manifest.fingerprint != fingerprint(parts):
            raise VersionDamaged(f"{name}: the fingerprint is not that of the parts; publish again")
        return manifest

    def _require_types(self) -> None:
        if not all(isinstance(text, str) for text in (self.kind, self.version, self.fingerprint, self.created)):
            raise TypeError("a name that is not a string")
        if not all(isinstance(part, dict) for part in (self.structure, self.config, self.metrics)):
            raise TypeError("structure, config or metrics that is not an object")
        for info in self.parts.values():
            if not isinstance(info.sha256, str) or type(info.size) is not int:
                raise TypeError("a part whose size is not a number or whose digest is not a string")

    def require_counts(self) -> None:
        """Raise VersionDamaged unless every count in the head is a whole number from 1."""
        for name in ("items", "embedding", "history", "k"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise VersionDamaged(f"{name}: expected a whole number from 1, found {value!r}")


def fingerprint(parts: Mapping[str, PartInfo]) -> str:
    """SHA-256 over the names and digests of all parts."""
    return sha256(canonical({name: info.sha256 for name, info in parts.items()}))


def check_name(name: str) -> str:
    """Return `name` if it may be a version's, else raise InvalidName. It is never a path or a URL."""
    if not NAME.fullmatch(name):
        raise InvalidName("not a version name: expected lower-case letters, digits, '.', '_' and '-', at most 64")
    return name


def canonical(value: Any) -> bytes:
    """JSON with one spelling for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def sha256(data: bytes | memoryview) -> str:
    """The digest in hexadecimal."""
    return hashlib.sha256(data).hexdigest()

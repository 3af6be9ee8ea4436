"""A version's manifest: fields that every kind of version has, and `structure`, whose content depends on the kind.

Every reader needs the common fields, such as the number of items, the defaults of a request and the digest of each
part. For the kind "paths", `structure` has the fields of `index_store.path_facts.PathFacts`. A new kind of version
needs no change in this module. `config` and `metrics` are for people and for the trainer, and may have any keys.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

from index_store.errors import InvalidName, VersionDamaged, VersionIncompatible
from index_store.log import START, Place

FORMAT = 9
NAME = re.compile(r"^[a-z0-9][a-z0-9._-]{0,63}\Z")
#: The form of the names that stores give to versions: v7-0123456789ab.
VERSION = re.compile(r"v[1-9]\d*-[0-9a-f]{12}")
#: The version that is expected to be current: None if no version is, `...` if any version may be.
Expected = str | EllipsisType | None
#: The form of a part's name. The name becomes a file name and a segment of Redis keys, so it has no '/' and no ':'.
PART = r"[a-z][a-z0-9_]*\.[a-z0-9]+"


@dataclass(frozen=True)
class PartInfo:
    """Size in bytes and SHA-256 of one part."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The description of a version, small enough to read without loading the version."""

    kind: str  # the kind of index structure; "paths" is the only one so far
    items: int  # V
    embedding: int  # E, the length of an item vector
    history: int  # number of most recent items that the encoder reads
    k: int  # candidates returned by default
    created: str  # ISO 8601, UTC
    structure: Mapping[str, Any]  # facts that depend on the kind
    config: Mapping[str, Any]  # the trainer's settings
    metrics: Mapping[str, Any]  # what training measured
    parts: Mapping[str, PartInfo]
    covers: Place = START  # the last record of the log that is already in the version
    version: str = ""  # the store sets it on publishing
    fingerprint: str = ""
    format: int = FORMAT

    def to_json(self) -> bytes:
        """UTF-8 JSON that ends with a newline. `manifest_sha256` is the digest of all other fields."""
        fields = dataclasses.asdict(self) | {"covers": self.covers._asdict()}
        fields["manifest_sha256"] = sha256(canonical(fields))
        return json.dumps(fields, indent=2, sort_keys=True, allow_nan=False).encode() + b"\n"

    @classmethod
    def from_json(cls, text: bytes, name: str) -> Manifest:
        """Read and check the manifest of version `name`.

        Raises VersionIncompatible for a format other than FORMAT, VersionDamaged for any other defect.
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
            covers = Place(**fields.pop("covers"))
            manifest = cls(parts=parts, covers=covers, **fields)
            manifest._require_types()
            with naming(name):
                manifest.require_part_names()
        except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise VersionDamaged(f"{name}: manifest.json has missing, unknown or wrong fields ({error})") from None
        if stated != digest:
            raise VersionDamaged(f"{name}: manifest.json does not match its own digest; publish again")
        if manifest.version != name or not name.endswith(f"-{manifest.fingerprint[:12]}"):
            raise VersionDamaged(f"{name}: manifest.json belongs to {manifest.version}")
        if manifest.fingerprint != fingerprint(parts):
            raise VersionDamaged(f"{name}: the fingerprint does not match the parts; publish again")
        return manifest

    def _require_types(self) -> None:
        if not all(isinstance(text, str) for text in (self.kind, self.version, self.fingerprint, self.created)):
            raise TypeError("kind, version, fingerprint or created is not a string")
        if type(self.covers.seq) is not int or not isinstance(self.covers.digest, str) or self.covers.seq < 0:
            raise TypeError("covers is not the place of a record")
        if not all(isinstance(part, dict) for part in (self.structure, self.config, self.metrics)):
            raise TypeError("structure, config or metrics is not an object")
        for info in self.parts.values():
            if not isinstance(info.sha256, str) or type(info.size) is not int:
                raise TypeError("the size of a part is not a whole number, or its digest is not a string")

    @property
    def size(self) -> int:
        """The size of all parts together, in bytes."""
        return sum(part.size for part in self.parts.values())

    def summary(self, state: str) -> dict[str, Any]:
        """The version's entry in a list of versions. state: current, previous, available, ..."""
        return {
            "version": self.version,
            "state": state,
            "created": self.created,
            "items": self.items,
            "paths": self.structure.get("paths"),
            "bytes": self.size,
        }

    def require_part_names(self) -> None:
        """Raise VersionDamaged if a part's name is not a plain file name, or is "manifest.json"."""
        for part in self.parts:
            if not re.fullmatch(PART, part) or part == "manifest.json":
                raise VersionDamaged(f"{part[:64]!r} is not a name of a part: expected one like item_bias.npy")

    def require_counts(self) -> None:
        """Raise VersionDamaged unless items, embedding, history and k are whole numbers of at least 1."""
        for name in ("items", "embedding", "history", "k"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise VersionDamaged(f"{name}: expected a whole number of at least 1, found {value!r}")


def fingerprint(parts: Mapping[str, PartInfo]) -> str:
    """SHA-256 over the names and digests of all parts."""
    return sha256(canonical({name: info.sha256 for name, info in parts.items()}))


def counter(version: str) -> int:
    """The number in a version's name, such as 7 in v7-0123456789ab. 0 if the name does not have this form."""
    digits = version[1:].partition("-")[0]
    return int(digits) if digits.isdecimal() else 0


@contextlib.contextmanager
def naming(version: str) -> Iterator[None]:
    """Add the version's name to the message of a VersionDamaged that lacks it."""
    try:
        yield
    except VersionDamaged as error:
        raise VersionDamaged(str(error) if version in str(error) else f"{version}: {error}") from None


def check_name(name: str) -> str:
    """Return `name` if it has the form NAME, which is safe in paths and keys, else raise InvalidName. The form has no
    '/' and no ':'.
    """
    if not NAME.fullmatch(name):
        raise InvalidName("not a version name: expected lower-case letters, digits, '.', '_' and '-', at most 64")
    return name


def canonical(value: Any) -> bytes:
    """JSON in a canonical form, so that equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def sha256(data: bytes | memoryview) -> str:
    """The SHA-256 digest in hexadecimal."""
    return hashlib.sha256(data).hexdigest()

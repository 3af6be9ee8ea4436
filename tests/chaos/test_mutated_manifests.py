"""Manifests with changed bytes, and manifests with junk in a field and a digest that fits."""

from __future__ import annotations

import hashlib
import json
from random import Random
from typing import Any

from index_store.errors import IndexStoreError
from index_store.manifest import Manifest
from index_store.path_facts import PathFacts
from index_store.version import Version
from tests.chaos.conftest import Goal, amount
from tests.conftest import Planted

MUTATED = 100_000
SIGNED = 20_000
JUNK: list[Any] = [None, True, 0, -1, 2**70, 1.5, float("inf"), "", "v1", [], [[]], {}, {"size": "x"}, {"": None}]


def test_mutated_bytes_are_refused(goal: Goal, planted: Planted) -> None:
    """Promise: mutated manifests. Bytes are changed, removed, inserted or repeated: the digest shows it."""
    random, count = Random(0), amount(MUTATED)
    manifest = planted.version.named(1).manifest
    text, accepted = manifest.to_json(), 0
    for _ in range(count):
        changed = bytearray(text)
        for _ in range(random.randint(1, 4)):
            at = random.randrange(len(changed))
            change = random.randrange(4)
            if change == 0:
                changed[at] = random.randrange(256)
            elif change == 1:
                del changed[at : at + random.randint(1, 20)]
            elif change == 2:
                changed[at:at] = random.choice([b"{", b"[", b'"', b"\\u0000", b"NaN", b"\xff", random.randbytes(4)])
            else:
                other = random.randrange(len(changed))
                changed[at:at] = changed[other : other + random.randint(1, 50)]
        try:
            accepted += Manifest.from_json(bytes(changed), manifest.version) != manifest
        except IndexStoreError:
            continue
    goal(f"{count:,} mutated manifests: accepted, or an unexpected error", accepted, accepted == 0)


def test_junk_with_a_digest_that_fits_is_refused_or_harmless(goal: Goal, planted: Planted) -> None:
    """Promise: mutated manifests. A field or a part's entry is replaced by junk, and the digest is made to fit."""
    random, count = Random(0), amount(SIGNED)
    version = planted.version.named(1)
    fields = json.loads(version.manifest.to_json())
    del fields["manifest_sha256"]
    valid = 0
    for _ in range(count):
        junk = json.loads(json.dumps(fields))
        place = random.choice([junk, junk, junk["parts"], junk["parts"][random.choice(sorted(junk["parts"]))]])
        place[random.choice([*place, "new"])] = random.choice(JUNK)
        canonical = json.dumps(junk, sort_keys=True, separators=(",", ":")).encode()
        text = json.dumps(junk | {"manifest_sha256": hashlib.sha256(canonical).hexdigest()}).encode()
        try:
            manifest = Manifest.from_json(text, version.manifest.version)
            sum(info.size for info in manifest.parts.values())
            Version(manifest, version.parts).verify_digests()
            Version(manifest, version.parts).validate()
            PathFacts.of(manifest.structure)
        except IndexStoreError:
            continue
        valid += 1
        assert [getattr(manifest, name) for name in ("items", "embedding", "parts")] == [
            getattr(version.manifest, name) for name in ("items", "embedding", "parts")
        ]
    goal(
        f"{count:,} manifests with junk in a field and a digest that fits: unexpected errors", 0, reached=valid < count
    )

"""A version is checked completely: digests, shapes, and the manifest itself."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index_store.errors import InvalidName, VersionDamaged, VersionIncompatible
from index_store.folder.store import FolderStore
from index_store.manifest import Manifest, PartInfo, check_name, fingerprint, sha256
from index_store.version import Version, _is_finite, npy
from tests.planted import facts_of_version, parts_of_version, small_version


def test_manifest_survives_its_json() -> None:
    """Reading back a written manifest gives an equal one."""
    manifest = small_version().named(1).manifest

    assert manifest == Manifest.from_json(manifest.to_json(), manifest.version)


def test_every_changed_byte_of_a_manifest_is_noticed() -> None:
    """Whichever byte of manifest.json is changed, it is refused or read as the same manifest."""
    manifest = small_version().named(1).manifest
    text = manifest.to_json()
    for place in range(len(text)):
        changed = text[:place] + bytes([text[place] ^ 1]) + text[place + 1 :]
        try:
            reread = Manifest.from_json(changed, manifest.version)
        except (VersionDamaged, VersionIncompatible):
            continue

        assert manifest == reread


def test_the_name_has_the_counter_and_the_fingerprint() -> None:
    """The name is v<counter>-<first 12 digits of the fingerprint>."""
    version = small_version().named(7)

    assert f"v7-{version.manifest.fingerprint[:12]}" == version.manifest.version


def test_other_bytes_give_another_fingerprint() -> None:
    """The fingerprint depends on the parts, not on the name that they are published under."""
    assert small_version("a").manifest.fingerprint == small_version("a").named(3).manifest.fingerprint
    assert small_version("a").manifest.fingerprint != small_version("b").manifest.fingerprint


@pytest.mark.parametrize("name", ["v2-000000000000", "v1-{fingerprint}", "v3-{fingerprint}"])
def test_a_manifest_under_another_name_is_refused(name: str) -> None:
    """The folder's name and the manifest's must agree, in the counter too."""
    manifest = small_version().named(2).manifest

    with pytest.raises(VersionDamaged, match="belongs to v2-"):
        Manifest.from_json(manifest.to_json(), name.format(fingerprint=manifest.fingerprint[:12]))


def test_a_count_of_one_is_enough() -> None:
    """One item, one number in its vector, one item of history, one candidate."""
    dataclasses.replace(small_version().manifest, items=1, embedding=1, history=1, k=1).require_counts()


@pytest.mark.parametrize(("other", "advice"), [(99, "upgrade"), (1, "train again")])
def test_another_format_is_incompatible(other: int, advice: str) -> None:
    """A newer or older format is incompatible, not damaged, and the error says what to do."""
    manifest = small_version().named(1).manifest
    fields = json.loads(manifest.to_json()) | {"format": other}

    with pytest.raises(VersionIncompatible, match=f"format {other}.*{advice}"):
        Manifest.from_json(json.dumps(fields).encode(), manifest.version)


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"null", b"\xff", b'{"manifest_sha256": 1}', b"[" * 100_000])
def test_text_that_is_no_manifest_is_damaged(text: bytes) -> None:
    """No JSON, other JSON and JSON that is nested too deeply all give the same error."""
    with pytest.raises(VersionDamaged):
        Manifest.from_json(text, "v1-000000000000")


def test_a_changed_part_fails_its_digest() -> None:
    """One flipped bit in any part is noticed, and the error names the part."""
    version = small_version().named(1)
    for part, content in version.parts.items():
        changed = bytes(content[:-1]) + bytes([content[-1] ^ 1])
        damaged = dataclasses.replace(version, parts={**version.parts, part: changed})

        with pytest.raises(VersionDamaged, match=part.replace(".", r"\.")):
            damaged.verify_digests()


def test_parts_of_another_version_are_refused() -> None:
    """The model of one version does not pass with the other parts of another."""
    first, second = small_version("a"), small_version("b")
    mixed = dataclasses.replace(first, parts={**first.parts, "model.onnx": second.parts["model.onnx"]})

    with pytest.raises(VersionDamaged, match=r"model\.onnx"):
        mixed.verify_digests()


@pytest.mark.parametrize(
    ("part", "content", "message"),
    [
        ("item_vectors.npy", npy(np.full((3, 3), np.nan, np.float16)), "not finite"),
        ("item_bias.npy", npy(np.array([0, np.inf, 0], np.float32)), "not finite"),
        ("item_bias.npy", npy(np.zeros(2, np.float32)), "shape"),
        ("item_vectors.npy", npy(np.zeros((3, 3))), "float64"),
        ("path_ids.npy", npy(np.array([7, 3])), "ascending"),
        ("path_offsets.npy", npy(np.array([0, 4, 3])), "expected to rise"),
        ("item_ends.npy", npy(np.zeros(2, np.uint32)), "item_ends"),
        ("late_items.npy", npy(np.array([3], np.int32)), "late_items"),
        ("late_items.npy", npy(np.array([1], np.int32)), "late_neighbours"),
        ("late_items.npy", npy(np.array([1, 1], np.int32)), "late_items"),
        ("path_items.npy", npy(np.array([0, 1, 3], np.int32)), "outside"),
        ("path_items.npy", npy(np.array([0, 1, -1], np.int32)), "outside"),
        ("neighbours.npy", npy(np.full((2, 3, 2), 3, np.int32)), "neighbours: an item index is outside 0..2"),
        ("neighbours.npy", npy(np.full((2, 3, 2), -2, np.int32)), "neighbours: an item index is outside 0..2"),
        ("neighbours.npy", npy(np.zeros((2, 3, 1), np.int32)), "similarities: expected uint16 of shape"),
        ("neighbours.npy", npy(np.zeros((2, 2, 2), np.int32)), "neighbours: expected int32 of shape"),
        ("neighbours.npy", npy(np.zeros((), np.int32)), "neighbours: expected int32 of shape"),
        ("similarities.npy", npy(np.zeros((2, 3, 2), np.int16)), "similarities: expected uint16"),
        ("item_ids.npy", npy(np.array([10, 10, 30])), "ascending"),
        ("path_ids.npy", b"\x93NUMPY\x01\x00nonsense", "not a .npy array"),
        ("path_ids.npy", npy(np.array([7, 3]))[:-1], "not a .npy array"),
        ("model.onnx", b"... location ... secret.bin", "external data"),
        ("context.json", b"{", "not JSON"),
        ("reranker.json", b'{"kind": "softmax", "weights": {"logit": NaN}, "intercept": 0}', "NaN is not a number"),
        ("path_ids.npy", npy(np.array(3)), "shape"),
        ("path_ids.npy", npy(np.array([3, 16])), r"outside 0\.\.width"),
        ("path_offsets.npy", npy(np.array([0, 2, 4])), "the number of postings"),
        ("path_offsets.npy", npy(np.array([2**63 - 1, -(2**62), 3])), "path_offsets"),
        ("graph.npy", npy(np.zeros(2)), "missing or unknown parts: graph.npy"),
    ],
)
def test_a_version_that_cannot_be_right_is_not_built(part: str, content: bytes, message: str) -> None:
    """Shapes, order, bounds, finite values, no external data: the error gives the fault."""
    parts = parts_of_version({3: [0, 2], 7: [1]}, item_ids=[10, 20, 30]) | {part: content}

    with pytest.raises(VersionDamaged, match=message):
        Version.build(parts, **facts_of_version(items=3, paths=2, postings=3))


@pytest.mark.parametrize("missing", ["reranker.json", "path_ids.npy", "path_items.npy", "golden.json", "item_ids.npy"])
def test_a_version_without_one_of_its_parts_is_not_built(missing: str) -> None:
    """The error names the missing part."""
    parts = parts_of_version({3: [0, 2], 7: [1]}, item_ids=[10, 20, 30])
    del parts[missing]

    with pytest.raises(VersionDamaged, match=f"missing.*{missing}"):
        Version.build(parts, **facts_of_version(items=3, paths=2, postings=3))


@pytest.mark.parametrize("change", [{"beam": 9}, {"paths": 3}, {"postings": 4}, {"depth": "2"}, {"colour": 1}])
def test_a_version_whose_facts_do_not_fit_its_paths_is_not_built(change: dict[str, Any]) -> None:
    """A store refuses it before it can become current."""
    parts = parts_of_version({3: [0, 2], 7: [1]}, item_ids=[10, 20, 30])

    facts = facts_of_version(items=3, paths=2, postings=3)
    Version.build(parts, **facts)

    with pytest.raises(VersionDamaged):
        Version.build(parts, **facts | {"structure": facts["structure"] | change})


@pytest.mark.parametrize("name", ["../outside.txt", "a/b.npy", "/etc/x.npy", "manifest.json", "x", "A.npy", "a.npy\n"])
def test_a_part_has_a_plain_file_name(name: str, tmp_path: Path) -> None:
    """A version with another part name is neither built nor read, so no store writes outside its folder."""
    parts = parts_of_version({3: [0, 2], 7: [1]}, item_ids=[10, 20, 30]) | {name: b"x"}
    facts = facts_of_version(items=3, paths=2, postings=3, kind="graph")
    with pytest.raises(VersionDamaged, match="not a name of a part"):
        Version.build(parts, **facts)

    infos = {part: PartInfo(len(content), sha256(content)) for part, content in parts.items()}
    unnamed = Version(Manifest(parts=infos, fingerprint=fingerprint(infos), **facts), parts)
    with pytest.raises(VersionDamaged, match="not a name of a part"):
        FolderStore(str(tmp_path / "store")).publish(unnamed)
    manifest = unnamed.named(1).manifest
    with pytest.raises(VersionDamaged, match=f"^{manifest.version}: .*not a name of a part"):
        Manifest.from_json(manifest.to_json(), manifest.version)
    assert not list(tmp_path.rglob("outside.txt"))


def test_a_version_of_an_unknown_kind_is_stored(tmp_path: Path) -> None:
    """Only the parts that every kind has are checked, so a release that cannot open a kind can still copy it."""
    parts = parts_of_version({3: [0, 2]}, item_ids=[10, 20, 30])
    parts = {name: part for name, part in parts.items() if not name.startswith("path_")} | {"graph2.npy": b"x"}
    version = Version.build(parts, **facts_of_version(items=3, paths=1, postings=2, kind="graph", structure={"m": 8}))
    store = FolderStore(str(tmp_path))

    loaded = store.load(store.publish(version))

    assert (loaded.manifest.kind, bytes(loaded.parts["graph2.npy"])) == ("graph", b"x")


def test_a_header_that_claims_terabytes_is_refused() -> None:
    """The shape in a .npy header is compared with the bytes present, before anything is allocated."""
    header = npy(np.zeros(3, np.float32)).replace(b"(3,)", b"(10000000000000,)", 1)
    parts = parts_of_version({3: [0, 2], 7: [1]}, item_ids=[10, 20, 30]) | {"item_bias.npy": header}

    with pytest.raises(VersionDamaged, match="item_bias"):
        Version.build(parts, **facts_of_version(items=3, paths=2, postings=3))


def test_an_array_of_objects_is_never_unpickled() -> None:
    """A .npy part that could only be read with pickle is refused."""
    import io

    file = io.BytesIO()
    np.save(file, np.array([{}, {}], object), allow_pickle=True)
    parts = parts_of_version({3: [0, 2], 7: [1]}, item_ids=[10, 20, 30]) | {"path_ids.npy": file.getvalue()}

    with pytest.raises(VersionDamaged, match="path_ids"):
        Version.build(parts, **facts_of_version(items=3, paths=2, postings=3))


def test_string_ids_are_kept_as_strings() -> None:
    """Item ids come back in the type they were trained with."""
    parts = parts_of_version({3: [0, 1]}, item_ids=["a", "b"])
    version = Version.build(parts, **facts_of_version(items=2, paths=1, postings=2))

    assert version.item_ids == ["a", "b"]


@pytest.mark.parametrize("name", ["", "V1", "-a", "../v1", "a/b", "a" * 65, "v1\n", "http://x"])
def test_only_plain_names_are_names(name: str) -> None:
    """A version's name is never a path or a URL."""
    with pytest.raises(InvalidName):
        check_name(name)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 65504, -65504, 6e-8, -0.0])
def test_only_finite_arrays_count_as_finite(value: float, dtype: type[np.floating[Any]]) -> None:
    """The value is in the last of many rows; among the finite ones are the largest and the smallest of float16."""
    array = np.zeros((5000, 3), dtype)
    array[4999, 2] = value

    assert _is_finite(array) == bool(np.isfinite(value))


def test_facts_of_version_has_every_field_of_a_manifest() -> None:
    """Otherwise the versions that tests build would differ from real ones."""
    fields = {field.name for field in dataclasses.fields(Manifest)}

    assert set(facts_of_version(1, 1, 1)) == fields - {"parts", "version", "fingerprint", "format", "covers"}

"""The folder store with damaged files; tests/chaos covers killed processes and failing disks."""

from __future__ import annotations

from pathlib import Path

import pytest

from index_store.errors import StoreFull, StoreUnavailable, VersionDamaged, VersionNotFound
from index_store.folder.store import FolderStore
from tests.planted import small_version


def test_a_version_larger_than_the_room_is_refused_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The free space is checked first, and the message has both sizes."""
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())

    with pytest.raises(StoreFull, match="needs 1 MiB and 0 MiB are free"):
        FolderStore(str(tmp_path)).publish(small_version())


def test_a_missing_part_is_damage(tmp_path: Path) -> None:
    """The error names the part."""
    store = FolderStore(str(tmp_path))
    name = store.publish(small_version())
    (tmp_path / "versions" / name / "path_ids.npy").unlink()

    with pytest.raises(VersionDamaged, match=r"path_ids\.npy is missing"):
        store.load(name)


@pytest.mark.parametrize("part", ["item_bias.npy", "manifest.json"])
def test_a_damaged_version_is_repaired_by_publishing_again(tmp_path: Path, part: str) -> None:
    """The copy has a new name, because a name never stands for other bytes."""
    store = FolderStore(str(tmp_path))
    name = store.publish(small_version())
    file = tmp_path / "versions" / name / part
    file.write_bytes(file.read_bytes()[:-5])

    again = store.publish(small_version())

    assert again.split("-") == ["v2", name.split("-")[1]]
    store.load(again)


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """A version with one flipped bit in any of its files is not loaded."""
    store = FolderStore(str(tmp_path))
    name = store.publish(small_version())
    for file in sorted((tmp_path / "versions" / name).iterdir()):
        if file.name == "manifest.json":
            continue  # tests/test_version.py flips each of its bytes
        content = file.read_bytes()
        for place in {0, len(content) // 2, len(content) - 1}:
            file.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
            with pytest.raises(VersionDamaged):
                store.load(name)
        file.write_bytes(content)

    store.load(name)


@pytest.mark.parametrize("text", ["nonsense", "", "NON SENSE\n\n", "v1-a\n../x\n", "v1\nv2\nv3\n"])
def test_a_damaged_pointer_is_reported_and_repaired(tmp_path: Path, text: str) -> None:
    """If CURRENT has nonsense, the error says how to repair it, and `activate` does so."""
    store = FolderStore(str(tmp_path))
    name = store.publish(small_version())
    (tmp_path / "CURRENT").write_text(text)
    with pytest.raises(VersionDamaged, match="dr-index activate"):
        store.current()

    store.activate(name)

    assert store.current() == name


def test_foreign_files_and_folders_are_not_versions(tmp_path: Path) -> None:
    """They are left alone and not listed."""
    store = FolderStore(str(tmp_path))
    name = store.publish(small_version())
    (tmp_path / "versions" / "notes.txt").write_text("mine")
    (tmp_path / "versions" / "empty").mkdir()

    assert [m.version for m in store.versions()] == [name]
    with pytest.raises(VersionNotFound):
        store.load("empty")


def test_a_store_where_a_file_is_cannot_be_used(tmp_path: Path) -> None:
    """The error names the file."""
    file = tmp_path / "file"
    file.write_text("")

    with pytest.raises(StoreUnavailable, match="file"):
        FolderStore(str(file)).publish(small_version())

"""The log of a store: its contract on every backend, and what a crash may do to it."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from index_store import log as log_module
from index_store.errors import LogBroken, LogDamaged, LogIncompatible, LogMoved, StoreFull, StoreUnavailable
from index_store.folder import log as folder_log
from index_store.folder.store import FolderStore
from index_store.log import PRODUCERS, START, Draft, Place, Record, encode
from index_store.store import IndexStore, open_store
from tests.redis_servers import RedisServer


@pytest.fixture
def store(every_url: str) -> IndexStore:
    """An empty store of each backend."""
    store = open_store(every_url)
    if isinstance(store, FolderStore):
        store.folder.mkdir()
    return store


@pytest.fixture
def folder(tmp_path: Path) -> FolderStore:
    """An empty store in a folder."""
    return FolderStore(str(tmp_path))


def drafts(*numbers: int, producer: str = "p") -> list[Draft]:
    """A draft for each number, which has the number as its only change."""
    return [Draft(producer, number, [{"n": number}]) for number in numbers]


def read_all(store: IndexStore, after: Place = START) -> list[Record]:
    """Every record after `after`, read three at a time."""
    records: list[Record] = []
    while new := store.read(records[-1].place if records else after, 3):
        records += new
    return records


def numbers(records: Sequence[Record]) -> list[int]:
    """The numbers of the drafts."""
    return [record.changes[0]["n"] for record in records]


def test_a_log_begins_empty(store: IndexStore) -> None:
    """There is nothing to read, and nothing to trim."""
    assert store.read(START, 10) == []
    assert store.log_start() == store.log_end() == START
    store.trim(5)


def test_records_come_back_in_order(store: IndexStore) -> None:
    """Each has the next number and the digest of the one before; a batch of changes is one record."""
    assert store.append(drafts(1, 2)) == [1, 2]
    assert store.append([Draft("other", 7, [{"n": 3}, {"text": "Käse\n"}])]) == [3]

    records = read_all(store)
    assert [record.seq for record in records] == [1, 2, 3]
    assert [record.previous for record in records] == [START.digest, records[0].digest, records[1].digest]
    assert (records[2].producer, records[2].number) == ("other", 7)
    assert records[2].changes == [{"n": 3}, {"text": "Käse\n"}]
    assert store.log_end() == records[2].place
    assert store.read(records[2].place, 10) == []


def test_reading_continues_anywhere(store: IndexStore, every_url: str) -> None:
    """Also between two records that were appended together, and in an object that has not read before."""
    store.append(drafts(1, 2, 3, 4))
    store.append(drafts(5))
    records = read_all(store)

    for record in records:
        assert numbers(read_all(open_store(every_url), record.place)) == list(range(record.seq + 1, 6))
        assert numbers(read_all(store, record.place)) == list(range(record.seq + 1, 6))


def test_objects_see_each_others_records(store: IndexStore, every_url: str) -> None:
    """Two objects append in turn, and both read all records."""
    other = open_store(every_url)
    for number in range(1, 9, 2):
        assert store.append(drafts(number, producer="a")) == [number]
        assert other.append(drafts(number + 1, producer="b")) == [number + 1]
        assert numbers(read_all(store)) == numbers(read_all(other)) == list(range(1, number + 2))


def test_a_repeat_is_stored_once(store: IndexStore, every_url: str) -> None:
    """A producer that has not got its answer sends its draft again, perhaps to another process."""
    assert store.append(drafts(1, 2)) == [1, 2]
    assert store.append(drafts(2)) == [2]
    assert open_store(every_url).append([*drafts(2), *drafts(3), *drafts(3), *drafts(2, producer="q")]) == [2, 3, 3, 4]
    assert numbers(read_all(store)) == [1, 2, 3, 2]


def test_an_append_that_expects_the_end(store: IndexStore) -> None:
    """It stores its record only if the log ends where it expects."""
    store.append(drafts(1), expected=START)
    end = store.log_end()
    assert store.append(drafts(2), expected=end) == [2]

    with pytest.raises(LogMoved, match="ends with record 2, not with 1"):
        store.append(drafts(3), expected=end)
    assert numbers(read_all(store)) == [1, 2]
    assert store.append(drafts(2), expected=end) == [2]  # a repeat stores nothing
    assert store.append(drafts(3)) == [3]


def test_many_producers_at_once(store: IndexStore, every_url: str) -> None:
    """No record is lost, and each producer's records are in the order in which it sent them."""

    def produce(name: str) -> None:
        own = open_store(every_url)
        for number in range(10):
            own.append(drafts(number, producer=name))

    threads = [threading.Thread(target=produce, args=(f"p{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    records = read_all(store)
    assert [record.seq for record in records] == list(range(1, 41))
    for name in ("p0", "p1", "p2", "p3"):
        assert numbers([record for record in records if record.producer == name]) == list(range(10))


def test_trimming(store: IndexStore, every_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The records from a number on can be read, and who needs an earlier one is told that it is gone."""
    monkeypatch.setattr(folder_log, "SEGMENT", 1)  # every append begins a segment
    for number in range(1, 6):
        store.append(drafts(number))
    records = read_all(store)
    store.trim(4)

    for each in (store, open_store(every_url)):
        assert numbers(read_all(each, records[3].place)) == [5]
        assert each.log_start() == records[2].place
        assert each.log_end() == records[4].place
        for place in (START, records[0].place):
            with pytest.raises(LogBroken):
                each.read(place, 10)
        assert numbers(read_all(each, records[2].place)) == [4, 5]  # that of the last record that was removed
        assert numbers(read_all(each, each.log_start())) == [4, 5]
    assert open_store(every_url).append(drafts(5, 6)) == [5, 6]  # repeats are still known
    store.trim(100)
    assert store.log_end().seq == 6
    assert store.append(drafts(7)) == [7]
    assert numbers(read_all(store, store.log_start()))[-1] == 7


def test_a_folder_that_is_trimmed_to_its_end(folder: FolderStore) -> None:
    """Nothing is left to read, the numbers go on, and a repeat is known."""
    folder.append(drafts(1, 2))
    folder.append(drafts(3))
    folder.trim(3)
    assert numbers(read_all(folder, folder.log_start())) == [1, 2, 3]  # 3 is in the same segment
    end = folder.log_end()
    folder.trim(4)
    folder.trim(4)
    assert folder.log_start() == folder.log_end() == end
    assert len(list(folder.folder.glob("log/*.log"))) == 1
    assert folder.append(drafts(3, 4)) == [3, 4]
    assert numbers(FolderStore(str(folder.folder)).read(end, 10)) == [4]
    with pytest.raises(LogBroken):
        folder.read(START, 10)


def test_a_place_of_another_log(store: IndexStore) -> None:
    """Whoever has read records that this log does not have is told so."""
    with pytest.raises(LogBroken):
        store.read(Place(3, "f" * 16), 10)
    store.append(drafts(1, 2))
    for place in (Place(1, "f" * 16), Place(2, "f" * 16), Place(3, "f" * 16)):
        with pytest.raises(LogBroken):
            store.read(place, 10)


def test_the_log_of_a_newer_release(store: IndexStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused, with what to do."""
    with monkeypatch.context() as newer:
        newer.setattr(log_module, "FORMAT", 2)
        store.append(drafts(1))
    with pytest.raises(LogIncompatible, match="upgrade"):
        store.read(START, 10)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b'{"format":1}',
        encode(drafts(1)[0], START, 0)[1].replace(b'"seq":1', b'"seq":"1"'),
        encode(drafts(1)[0], START, 0)[1].replace(b'{"n":1}', b"5"),
        b"[" * 100_000,
    ],
    ids=["empty", "list", "no format", "no fields", "number as text", "change as number", "nested"],
)
def test_a_record_that_is_not_one(text: bytes) -> None:
    """It is refused as damage, at the latest when its changes are read."""
    with pytest.raises(LogDamaged):
        log_module.decode(text).changes  # noqa: B018


def test_the_number_of_producers_is_bounded(folder: FolderStore) -> None:
    """The ones that were silent for longest are forgotten."""
    folder.append([Draft(f"p{i}", 1, [{}]) for i in range(PRODUCERS + 1)])
    assert folder.append(drafts(1, producer="p1")) == [2]
    assert folder.append(drafts(1, producer="p0")) == [PRODUCERS + 2]


def segment(folder: FolderStore) -> Path:
    """The only segment of a log."""
    (file,) = (folder.folder / "log").glob("*.log")
    return file


def test_a_torn_append_is_cut_off(folder: FolderStore) -> None:
    """Wherever the bytes of an append end, the records before it stay, and its numbers are given to the next append."""
    folder.append(drafts(1, 2))
    whole = segment(folder).read_bytes()
    folder.append(drafts(3, 4))
    longer = segment(folder).read_bytes()

    for end in range(len(whole), len(longer)):
        segment(folder).write_bytes(longer[:end])
        again = FolderStore(str(folder.folder))
        assert numbers(read_all(again)) == [1, 2]
        assert again.log_end().seq == 2
        assert again.append(drafts(5)) == [3]
        assert numbers(read_all(again)) == [1, 2, 5]
        torn = list((folder.folder / "log").glob("torn-*"))
        assert [file.read_bytes() for file in torn] == ([longer[len(whole) : end]] if end > len(whole) else [])
        for file in torn:
            file.unlink()


@pytest.mark.parametrize("where", ["length", "checksum", "head", "payload", "last length"])
def test_damage_is_not_mistaken_for_a_torn_append(folder: FolderStore, where: str) -> None:
    """A bit that flips in a group which others follow, or in the length of the last one, is reported."""
    folder.append(drafts(1))
    start, end = segment(folder).read_bytes().rindex(b'{"format"') - 12, segment(folder).stat().st_size
    folder.append(drafts(2))
    at = {"length": start, "checksum": start + 5, "head": start + 9, "payload": end - 4, "last length": end + 1}[where]
    content = bytearray(segment(folder).read_bytes())
    content[at] ^= 1
    segment(folder).write_bytes(content)
    for act in (read_all, lambda store: store.append(drafts(3)), lambda store: store.log_end()):
        with pytest.raises(LogDamaged, match="restore"):
            act(FolderStore(str(folder.folder)))


def test_damage_in_an_earlier_segment(folder: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment that another one follows must be whole."""
    monkeypatch.setattr(folder_log, "SEGMENT", 1)
    folder.append(drafts(1))
    folder.append(drafts(2))
    first = min((folder.folder / "log").glob("*.log"))
    first.write_bytes(first.read_bytes()[:-1])
    with pytest.raises(LogDamaged):
        read_all(FolderStore(str(folder.folder)))


def test_bytes_that_the_disk_did_not_write(folder: FolderStore) -> None:
    """Zeros at the end, as after a power failure, are an append that was not acknowledged."""
    folder.append(drafts(1))
    with segment(folder).open("ab") as file:
        file.write(bytes(100))
    again = FolderStore(str(folder.folder))
    assert numbers(read_all(again)) == [1]
    assert again.append(drafts(2)) == [2]
    assert numbers(read_all(again)) == [1, 2]


def test_no_room(folder: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """An append for which the disk has no room leaves nothing, and the next one succeeds."""
    folder.append(drafts(1))
    before = segment(folder).read_bytes()
    pwrite = os.pwrite

    def full(descriptor: int, content: bytes, offset: int) -> int:
        if len(content) <= 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(descriptor, content[:-10], offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(StoreFull):
            folder.append(drafts(2))
    assert segment(folder).read_bytes() == before

    def broken(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(StoreUnavailable):
            folder.append(drafts(2))
    assert segment(folder).read_bytes() == before
    assert folder.append(drafts(2)) == [2]


PRODUCER = """
import sys
from index_store.folder.store import FolderStore
from index_store.log import Draft
store = FolderStore(sys.argv[1])
for number in range(10**6):
    print(*store.append([Draft(sys.argv[2], number, [{"n": number}])]), flush=True)
"""


def test_a_killed_producer_loses_nothing_that_was_acknowledged(folder: FolderStore) -> None:
    """Three processes append until they are killed; every record that was acknowledged is there."""
    command = [sys.executable, "-c", PRODUCER, str(folder.folder)]
    for round_ in range(2):
        processes = [subprocess.Popen([*command, f"{round_}{i}"], stdout=subprocess.PIPE, text=True) for i in range(3)]
        acknowledged: list[int] = []
        for process in processes:
            assert process.stdout
            acknowledged += [int(process.stdout.readline()) for _ in range(20)]
        for process in processes:
            process.send_signal(signal.SIGKILL)
        for process in processes:
            acknowledged += [int(line) for line in process.communicate()[0].splitlines(keepends=True) if "\n" in line]
        records = read_all(FolderStore(str(folder.folder)))
        assert [record.seq for record in records] == list(range(1, len(records) + 1))
        assert set(acknowledged) <= {record.seq for record in records}


def test_a_reader_notices_a_restored_backup(folder: FolderStore) -> None:
    """A segment that is shorter than before does not have what was read."""
    folder.append(drafts(1))
    backup = segment(folder).read_bytes()
    folder.append(drafts(2))
    (place,) = [record.place for record in read_all(folder)[-1:]]
    segment(folder).write_bytes(backup)
    with pytest.raises(LogBroken):
        folder.read(place, 10)
    assert FolderStore(str(folder.folder)).append(drafts(7, producer="another")) == [2]
    with pytest.raises(LogBroken):
        folder.read(place, 10)
    assert folder.append(drafts(3)) == [3]
    assert numbers(read_all(folder)) == [1, 7, 3]


def test_redis_loses_its_last_records(own: RedisServer) -> None:
    """A reader notices, at once or when their numbers belong to others."""
    store = open_store(own.url)
    store.append(drafts(1, 2, 3))
    records = read_all(store)
    with own.client() as client:
        entries: list[Any] = client.xrange("dr:log")
        client.flushdb()
        with pytest.raises(LogBroken):
            store.read(records[-1].place, 10)
        for name, fields in entries[:2]:
            client.xadd("dr:log", fields, id=name)
    with pytest.raises(LogBroken):
        store.read(records[-1].place, 10)
    assert store.append(drafts(9, producer="other")) == [3]
    with pytest.raises(LogBroken):
        store.read(records[-1].place, 10)
    assert numbers(read_all(store)) == [1, 2, 9]


def test_redis_has_a_gap(own: RedisServer) -> None:
    """A record that is missing in the middle is noticed."""
    store = open_store(own.url)
    store.append(drafts(1, 2, 3))
    with own.client() as client:
        client.xdel("dr:log", "2-0")
    with pytest.raises(LogBroken, match="missing"):
        read_all(store)


def test_the_form_of_a_record() -> None:
    """Other programs may read the log: one line of JSON, with these fields."""
    place, text = encode(Draft("p", 4, [{"n": 1}]), Place(6, "0123456789abcdef"), 1_700_000_000_000)
    assert place.seq == 7
    assert json.loads(text) == {
        "format": 1,
        "seq": 7,
        "previous": "0123456789abcdef",
        "producer": "p",
        "number": 4,
        "time": 1_700_000_000_000,
        "changes": [{"n": 1}],
    }


def test_two_readers_in_turn_read_each_frame_once(folder: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """As two versions do during a swap; else each read would begin at the start of the segment."""
    for number in range(40):
        folder.append(drafts(number))
    read = log_module.decode
    decoded: list[int] = []

    def counting(text: bytes) -> Record:
        decoded.append(len(text))
        return read(text)

    monkeypatch.setattr(log_module, "decode", counting)
    places = [START, folder.read(START, 1)[-1].place]
    for _ in range(30):
        for reader, place in enumerate(places):
            places[reader] = folder.read(place, 1)[-1].place
    assert [place.seq for place in places] == [30, 31]
    assert len(decoded) <= 2 + 2 * 30 + 2

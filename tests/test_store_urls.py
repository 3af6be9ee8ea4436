"""What a store URL may be: a folder or a server, never a folder by mistake; and stores that are not there."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
from pathlib import Path

import pytest

from index_store.errors import InvalidName
from index_store.folder import FolderStore
from index_store.store import open_store

BIN = Path(sys.executable).parent


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test would make by mistake is seen there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DR_STORE", raising=False)


def opened(url: str) -> str:
    """The folder of the store at `url`."""
    store = open_store(url)
    assert isinstance(store, FolderStore)
    return str(store.folder)


# -- B24: what looks like a URL or host:port is never a file name --


@pytest.mark.parametrize(
    "url",
    [
        "file:/data/my%20store",
        "file:///data/my%20store",
        "file://localhost/data/my%20store",
        "file://LOCALHOST/data/my%20store",
        "FILE:///data/my store",
        "/data/my store",
        " /data/my store\n",
    ],
)
def test_one_folder_has_many_urls(url: str) -> None:
    """B24: as RFC 8089 has it, percent-decoded; blanks around are none of the name."""
    assert opened(url) == "/data/my store"


def test_percent_signs_of_file_urls_alone_are_decoded() -> None:
    """B24: UTF-8, and bytes that are none; a plain path is taken as it is."""
    assert opened("file:///b%C3%BCcher") == "/bücher"
    assert os.fsencode(opened("file:///b%FCcher")) == b"/b\xfccher"
    assert opened("/a%20b") == "/a%20b"


@pytest.mark.parametrize(
    ("path", "below"),
    [
        ("store", "store"),
        ("./a:6379", "a:6379"),
        ("a/b:6379", "a/b:6379"),
        ("my store", "my store"),
        ("a@b", "a@b"),
        ("x~", "x~"),
        (".", ""),
    ],
)
def test_a_plain_path_is_below_the_working_folder(path: str, below: str, tmp_path: Path) -> None:
    """B24: also one with a colon, where it cannot be a host's."""
    assert opened(path) == str(tmp_path / below)


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """B24: in DR_STORE no shell has replaced it."""
    monkeypatch.setenv("HOME", "/home/me")

    assert opened("~/store") == "/home/me/store"
    assert opened("~") == "/home/me"
    assert opened(f"~{getpass.getuser()}/store").endswith("/store")
    with pytest.raises(InvalidName, match="no home folder"):
        open_store("~nobody-of-that-name/store")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("127.0.0.1:6379", "a host and port without a scheme"),
        ("localhost:6379", "a host and port without a scheme"),
        ("localhost:6379/0", "a host and port without a scheme"),
        ("redis.example:6379?namespace=shop", "a host and port without a scheme"),
        ("user:hunter2@host:6379/0", "a host and port without a scheme"),
        ("//host:6379/0", "a host and port without a scheme"),
        ("[::1]:6379", "a host and port without a scheme"),
        (":6379", "a host and port without a scheme"),
        ("::1", "./name"),
        ("user:hunter2@host", "./name"),
        ("s3:bucket", "./name"),
        ("http:/host/x", "./name"),
        ("redis:host", "'//' is missing"),
        ("REDIS:host", "'//' is missing"),
        ("rediss:/host", "'//' is missing"),
        ("redis+cluster:host:6379", "'//' is missing"),
        ("http://host/hunter2", "the scheme 'http'"),
        ("S3://bucket", "the scheme 'S3'"),
        ("unix:///run/redis.sock", "the scheme 'unix'"),
        ("re dis://host", "something else"),
        ("://host", "something else"),
        ("file:", "the folder is missing"),
        ("file://", "the folder is missing"),
        ("file:///", "the folder is missing"),
        ("file:x", "relative path"),
        ("file:./x", "relative path"),
        ("file://rel/x", "only localhost"),
        ("file://./x", "only localhost"),
        ("file://~/x", "only localhost"),
        ("file://localhost:80/x", "only localhost"),
        ("file:///~/x", "write ~/folder"),
        ("file:///x?namespace=a", "%3F"),
        ("file:///x#1", "%23"),
        ("file:///100%", "a '%' in a name is %25"),
        ("file:///x%00", "%00"),
        ("file:///C:/x", "Windows"),
        ("C:\\x", "Windows"),
        ("C:/x", "Windows"),
        ("c:", "Windows"),
        (".\\x", "Windows"),
        ("\\\\host\\x", "Windows"),
        ('"redis://host:6379/0"', "quotation mark"),
        ("'./store'", "quotation mark"),
        ("", "the folder is missing"),
        ("  ", "the folder is missing"),
    ],
)
def test_what_looks_like_a_url_is_no_file_name(url: str, says: str, tmp_path: Path) -> None:
    """B24: refused with what was expected; nothing is made, and nothing that may be a password is repeated."""
    with pytest.raises(InvalidName, match="^store URL: ") as caught:
        open_store(url)

    assert says in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["dr-trainer fit none.csv", "dr-index list", "dr-service"])
def test_all_commands_refuse_alike(command: str, tmp_path: Path) -> None:
    """B24: by flag and by variable; one line, and no folder of that name."""
    for more, environment in ((["--store", "localhost:6379"], {}), ([], {"DR_STORE": "localhost:6379"})):
        done = subprocess.run(
            [BIN / command.split(maxsplit=1)[0], *command.split()[1:], *more],
            env=os.environ | environment, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

        assert done.returncode in {1, 2}
        assert "a host and port without a scheme (redis://)" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert list(tmp_path.iterdir()) == []

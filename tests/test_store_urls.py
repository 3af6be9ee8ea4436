"""Store URLs: which open a folder or a server, and which are refused; and stores that do not exist."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from index_store.__main__ import main as dr_index
from index_store.errors import InvalidName
from index_store.folder.store import FolderStore
from index_store.store import IndexStore, open_store
from service.http.app import create_app
from service.process.settings import Settings
from tests.planted import small_version
from tests.redis_servers import free_port
from tests.test_api import assert_problem
from trainer.__main__ import main as dr_trainer

BIN = Path(sys.executable).parent


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test in an empty folder, where anything made by mistake can be seen."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DR_STORE", raising=False)


def opened(url: str) -> str:
    """The folder of the store at `url`."""
    store = open_store(url)
    assert isinstance(store, FolderStore)
    return str(store.folder)


# -- what looks like a URL or host:port is never a file name --


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
    """File URLs are percent-decoded as in RFC 8089; blanks around a URL are not part of the name."""
    assert opened(url) == "/data/my store"


def test_only_file_urls_are_percent_decoded() -> None:
    """The decoded bytes may be UTF-8 or not; a plain path is taken as it is."""
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
    """Also a path with a colon, where it cannot be a host and port."""
    assert opened(path) == str(tmp_path / below)


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store replaces it itself, because no shell does so in DR_STORE."""
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
        ("re dis://host", "an invalid scheme"),
        ("://host", "an invalid scheme"),
        ("file:", "the folder is missing"),
        ("file://", "the folder is missing"),
        ("file:///", "the folder is missing"),
        ("file:x", "path of a file URL must be absolute"),
        ("file:./x", "path of a file URL must be absolute"),
        ("file://rel/x", "can only be localhost"),
        ("file://./x", "can only be localhost"),
        ("file://~/x", "can only be localhost"),
        ("file://localhost:80/x", "can only be localhost"),
        ("file:///~/x", "write ~/folder"),
        ("file:///x?namespace=a", "%3F"),
        ("file:///x#1", "%23"),
        ("file:///100%", "in a name, write '%' as %25"),
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
def test_a_path_that_looks_like_a_url_is_refused(url: str, says: str, tmp_path: Path) -> None:
    """The error says what was expected and repeats nothing that may be a password; no folder is made."""
    with pytest.raises(InvalidName, match=r"^store URL: ") as caught:
        open_store(url)

    assert says in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["dr-trainer fit none.csv", "dr-index list", "dr-service"])
def test_all_commands_refuse_a_host_and_port(command: str, tmp_path: Path) -> None:
    """Given by flag or by variable, it leads to one line on stderr, and no folder of that name is made."""
    for more, environment in ((["--store", "localhost:6379"], {}), ([], {"DR_STORE": "localhost:6379"})):
        done = subprocess.run(
            [BIN / command.split(maxsplit=1)[0], *command.split()[1:], *more],
            env=os.environ | environment, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

        assert done.returncode in {1, 2}
        assert "a host and port without a scheme (redis://)" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert list(tmp_path.iterdir()) == []


# -- a store that does not exist is not an empty one --


@pytest.mark.parametrize(
    "command",
    [
        "dr-index list",
        "dr-index list --json",
        "dr-index show v1-000000000000",
        "dr-index verify v1-000000000000",
        "dr-index activate v1-000000000000",
        "dr-index rollback",
        "dr-index prune --keep 3",
        "dr-trainer evaluate none.csv",
        "dr-trainer evaluate none.csv --version v1-000000000000",
    ],
)
def test_a_store_that_does_not_exist_is_reported(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line has the absolute path, and the status is 1; nothing is made. The same if the path is a file."""
    main, (_, *arguments) = (dr_index if command.startswith("dr-index") else dr_trainer), command.split()
    Path("file").touch()
    for name, says in (("stroe", "there is no such folder"), ("file", "not a folder")):
        assert main([*arguments, "--store", name]) == 1

        out, err = capsys.readouterr()
        assert out == ""
        assert f"{tmp_path / name}: {says}" in err
        assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_an_empty_store_is_no_error(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The list names the folder or server without versions; a folder with other files counts as empty, too."""
    Path("notes.txt").touch()
    for store, shown in ((".", str(tmp_path)), (url, "namespace ")):
        assert dr_index(["list", "--store", store]) == 0
        out = capsys.readouterr().out
        assert out.startswith("no versions in ")
        assert shown in out
        assert dr_index(["prune", "--keep", "1", "--store", store]) == 0
        assert capsys.readouterr().out == "nothing to delete\n"


def not_ready(store: IndexStore) -> str:
    """The reason that /readyz and /v1/retrieve give when a service of this store is not ready."""
    with TestClient(create_app(Settings.model_validate({"store": "x"}), store)) as client:
        answer = client.get("/readyz")
        assert_problem(answer, 503)
        assert client.post("/v1/retrieve", json={}).json()["detail"] == answer.json()["detail"]
        detail: str = answer.json()["detail"]
        return detail


def test_a_service_without_a_store_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line of the log has the absolute path; /readyz gives the reason without it."""
    detail = not_ready(open_store("stroe"))

    assert detail == "no version is loaded: the store's folder does not exist; see the log"
    (line,) = caplog.messages
    assert f"{tmp_path / 'stroe'}: there is no such folder" in line


def test_a_service_without_a_version_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The reason is that the store has no versions, or that none of them is current."""
    store = open_store(str(tmp_path))
    assert not_ready(store) == "no version is loaded: the store has no versions; publish one with dr-trainer fit"
    store.publish(small_version())
    assert "none of the store's versions is current; choose one with dr-index activate" in not_ready(store)

    assert [line.split(": ")[0] for line in caplog.messages] == [f"nothing to serve from {tmp_path}"] * 2


def test_a_service_whose_current_version_is_damaged_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Only the log names the version."""
    store = open_store(str(tmp_path))
    name = store.publish(small_version())
    store.activate(name)
    (tmp_path / "versions" / name / "path_ids.npy").unlink()

    assert not_ready(store) == "no version is loaded: the current version is damaged; see the log"
    assert f"{name}: path_ids.npy is missing" in caplog.text


def test_a_cache_that_cannot_be_written_is_reported(url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The message has DR_CACHE and the reason; the log has the path, too."""
    (tmp_path / "file").touch()
    store = open_store(url, cache="file/cache")
    store.activate(store.publish(small_version()))

    assert not_ready(store) == "no version is loaded: the cache folder (DR_CACHE) cannot be used: Not a directory"
    assert f"DR_CACHE) cannot be used: load: {tmp_path}/file/cache/" in caplog.text


def test_readyz_does_not_name_a_server_that_does_not_answer(caplog: pytest.LogCaptureFixture) -> None:
    """/readyz says that the store cannot be read; only the log says which store."""
    port = free_port()

    assert not_ready(open_store(f"redis://127.0.0.1:{port}")) == (
        "no version is loaded: the store cannot be read; see the log"
    )
    assert str(port) in caplog.text


# -- no home folder --


@pytest.mark.parametrize(("cache", "says"), [("~/cache", "HOME is not set"), ("redis://host", "found a server's URL")])
def test_a_cache_folder_is_looked_up_when_needed(
    cache: str, says: str, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """A folder store needs no cache folder; for Redis, a wrong one gives an error that names DR_CACHE."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)  # an id that no user has

    open_store("/data/store", cache=cache)
    with pytest.raises(InvalidName, match=f"DR_CACHE.*{says}"):
        open_store(url, cache=cache)

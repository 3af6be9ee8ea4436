"""How the URL of a Redis store is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from index_store.address import Address
from index_store.errors import InvalidName
from index_store.store import open_store


def test_a_full_url(tmp_path: Path) -> None:
    """Every part of the URL is read, percent-decoded."""
    ca = tmp_path / "ca.pem"
    ca.touch()
    address = Address.parse(f"rediss://me:p%40ss%2F@host:7000/3?namespace=shop.eu&ssl_ca_certs={ca}")

    assert address == Address("host", 7000, 3, "me", "p@ss/", "shop.eu", False, True, str(ca))


def test_defaults() -> None:
    """A URL with a host alone means port 6379, database 0, namespace dr, and no user or password."""
    assert Address.parse("redis://host") == Address("host")
    assert Address.parse("redis+cluster://host:7000/") == Address("host", 7000, cluster=True)


def test_a_password_from_elsewhere() -> None:
    """A password that is given beside the URL counts if the URL has none."""
    assert Address.parse("redis://me@host", "secret").password == "secret"
    assert Address.parse("redis://me:own@host", "secret").password == "own"
    assert Address.parse("redis://host", "").password is None


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://", "host is missing"),
        ("redis://user:hunter2@", "host is missing"),
        ("redis://user:hunter2@host:port/0", "port"),
        ("redis://user:hunter2@host:99999", "port"),
        ("redis://user:hunter2@host/zero", "database must be a number"),
        ("redis://user:hunter2@host/-1", "database must be a number"),
        ("redis://user:hun#ter2@host/0", "percent-encode"),
        ("redis://user:hunter2@host?namespace=", "namespace"),
        ("redis://user:hunter2@host?namespace=a:b", "namespace"),
        ("redis://user:hunter2@host?namespace={a}", "namespace"),
        ("redis://user:hunter2@host?namespace=a*", "namespace"),
        ("redis://user:hunter2@host?namespace=%0a", "namespace"),
        ("redis://user:hunter2@host?timeout=3", "an option other than namespace"),
        ("redis://user:12?hunter2@host:6379/0", "percent-encode"),
        ("redis://:?hunter2@host/0", "percent-encode"),
        ("rediss://user:hunter2@host?ssl_ca_certs=/not/there", "'/not/there' cannot be read: No such file"),
        ("redis://user:hunter2@host?ssl_ca_certs=/x", "rediss://"),
        ("redis+cluster://user:hunter2@host/1", "has only database 0"),
    ],
)
def test_a_wrong_url_is_refused_with_the_reason(url: str, says: str) -> None:
    """The message names what to change, and never has the password."""
    with pytest.raises(InvalidName, match=says) as caught:
        open_store(url)

    assert "hunter2" not in str(caught.value)


def test_nothing_shows_the_password() -> None:
    """An address or a store shows its host when it is printed, but not its password."""
    url = "redis://user:hunter2@host:7000/1"
    for text in (repr(Address.parse(url)), str(Address.parse(url)), repr(open_store(url))):
        assert "hunter2" not in text
        assert "host" in text

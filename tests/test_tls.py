"""Redis over TLS: each fault gives an error that says what to change; and certificates of clients."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from index_store.errors import IndexStoreError, InvalidName, StoreMisconfigured, StoreUnavailable
from index_store.store import open_store
from tests.planted import small_version
from tests.redis_servers import RedisServer, free_port, program, running

HERE = "subjectAltName=IP:127.0.0.1"


def openssl(folder: Path, *arguments: str) -> None:
    """Run openssl in the folder."""
    subprocess.run([program("openssl"), *arguments], check=True, capture_output=True, cwd=folder)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with NAME.pem and NAME.key: an authority, certificates that it signed, and a self-signed one."""
    folder = tmp_path_factory.mktemp("certificates")
    new = ["-newkey", "rsa:2048", "-nodes"]
    for name in ("authority", "itself"):
        names = ["-subj", f"/CN={name}", "-addext", HERE, "-keyout", f"{name}.key", "-out", f"{name}.pem"]
        openssl(folder, "req", "-x509", "-days", "1", *new, *names)
    for name, described, days in (
        ("good", HERE, "1"),
        ("elsewhere", "subjectAltName=DNS:other.example,IP:10.0.0.1", "1"),
        ("expired", HERE, "-1"),
        ("client", "subjectAltName=DNS:client", "1"),
    ):
        openssl(folder, "req", *new, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        (folder / "names").write_text(described)
        signed = ["-CA", "authority.pem", "-CAkey", "authority.key", "-CAcreateserial", "-extfile", "names"]
        openssl(folder, "x509", "-req", "-in", f"{name}.csr", *signed, "-days", days, "-out", f"{name}.pem")
    (folder / "both.pem").write_text((folder / "client.pem").read_text() + (folder / "client.key").read_text())
    openssl(folder, "rsa", "-aes256", "-passout", "pass:secret", "-in", "client.key", "-out", "locked.key")
    return folder


@contextlib.contextmanager
def server(folder: Path, certificates: Path, name: str, *more: str) -> Iterator[str]:
    """A server with the certificate `name`; yields host and port."""
    port = free_port()
    files = ["--tls-cert-file", f"{certificates}/{name}.pem", "--tls-key-file", f"{certificates}/{name}.key"]
    files += ["--tls-ca-cert-file", f"{certificates}/authority.pem", "--tls-port", str(port)]
    with running(RedisServer(folder / f"redis-{name}", *files, *more, binary=program("redis-server"))):
        yield f"127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("name", "trusted", "says"),
    [
        ("elsewhere", "authority", "another host name .*127.0.0.1"),
        ("expired", "authority", "has expired"),
        ("itself", "authority", "not from an authority in ssl_ca_certs"),
        ("good", "itself", "not from an authority in ssl_ca_certs"),
        ("good", None, "is not trusted .*ssl_ca_certs=FILE"),
        ("itself", None, "is not trusted .*ssl_ca_certs=FILE"),
    ],
)
@pytest.mark.parametrize("scheme", ["rediss", "rediss+cluster"])
def test_the_fault_of_a_certificate_is_reported(
    tmp_path: Path, certificates: Path, scheme: str, name: str, trusted: str | None, says: str
) -> None:
    """Another host name, an expired certificate and another authority give different errors."""
    with server(tmp_path, certificates, name, "--tls-auth-clients", "no") as place:
        option = f"?ssl_ca_certs={certificates}/{trusted}.pem" if trusted else ""
        with pytest.raises(StoreMisconfigured, match=says) as caught:
            open_store(f"{scheme}://:hunter2@{place}{option}").current()

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("versions", ["TLSv1.2", "TLSv1.3"])
def test_a_server_may_require_a_client_certificate(tmp_path: Path, certificates: Path, versions: str) -> None:
    """As Redis does by default. A missing or wrong one is reported by the error; with the right one the store works."""
    with server(tmp_path, certificates, "good", "--tls-protocols", versions) as place:
        url = f"rediss://{place}?ssl_ca_certs={certificates}/authority.pem"
        # The client may see the refusal first, or the end of the connection.
        with pytest.raises(IndexStoreError, match=r"client's certificate.*\?ssl_certfile=FILE&ssl_keyfile=FILE"):
            open_store(url).current()

        for files in ("ssl_certfile={0}/client.pem&ssl_keyfile={0}/client.key", "ssl_certfile={0}/both.pem"):
            store = open_store(f"{url}&{files.format(certificates)}")
            store.load(store.publish(small_version()))

        for files, says in (
            ("ssl_certfile={0}/itself.pem&ssl_keyfile={0}/itself.key", "of ssl_certfile"),
            ("ssl_certfile={0}/client.pem&ssl_keyfile={0}/good.key", "the key of that certificate"),
            ("ssl_certfile={0}/client.pem&ssl_keyfile={0}/locked.key", "without a password"),
            ("ssl_certfile={0}/names", "expected PEM"),
        ):
            with pytest.raises(IndexStoreError, match=says):
                open_store(f"{url}&{files.format(certificates)}").current()


def test_tls_files_are_checked_when_the_url_is_read(certificates: Path) -> None:
    """Refused are a file that does not exist, a folder, a key without a certificate, and files without TLS."""
    for url, says in (
        (f"rediss://host?ssl_certfile={certificates}/none.pem", "none.pem' cannot be read: No such file"),
        (
            f"rediss://host?ssl_certfile={certificates}/client.pem&ssl_keyfile=/none",
            "ssl_keyfile: '/none' cannot be read",
        ),
        (f"rediss://host?ssl_ca_certs={certificates}", "cannot be read: Is a directory"),
        (f"rediss://host?ssl_keyfile={certificates}/client.key", "ssl_keyfile without ssl_certfile"),
        (f"redis://host?ssl_certfile={certificates}/client.pem", "ssl_certfile needs TLS"),
    ):
        with pytest.raises(InvalidName, match=says):
            open_store(url)


def test_tls_on_one_side_only_is_reported(tmp_path: Path, certificates: Path) -> None:
    """Without TLS the error asks if the server requires it; with TLS it says that the server does not speak it."""
    with (
        server(tmp_path, certificates, "good", "--tls-auth-clients", "no") as place,
        pytest.raises(StoreUnavailable, match="does it require TLS"),
    ):
        open_store(f"redis://{place}").current()

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            for _ in range(4):  # the client tries again
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"-ERR Protocol error\r\n")

        thread = threading.Thread(target=refuse, daemon=True)
        thread.start()
        with pytest.raises(StoreMisconfigured, match="does not speak TLS on this port"):
            open_store(f"rediss://127.0.0.1:{listener.getsockname()[1]}").current()


def test_a_server_that_hangs_up_during_the_handshake(certificates: Path) -> None:
    """It may require a certificate, not speak TLS, or be going down: the error gives all three as reasons."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            with suppress(OSError):  # the listener is closed
                while True:
                    connection, _ = listener.accept()
                    connection.recv(65536)
                    connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        with pytest.raises(StoreUnavailable, match=r"no answer .*speak TLS on this port.*client's certificate"):
            open_store(f"rediss://127.0.0.1:{listener.getsockname()[1]}").current()

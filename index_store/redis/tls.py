"""What went wrong with TLS, by OpenSSL's codes, and what to change."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

from index_store.address import Address
from index_store.errors import StoreMisconfigured

# Of X509_verify_cert.
NOT_TRUSTED = {2, 18, 19, 20, 21}  # no trusted root, or self-signed
EXPIRED, NOT_YET_VALID = 10, 9
OTHER_NAME = {62, 64}  # host name, IP address

NO_TLS = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST", "UNKNOWN_PROTOCOL"}
NOTHING_IN_COMMON = {"TLSV1_ALERT_PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "NO_SHARED_CIPHER", "NO_CIPHERS_AVAILABLE"}
PEM = "PEM lib"  # what Python says, without a code, of a file that OpenSSL cannot read
CLOSED = ssl.SSLEOFError | ConnectionResetError | BrokenPipeError | ConnectionAbortedError
ASK_FOR_ONE = "give one by ?ssl_certfile=FILE&ssl_keyfile=FILE"


def translate(error: BaseException, address: Address) -> StoreMisconfigured | None:
    """The TLS error that `error` comes from, as ours; None if there is none that says what is wrong."""
    found = next((link for link in _chain(error) if isinstance(link, ssl.SSLError)), None)
    if found is None or isinstance(found, ssl.SSLEOFError):
        return None
    if isinstance(found, ssl.SSLCertVerificationError):
        what = _of_certificate(found, address)
    else:
        what = _of_handshake(found.reason or PEM, found.library, address)
    return StoreMisconfigured(f"{address}: {what}")


def question(error: BaseException, address: Address) -> str:
    """What to check when a connection failed without a reason."""
    links = list(_chain(error))
    closed = "closed" in str(error) or any(isinstance(link, CLOSED) for link in links)
    if address.tls and closed:
        # Of TLS 1.3 a server's refusal may be lost behind the end of the connection.
        certificate = (
            "take the certificate of ssl_certfile"
            if address.cert_file
            else f"want a client's certificate ({ASK_FOR_ONE})"
        )
        return f"is it up, does it speak TLS on this port, and does it {certificate}?"
    if address.tls:
        return "is it up, the URL right, and does it speak TLS on this port?"
    return "is it up, and does it want TLS (rediss://)?" if closed else "is it up and the URL right?"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _of_certificate(error: ssl.SSLCertVerificationError, address: Address) -> str:
    code, says = error.verify_code, error.verify_message
    if code in OTHER_NAME:
        return f"the certificate is for another name ({says}); name the server as its certificate does"
    if code in NOT_TRUSTED and address.ca_file:
        return f"the certificate is not from the authority in ssl_ca_certs ({says}); name the right one"
    if code in NOT_TRUSTED:
        return f"the certificate is not trusted ({says}); name its authority by ?ssl_ca_certs=FILE"
    if code == EXPIRED:
        return "the certificate has expired; renew it, or set this host's clock"
    if code == NOT_YET_VALID:
        return "the certificate is not valid yet; wait, or set this host's clock"
    return f"the certificate is refused: {says}"


def _of_handshake(reason: str, library: str | None, address: Address) -> str:  # noqa: PLR0911 -- a table in prose
    if reason in NO_TLS:
        return "the server does not speak TLS on this port; correct the port, or write redis:// for rediss://"
    if reason in NOTHING_IN_COMMON:
        return f"no version or cipher of TLS in common with the server ({reason})"
    if library != "SSL" or reason == PEM:
        return (
            f"ssl_ca_certs, ssl_certfile or ssl_keyfile cannot be used ({reason}); expected PEM, and the key that the "
            "certificate is for, without a password"
        )
    if "ALERT" in reason and address.cert_file:
        return f"the server refuses the certificate of ssl_certfile ({reason})"
    if reason == "TLSV13_ALERT_CERTIFICATE_REQUIRED":
        return f"the server wants a client's certificate; {ASK_FOR_ONE}"
    if "ALERT" in reason:
        return f"the server ended the TLS handshake ({reason}); if it wants a client's certificate, {ASK_FOR_ONE}"
    return f"TLS failed ({reason})"

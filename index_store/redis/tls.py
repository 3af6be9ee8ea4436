"""Messages for TLS errors, chosen by OpenSSL's codes. A message names the fault and the remedy."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

from index_store.address import Address
from index_store.errors import StoreMisconfigured

# Result codes of OpenSSL's X509_verify_cert.
NOT_TRUSTED = {2, 18, 19, 20, 21}  # no trusted root, or self-signed
EXPIRED, NOT_YET_VALID = 10, 9
OTHER_NAME = {62, 64}  # the certificate has a different host name, a different IP address

NO_TLS = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST", "UNKNOWN_PROTOCOL"}
NOTHING_IN_COMMON = {"TLSV1_ALERT_PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "NO_SHARED_CIPHER", "NO_CIPHERS_AVAILABLE"}
PEM = "PEM lib"  # Python's reason if OpenSSL cannot read a file; there is no code for this error
CLOSED = ssl.SSLEOFError | ConnectionResetError | BrokenPipeError | ConnectionAbortedError
GIVE_CERTIFICATE = "give one with ?ssl_certfile=FILE&ssl_keyfile=FILE"


def translate(error: BaseException, address: Address) -> StoreMisconfigured | None:
    """Translate the TLS error that caused `error`. None if no TLS error did, or if the TLS error has no reason."""
    cause = next((link for link in _chain(error) if isinstance(link, ssl.SSLError)), None)
    if cause is None or isinstance(cause, ssl.SSLEOFError):
        return None
    if isinstance(cause, ssl.SSLCertVerificationError):
        message = _of_certificate(cause, address)
    else:
        message = _of_handshake(cause.reason or PEM, cause.library, address)
    return StoreMisconfigured(f"{address}: {message}")


def question(error: BaseException, address: Address) -> str:
    """The question that ends the message for a failed connection whose error does not give the cause: what the user
    should check.
    """
    links = list(_chain(error))
    closed = "closed" in str(error) or any(isinstance(link, CLOSED) for link in links)
    if address.tls and closed:
        # With TLS 1.3, the connection may close before the server's refusal arrives.
        certificate = (
            "accept the certificate of ssl_certfile"
            if address.cert_file
            else f"require a client's certificate ({GIVE_CERTIFICATE})"
        )
        return f"is it up, does it speak TLS on this port, and does it {certificate}?"
    if address.tls:
        return "is it up, is the URL right, and does it speak TLS on this port?"
    return "is it up, and does it require TLS (rediss://)?" if closed else "is it up, and is the URL right?"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _of_certificate(error: ssl.SSLCertVerificationError, address: Address) -> str:
    code, reason = error.verify_code, error.verify_message
    if code in OTHER_NAME:
        return f"the certificate is for another host name ({reason}); use that name in the URL"
    if code in NOT_TRUSTED and address.ca_file:
        return f"the certificate is not from an authority in ssl_ca_certs ({reason}); name the right file"
    if code in NOT_TRUSTED:
        return f"the certificate is not trusted ({reason}); name its authority with ?ssl_ca_certs=FILE"
    if code == EXPIRED:
        return "the certificate has expired; renew it, or correct this host's clock"
    if code == NOT_YET_VALID:
        return "the certificate is not valid yet; wait, or correct this host's clock"
    return f"the certificate is refused: {reason}"


def _of_handshake(reason: str, library: str | None, address: Address) -> str:  # noqa: PLR0911 -- a table in prose
    if reason in NO_TLS:
        return "the server does not speak TLS on this port; correct the port, or write redis:// instead of rediss://"
    if reason in NOTHING_IN_COMMON:
        return f"this host and the server have no TLS version or cipher in common ({reason})"
    if library != "SSL" or reason == PEM:
        return (
            f"ssl_ca_certs, ssl_certfile or ssl_keyfile cannot be used ({reason}); expected PEM files, and the "
            "key of that certificate without a password"
        )
    if "ALERT" in reason and address.cert_file:
        return f"the server refuses the certificate of ssl_certfile ({reason})"
    if reason == "TLSV13_ALERT_CERTIFICATE_REQUIRED":
        return f"the server requires a client's certificate; {GIVE_CERTIFICATE}"
    if "ALERT" in reason:
        return (
            f"the server ended the TLS handshake ({reason}); if it requires a client's certificate, {GIVE_CERTIFICATE}"
        )
    return f"TLS failed ({reason})"

"""Why a dial failed, in one line for whoever stands before the device: what is wrong, and what to do.

gRPC says little about a handshake that failed. So the handshake is done once more with Python's own TLS, which names the fault.
"""

from __future__ import annotations

import socket
import ssl
import time
from dataclasses import dataclass
from typing import Any

from profiler.profile import BadInput
from split.certificates import Credentials

_DIAGNOSIS_S = 5.0
_TIMES = 3
_AGAIN_S = 0.5
_NOT_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG")
_END_OF_FILE = "UNEXPECTED_EOF_WHILE_READING"

_VERIFY = {
    # OpenSSL's X509_V_ERR_*
    9: "its certificate is not valid yet: set this machine's clock",
    10: "its certificate has expired: make a new one there with 'card-train certificates'",
    62: "its certificate does not bear this host name: dial a name that it bears, or make it one with this name",
    64: "its certificate does not bear this address: dial a name that it bears, or make it one with this address",
}
_UNKNOWN = "its certificate is not made by this device's authority: copy authority.pem and this device's files from the server's folder"


def explain(
    address: str, host: str, port: int, credentials: Credentials | None, code: Any, said: str, timeout_s: float
) -> Exception:
    """The error to raise. ``code`` is gRPC's status, None where no answer came in time."""
    from split.transport import Gone

    status = "" if code is None else code.name
    if status in ("PERMISSION_DENIED", "UNAUTHENTICATED"):
        return BadInput(f"{address}: not let in: {said}")
    if status == "UNIMPLEMENTED":
        return BadInput(f"{address}: something else than a card-train server listens there")
    if status == "RESOURCE_EXHAUSTED":
        return Gone(f"{address}: not let in for now: {said or 'the server is full'}")
    if credentials is not None:
        fault = _handshake_fault(host, port, credentials, min(timeout_s, _DIAGNOSIS_S))
        if fault is not None:
            return BadInput(f"{address}: {fault}")
    if code is None:
        return Gone(
            f"{address}: no answer within {timeout_s:g} s; is the server running there, and reachable from here?"
        )
    if _listens(host, port, min(timeout_s, _DIAGNOSIS_S)):
        # Or a server without certificates that has begun to listen just now.
        if credentials is None and _speaks_tls(host, port, min(timeout_s, _DIAGNOSIS_S)):
            return BadInput(f"{address}: does not answer without certificates; give this device its own")
        return Gone(f"{address}: the connection broke: {said}")
    return Gone(
        f"{address}: nobody answers ({_short(said)}); is the server running there, is the address right, does a firewall let it through?"
    )


def _handshake_fault(host: str, port: int, credentials: Credentials, timeout_s: float) -> str | None:
    """What a TLS handshake with the server fails of; None where it does not, or where there is nobody.

    A server that hangs up without a word may have been killed at that moment. So it has to do so every time.
    """
    for left in reversed(range(_TIMES)):
        fault = _one_handshake(host, port, credentials, timeout_s)
        if not isinstance(fault, _HungUp):
            return fault
        if not left:
            return _alert(fault.reason)
        time.sleep(_AGAIN_S)
    return None


@dataclass(frozen=True)
class _HungUp:
    """The other side closed the connection in the middle of the handshake, or right after it."""

    reason: str = ""


def _one_handshake(host: str, port: int, credentials: Credentials, timeout_s: float) -> str | _HungUp | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(credentials.authority)
        context.load_cert_chain(credentials.certificate, credentials.key)
        context.set_alpn_protocols(["h2"])
        with socket.create_connection((host, port), timeout_s) as plain:
            try:
                with context.wrap_socket(plain, server_hostname=host) as secured:
                    # With TLS 1.3 the server judges our certificate after our handshake: its verdict is the first thing to read.
                    # A server that lets us in speaks first.
                    return None if secured.recv(1) else _HungUp()
            except ssl.SSLCertVerificationError as error:
                return "the server is not who it should be: " + _VERIFY.get(error.verify_code, _UNKNOWN)
            except ssl.SSLError as error:
                reason = error.reason or ""
                return _HungUp(reason) if reason in ("", _END_OF_FILE) else _alert(reason)
            except (ConnectionResetError, BrokenPipeError):
                return _HungUp()
            except (TimeoutError, OSError):
                return None
    except (OSError, ValueError):
        return None


def _alert(reason: str) -> str:
    if reason in (*_NOT_TLS, _END_OF_FILE):
        return "does not speak TLS: is that a server without certificates, or something else?"
    if "EXPIRED" in reason:
        return (
            "the server says that this device's certificate has expired: make a new one with 'card-train certificates'"
        )
    return (
        "the server does not take this device's certificate: it must be made by the server's authority, for a device, and be "
        "valid by the server's clock (copy this device's files from the folder where the server's were made)"
    )


def _speaks_tls(host: str, port: int, timeout_s: float) -> bool:
    """Whether a server with certificates is there: it answers a handshake with TLS, if only to refuse it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((host, port), timeout_s) as plain, context.wrap_socket(plain):
            return True
    except ssl.SSLError as error:
        return (error.reason or _END_OF_FILE) not in (*_NOT_TLS, _END_OF_FILE)
    except (OSError, ValueError):
        return False


def _listens(host: str, port: int, timeout_s: float) -> bool:
    try:
        with socket.create_connection((host, port), timeout_s):
            return True
    except OSError:
        return False


def _short(said: str) -> str:
    for known in (
        "Connection refused",
        "No route to host",
        "Network is unreachable",
        "DNS resolution failed",
        "timed out",
    ):
        if known.lower() in said.lower():
            return known
    return said[:120] or "no reason given"

"""Certificates: an authority of one's own, and under it one certificate for the server and one for each device.

``make`` writes into one folder::

    authority.pem authority.key     the authority; its key stays where it was made, best off the network
    server.pem server.key           for the server: bears the names and addresses under which devices dial it
    NAME.pem NAME.key               for each device: bears its name
    allowed.txt                     the names that the server lets in, one a line; taking a name out shuts the device out

A device gets authority.pem and its own two files; the server authority.pem, its own two, and allowed.txt. Keys are ECDSA P-256 and
readable by their owner alone.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiler.profile import BadInput
from profiler.store import write_atomically

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

AUTHORITY_DAYS = 3650
CERTIFICATE_DAYS = 825
AUTHORITY, SERVER = "authority", "server"
ALLOWED = "allowed.txt"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HOST = re.compile(
    r"(?=.{1,253}$)(\*\.)?([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
)
_EARLY = datetime.timedelta(days=1)  # a board without a battery may start with yesterday's clock
_MAX_PEM_BYTES = 64 * 1024


@dataclass(frozen=True)
class Credentials:
    """The three files of one side of the link. ``name`` is what its certificate bears."""

    name: str
    authority: Path
    certificate: Path
    key: Path

    @staticmethod
    def of(folder: Path, name: str) -> Credentials:
        """Those of ``name`` in ``folder``, checked: they are there, belong together, and are valid today. Raises BadInput."""
        found = Credentials(name, folder / f"{AUTHORITY}.pem", folder / f"{name}.pem", folder / f"{name}.key")
        found.check()
        return found

    def check(self) -> None:
        """Raises BadInput where one is missing, not readable, not of this authority, or not valid today."""
        authority, certificate = _certificate(self.authority), _certificate(self.certificate)
        key = _key(self.key)
        if key.public_key() != certificate.public_key():
            raise BadInput(f"{self.key}: not the key of {self.certificate}")
        try:
            certificate.verify_directly_issued_by(authority)
        except Exception:  # a signature that does not fit, another kind of key, another issuer's name
            raise BadInput(
                f"{self.certificate}: not made by the authority of {self.authority}; copy both from the same folder"
            ) from None
        for path, each in ((self.authority, authority), (self.certificate, certificate)):
            if not _begin(each) <= _now() <= _end(each):
                raise BadInput(
                    f"{path}: valid from {_begin(each):%Y-%m-%d} to {_end(each):%Y-%m-%d}, and today is {_now():%Y-%m-%d}; "
                    "make a new one with 'card-train certificates', or set this machine's clock"
                )
        if common_name(certificate) != self.name:
            raise BadInput(f"{self.certificate}: made for {common_name(certificate)!r}, expected {self.name!r}")


@dataclass(frozen=True)
class Made:
    """What ``make`` wrote, and what it found there and left alone."""

    written: list[Path]
    kept: list[Path]


def make(
    folder: Path,
    server_names: Sequence[str],
    device_names: Sequence[str],
    days: int = CERTIFICATE_DAYS,
) -> Made:
    """Make what is missing in ``folder``: the authority once, the server's certificate for ``server_names`` (host names and IP addresses
    under which devices dial it; none: no server certificate), and one for each device. Devices can be added later.

    Nothing that is there is overwritten: to make a certificate anew, remove its two files first. Where devices are added the server's certificate
    is kept if it is for ``server_names``. Names of devices are added to allowed.txt. Raises BadInput for names that are none, a certificate that
    is already there, an authority without its key.
    """
    _check_names(server_names, device_names, days)
    written: list[Path] = []
    kept: list[Path] = []
    if server_names and device_names and (folder / f"{SERVER}.pem").exists():
        kept += _kept_server(folder, server_names)
    wanted = ([SERVER] if server_names and not kept else []) + list(device_names)
    for name in wanted:
        for path in (folder / f"{name}.pem", folder / f"{name}.key"):
            if path.exists():
                raise BadInput(
                    f"{path}: already there; to make a new one remove {name}.pem and {name}.key (the old one stays valid until it expires)"
                )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{folder}: cannot be made: {error.strerror or error}") from None
    certificate_path, key_path = folder / f"{AUTHORITY}.pem", folder / f"{AUTHORITY}.key"
    if certificate_path.exists() or key_path.exists():
        authority, authority_key = _certificate(certificate_path), _key(key_path)
        if authority.public_key() != authority_key.public_key():
            raise BadInput(f"{key_path}: not the key of {certificate_path}")
        kept[:0] = [certificate_path, key_path]
    else:
        authority_key = _new_key()
        authority = _signed("card-train authority", authority_key, None, authority_key, AUTHORITY_DAYS, [], None)
        written += _write(folder, AUTHORITY, authority, authority_key)
    for name in wanted:
        key = _new_key()
        hosts = list(server_names) if name == SERVER else []
        usage = "server" if name == SERVER else "device"
        written += _write(folder, name, _signed(name, key, authority, authority_key, days, hosts, usage), key)
    if device_names or not (folder / ALLOWED).exists():
        _allow(folder / ALLOWED, device_names)
        written.append(folder / ALLOWED)
    return Made(written, kept)


def read_allowed(path: Path) -> frozenset[str]:
    """The names of an allow-list: one a line, "#" begins a comment. Raises BadInput naming the line."""
    try:
        with path.open("rb") as file:
            raw = file.read(1 << 20)
        lines = raw.decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    names = set()
    for number, line in enumerate(lines, 1):
        name = line.split("#", 1)[0].strip()
        if name and not _NAME.fullmatch(name):
            raise BadInput(f"{path}: line {number}: {name[:60]!r}, expected the name of a device")
        if name:
            names.add(name)
    return frozenset(names)


def common_name(certificate: x509.Certificate) -> str:
    from cryptography.x509.oid import NameOID

    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def _check_names(server_names: Sequence[str], device_names: Sequence[str], days: int) -> None:
    for host in server_names:
        if _address(host) is None and not _HOST.fullmatch(host):
            raise BadInput(f"server name {host[:60]!r}: expected a host name or an IP address, without a port")
    for name in device_names:
        if not _NAME.fullmatch(name) or name in (AUTHORITY, SERVER):
            raise BadInput(
                f"device name {name[:60]!r}: expected letters, digits, '.', '_', '-', at most 64, not {AUTHORITY!r} or {SERVER!r}"
            )
    if len(set(device_names)) < len(device_names):
        raise BadInput("device names: one stands there twice")
    if not server_names and not device_names:
        raise BadInput("certificates: expected names of the server, of devices, or both")
    if not 1 <= days <= AUTHORITY_DAYS:
        raise BadInput(f"days of validity: {days}, expected 1 to {AUTHORITY_DAYS}")


def _kept_server(folder: Path, server_names: Sequence[str]) -> list[Path]:
    """The two files of the server, which stay as they are. Raises BadInput where they are not for ``server_names``, or no good any more."""
    from cryptography import x509

    found = Credentials.of(folder, SERVER)
    try:
        names = _certificate(found.certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = [str(each.value) for each in names]
    except x509.ExtensionNotFound:
        hosts = []
    if set(hosts) != {str(_address(host) or host) for host in server_names}:
        raise BadInput(
            f"{found.certificate}: already there, for {','.join(hosts) or 'no names'}; leave out --server to keep it and add devices, or remove "
            f"{SERVER}.pem and {SERVER}.key to make a new one (the old one stays valid until it expires)"
        )
    return [found.certificate, found.key]


def _allow(path: Path, names: Sequence[str]) -> None:
    """Add names to the list; what stands there, comments too, stays."""
    if path.exists():
        before = read_allowed(path)
        text = path.read_text()
        text += "" if text.endswith("\n") or not text else "\n"
    else:
        before, text = (
            frozenset(),
            "# Devices that the server lets in, one a line. Take a name out to shut a device out.\n",
        )
    write_atomically(path, (text + "".join(f"{name}\n" for name in names if name not in before)).encode())


def _write(folder: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> list[Path]:
    from cryptography.hazmat.primitives import serialization

    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _write_private(folder / f"{name}.key", pem)
    write_atomically(folder / f"{name}.pem", certificate.public_bytes(serialization.Encoding.PEM))
    return [folder / f"{name}.pem", folder / f"{name}.key"]


def _write_private(path: Path, data: bytes) -> None:
    """Write a file that was never readable by others, not even for a moment."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise BadInput(f"{path}: cannot be written: {error.strerror or error}") from None


def _new_key() -> ec.EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _signed(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
    days: int,
    hosts: list[str],
    usage: str | None,
) -> x509.Certificate:
    """A certificate for ``key``: of an authority (no issuer), of a server or of a device. One cannot stand in for the other."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    of_authority = issuer is None
    end = _now() + datetime.timedelta(days=days)
    if issuer is not None:
        end = min(end, _end(issuer))
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_now() - _EARLY)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=of_authority, path_length=0 if of_authority else None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not of_authority,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=of_authority,
                crl_sign=of_authority,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )
    if usage is not None:
        role = ExtendedKeyUsageOID.SERVER_AUTH if usage == "server" else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = builder.add_extension(x509.ExtendedKeyUsage([role]), critical=False)
        names: list[Any] = []
        for host in hosts or [name]:
            address = _address(host)
            names.append(x509.DNSName(host) if address is None else x509.IPAddress(address))
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _certificate(path: Path) -> x509.Certificate:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(_pem(path, "a certificate"))
    except ValueError:
        raise BadInput(f"{path}: not a certificate in PEM") from None


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key: Any = load_pem_private_key(_pem(path, "a key"), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise BadInput(f"{path}: not a private key in PEM without a password") from None
    return key


def _pem(path: Path, expected: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_PEM_BYTES + 1)
    except OSError as error:
        raise BadInput(
            f"{path}: cannot be read: {error.strerror or error}; expected {expected} made by 'card-train certificates'"
        ) from None
    if len(data) > _MAX_PEM_BYTES:
        raise BadInput(f"{path}: more than {_MAX_PEM_BYTES} bytes, expected {expected}")
    return data


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


def _begin(certificate: x509.Certificate) -> datetime.datetime:
    return certificate.not_valid_before_utc


def _end(certificate: x509.Certificate) -> datetime.datetime:
    return certificate.not_valid_after_utc

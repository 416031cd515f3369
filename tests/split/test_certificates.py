"""The authority and what it signs: who may be what, for how long, and what is never overwritten."""

from __future__ import annotations

import datetime
import ipaddress
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from profiler.profile import BadInput
from split.certificates import Credentials, make, read_allowed


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_what_is_made_is_what_each_side_needs(tmp_path: Path) -> None:
    made = make(tmp_path, ["server.example", "10.0.0.5", "fe80::1"], ["jetson-1", "jetson-2"])
    names = {path.name for path in made.written}
    assert names == {p.name for p in tmp_path.iterdir()}
    assert names == {
        f"{name}.{end}" for name in ("authority", "server", "jetson-1", "jetson-2") for end in ("pem", "key")
    } | {"allowed.txt"}
    assert read_allowed(tmp_path / "allowed.txt") == {"jetson-1", "jetson-2"}
    for path in tmp_path.glob("*.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    server = certificate(tmp_path / "server.pem")
    hosts = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert hosts.get_values_for_type(x509.DNSName) == ["server.example"]
    assert hosts.get_values_for_type(x509.IPAddress) == [
        ipaddress.ip_address("10.0.0.5"),
        ipaddress.ip_address("fe80::1"),
    ]
    usages = {
        name: list(
            certificate(tmp_path / f"{name}.pem").extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        )
        for name in ("server", "jetson-1")
    }
    assert usages == {"server": [ExtendedKeyUsageOID.SERVER_AUTH], "jetson-1": [ExtendedKeyUsageOID.CLIENT_AUTH]}
    for name in ("server", "jetson-1"):
        assert isinstance(certificate(tmp_path / f"{name}.pem").public_key(), ec.EllipticCurvePublicKey)
        assert Credentials.of(tmp_path, name).name == name
        assert (
            not certificate(tmp_path / f"{name}.pem").extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        )


def test_another_verifier_takes_them_too(tmp_path: Path) -> None:
    """By cryptography's own path validation, which follows the web's rules."""
    make(tmp_path, ["server.example", "10.0.0.5"], ["jetson-1"])
    authority, server = certificate(tmp_path / "authority.pem"), certificate(tmp_path / "server.pem")
    builder = PolicyBuilder().store(Store([authority]))
    builder.build_server_verifier(x509.DNSName("server.example")).verify(server, [])
    builder.build_server_verifier(x509.IPAddress(ipaddress.ip_address("10.0.0.5"))).verify(server, [])
    builder.build_client_verifier().verify(certificate(tmp_path / "jetson-1.pem"), [])
    with pytest.raises(VerificationError):
        builder.build_server_verifier(x509.DNSName("other.example")).verify(server, [])
    with pytest.raises(VerificationError):
        builder.build_client_verifier().verify(server, [])


def test_devices_are_added_later_and_nothing_else_changes(tmp_path: Path) -> None:
    make(tmp_path, ["localhost"], ["one"])
    (tmp_path / "allowed.txt").write_text("# the lab\none  # by the window\n")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "allowed.txt"}
    made = make(tmp_path, [], ["two"])
    assert {path.name for path in made.written} == {"two.pem", "two.key", "allowed.txt"}
    assert {path.name for path in made.kept} == {"authority.pem", "authority.key"}
    assert before.items() <= {path.name: path.read_bytes() for path in tmp_path.iterdir()}.items()
    assert (tmp_path / "allowed.txt").read_text() == "# the lab\none  # by the window\ntwo\n"
    assert Credentials.of(tmp_path, "two").name == "two"


@pytest.mark.parametrize(
    "again", [["10.0.0.5", "fe80::1", "server.example"], ["server.example", "fe80:0::1", "10.0.0.5"]]
)
def test_a_device_is_added_with_the_servers_names_again_and_the_servers_certificate_is_kept(
    tmp_path: Path, again: list[str]
) -> None:
    make(tmp_path, ["server.example", "10.0.0.5", "fe80::1"], ["one", "two"])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "allowed.txt"}
    made = make(tmp_path, again, ["three"])
    assert {path.name for path in made.written} == {"three.pem", "three.key", "allowed.txt"}
    assert {path.name for path in made.kept} == {"authority.pem", "authority.key", "server.pem", "server.key"}
    assert before.items() <= {path.name: path.read_bytes() for path in tmp_path.iterdir()}.items()
    assert read_allowed(tmp_path / "allowed.txt") == {"one", "two", "three"}


def test_a_servers_certificate_for_other_names_is_no_reason_to_remove_it_where_a_device_is_added(
    tmp_path: Path,
) -> None:
    make(tmp_path, ["server.example", "10.0.0.5"], ["one"])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(
        BadInput, match=r"server\.pem: already there, for server\.example,10\.0\.0\.5; leave out --server to keep"
    ):
        make(tmp_path, ["10.0.0.6"], ["two"])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    make(tmp_path, ["localhost"], ["one"])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for servers, devices in ((["localhost"], []), ([], ["one"]), ([], ["two", "one"])):
        with pytest.raises(BadInput, match=r"(server|one)\.pem: already there"):
            make(tmp_path, servers, devices)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "one.pem").unlink()
    with pytest.raises(BadInput, match=r"one\.key: already there; to make a new one remove one\.pem and one\.key"):
        make(tmp_path, [], ["one"])
    (tmp_path / "one.key").unlink()
    make(tmp_path, [], ["one"])
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {name for name in after if after[name] != before[name]} == {"one.pem", "one.key"}


def test_validity_is_bounded_and_ends_with_the_authority(tmp_path: Path) -> None:
    make(tmp_path, ["localhost"], ["one"], days=10)
    now = datetime.datetime.now(datetime.timezone.utc)
    end = certificate(tmp_path / "one.pem").not_valid_after_utc
    assert datetime.timedelta(days=9) < end - now <= datetime.timedelta(days=10)
    assert certificate(tmp_path / "one.pem").not_valid_before_utc < now
    make(tmp_path, [], ["two"], days=3650)
    assert (
        certificate(tmp_path / "two.pem").not_valid_after_utc
        <= certificate(tmp_path / "authority.pem").not_valid_after_utc
    )


@pytest.mark.parametrize(
    ("servers", "devices", "message"),
    [
        (["10.0.0.5:443"], [], "server name '10.0.0.5:443': expected a host name or an IP address, without a port"),
        (["a b"], [], "server name"),
        (["x\n"], [], "server name"),
        ([], ["../../etc/passwd"], "device name"),
        ([], ["a/b"], "device name"),
        ([], ["-x"], "device name"),
        ([], ["a" * 65], "device name"),
        ([], ["authority"], "device name 'authority'"),
        ([], ["server"], "device name 'server'"),
        ([], ["a\n"], "device name"),
        ([], ["one", "one"], "one stands there twice"),
        ([], [], "expected names of the server, of devices, or both"),
    ],
)
def test_what_is_no_name_is_refused_and_nothing_is_written(
    tmp_path: Path, servers: list[str], devices: list[str], message: str
) -> None:
    with pytest.raises(BadInput) as refused:
        make(tmp_path / "new", servers, devices)
    assert message in str(refused.value)
    assert not (tmp_path / "new").exists()


def test_files_that_do_not_belong_together_are_told_apart(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    make(here, ["localhost"], ["one", "two"])
    make(there, ["localhost"], ["one"])
    with pytest.raises(
        BadInput, match=r"three\.pem: cannot be read: No such file .* made by 'card-train certificates'"
    ):
        Credentials.of(here, "three")
    (here / "one.key").write_bytes((there / "one.key").read_bytes())
    with pytest.raises(BadInput, match=r"one\.key: not the key of .*one\.pem"):
        Credentials.of(here, "one")
    (here / "two.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(BadInput, match=r"two\.pem: not a certificate in PEM"):
        Credentials.of(here, "two")
    (here / "two.pem").write_bytes(bytes(1 << 20))
    with pytest.raises(BadInput, match="more than 65536 bytes"):
        Credentials.of(here, "two")
    (there / "renamed.pem").write_bytes((there / "one.pem").read_bytes())
    (there / "renamed.key").write_bytes((there / "one.key").read_bytes())
    with pytest.raises(BadInput, match="made for 'one', expected 'renamed'"):
        Credentials.of(there, "renamed")
    (there / "authority.key").unlink()
    with pytest.raises(BadInput, match=r"authority\.key: cannot be read"):
        make(there, [], ["three"])


def test_the_list_of_devices_is_read_line_by_line(tmp_path: Path) -> None:
    listed = tmp_path / "allowed.txt"
    listed.write_text("\n# nobody\n one\t# first\ntwo\r\n\none\n")
    assert read_allowed(listed) == {"one", "two"}
    listed.write_text("one\nt wo\n")
    with pytest.raises(BadInput, match=r"allowed\.txt: line 2: 't wo', expected the name of a device"):
        read_allowed(listed)
    listed.write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="cannot be read"):
        read_allowed(listed)
    with pytest.raises(BadInput, match="No such file"):
        read_allowed(tmp_path / "none.txt")

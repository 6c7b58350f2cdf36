"""What the certificates say, who may read the keys, and what is refused."""

import datetime as dt
import shutil
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from steelyard.certificates import ClientTls, ServerTls, client_of_certificate, write_certificates
from steelyard.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates") / "pki"
    write_certificates(folder, 2, ["fl.example.org", "10.1.2.3"])
    return folder


def test_the_folder_holds_a_role_per_process_and_keys_are_private(folder: Path) -> None:
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.pem"))
    roles = [f"{role}/{name}.pem" for role in ("client-0", "client-1", "server") for name in ("ca", "cert", "key")]
    assert files == sorted(["ca.pem", "ca-key.pem", *roles])
    for path in folder.rglob("*key.pem"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (folder / "client-1" / "ca.pem").read_bytes() == (folder / "ca.pem").read_bytes()


def test_the_server_is_named_by_its_hosts_and_loopback(folder: Path) -> None:
    certificate = x509.load_pem_x509_certificate((folder / "server" / "cert.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "fl.example.org"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1", "10.1.2.3"]


def test_certificates_hold_for_a_year_and_come_from_the_authority(folder: Path) -> None:
    authority = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    now = dt.datetime.now(dt.UTC)
    for role in ("server", "client-0", "client-1"):
        certificate = x509.load_pem_x509_certificate((folder / role / "cert.pem").read_bytes())
        certificate.verify_directly_issued_by(authority)
        assert certificate.not_valid_before_utc < now
        assert dt.timedelta(days=364) < certificate.not_valid_after_utc - now <= dt.timedelta(days=365)
        assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_the_clients_index_stands_in_its_certificate(folder: Path) -> None:
    assert client_of_certificate((folder / "client-0" / "cert.pem").read_bytes()) == 0
    assert client_of_certificate((folder / "client-1" / "cert.pem").read_bytes()) == 1
    assert client_of_certificate((folder / "server" / "cert.pem").read_bytes()) is None
    assert client_of_certificate((folder / "ca.pem").read_bytes()) is None
    assert client_of_certificate(b"no certificate") is None


@pytest.mark.parametrize(
    ("uris", "index"),
    [
        (["steelyard://client/12"], 12),
        (["steelyard://client/1", "steelyard://client/2"], None),
        (["steelyard://client/1", "https://example.org"], None),
        (["steelyard://client/01"], None),
        (["steelyard://client/-1"], None),
        (["steelyard://client/1/2"], None),
        (["steelyard://server/1"], None),
    ],
)
def test_only_one_exact_name_counts(uris: list[str], index: int | None) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(u) for u in uris]), critical=True)
        .sign(key, hashes.SHA256())
    )
    assert client_of_certificate(certificate.public_bytes(Encoding.PEM)) == index


def test_nothing_is_overwritten(folder: Path) -> None:
    before = (folder / "ca.pem").read_bytes()
    with pytest.raises(UserError, match="an empty or new folder expected"):
        write_certificates(folder, 2, [])
    assert (folder / "ca.pem").read_bytes() == before


def test_hosts_and_counts_that_make_no_sense_leave_nothing_behind(tmp_path: Path) -> None:
    for clients, hosts in ((0, []), (1, ["not a host"]), (1, ["-x"])):
        with pytest.raises(UserError, match="expected"):
            write_certificates(tmp_path / "new", clients, hosts)
    assert not (tmp_path / "new").exists()


def test_a_missing_file_is_named(folder: Path, tmp_path: Path) -> None:
    assert ServerTls.load(folder / "server").certificate.startswith(b"-----BEGIN CERTIFICATE-----")
    for kind in (ServerTls, ClientTls):
        with pytest.raises(UserError, match=r"ca\.pem expected .*steelyard certs"):
            kind.load(tmp_path)
    assert "PRIVATE" not in repr(ClientTls.load(folder / "client-0"))


@pytest.mark.parametrize("role", [ServerTls, ClientTls])
@pytest.mark.parametrize("name", ["ca", "cert", "key"])
def test_a_damaged_file_is_named(role: type[ServerTls | ClientTls], name: str, folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder / "client-0", tmp_path / "role")
    path = copy / f"{name}.pem"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match=f"{path}: a PEM file expected, it is damaged .*make them anew") as caught:
        role.load(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("role", "kind"), [("server", ServerTls), ("client-0", ClientTls)])
def test_an_authority_of_the_same_name_that_did_not_sign_is_told(
    role: str, kind: type[ServerTls | ClientTls], folder: Path, tmp_path: Path
) -> None:
    write_certificates(tmp_path / "others", 1, [])
    copy = shutil.copytree(folder / role, tmp_path / "role")
    shutil.copy(tmp_path / "others" / "ca.pem", copy)
    with pytest.raises(UserError, match=f"{copy / 'ca.pem'}: the authority of cert.pem expected, it is another one"):
        kind.load(copy)
    (copy / "ca.pem").write_bytes((tmp_path / "others" / "ca.pem").read_bytes() + (folder / "ca.pem").read_bytes())
    kind.load(copy)  # both are trusted: one of them may be about to take over


def signed(
    name: str, issuer: tuple[str, ec.EllipticCurvePrivateKey] | None
) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
    """A certificate as PEM, and its key; it signs itself if there is no issuer."""
    key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.UTC)
    by, by_key = issuer or (name, key)
    subject, above = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in (name, by))
    builder = x509.CertificateBuilder(above, subject, key.public_key(), 1, now, now + dt.timedelta(days=1))
    return builder.sign(by_key, hashes.SHA256()).public_bytes(Encoding.PEM), key


def test_intermediate_authorities_raise_no_alarm_wherever_they_stand(tmp_path: Path) -> None:
    root, root_key = signed("root", None)
    middle, middle_key = signed("middle", ("root", root_key))
    leaf, key = signed("leaf", ("middle", middle_key))
    other, _ = signed("other", None)
    (tmp_path / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    for authority, chain in (
        (root, leaf + middle),
        (root, leaf + other + middle),
        (other + root, leaf + middle),
        (middle, leaf),
        (root + middle, leaf),
        (root, leaf),  # the peers' ca.pem may have the one between
        (other, leaf),  # peers of another authority than one's own
    ):
        (tmp_path / "ca.pem").write_bytes(authority)
        (tmp_path / "cert.pem").write_bytes(chain)
        assert ServerTls.load(tmp_path).certificate == chain
    namesake, _ = signed("root", None)
    (tmp_path / "ca.pem").write_bytes(namesake)
    (tmp_path / "cert.pem").write_bytes(leaf + middle)
    with pytest.raises(UserError, match="another one of the same name"):
        ServerTls.load(tmp_path)


def test_a_key_of_another_certificate_is_told(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder / "server", tmp_path / "role")
    shutil.copy(folder / "client-0" / "key.pem", copy)
    with pytest.raises(UserError, match=r"cert.pem and key.pem of one pair expected, they are of two"):
        ServerTls.load(copy)

"""Certificates for mutual TLS: one authority, one server, and one per client whose index stands in it.

A client's identity is the URI `steelyard://client/<k>` in its certificate. Role folders (`server`, `client-<k>`) hold
all that their process needs: its certificate and key, and the authority's certificate; the authority's key stays in
the parent folder and is needed by no running process.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TypeAlias, TypeVar

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from steelyard.errors import UserError

VALID = dt.timedelta(days=365)
CLOCK_SKEW = dt.timedelta(hours=1)
LOOPBACK = ("localhost", "127.0.0.1", "::1")
MEND = "make all of them with one `steelyard certs`"
CLIENT_URI = re.compile(r"steelyard://client/(0|[1-9][0-9]{0,8})")
T = TypeVar("T")
Authority: TypeAlias = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


@dataclass(frozen=True, kw_only=True)
class Tls:
    """A role's certificate, its key and the authority that the other side must come from, as PEM."""

    authority: bytes
    certificate: bytes
    key: bytes = field(repr=False)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a role folder (`server`, `client-<k>`); `UserError` when a file is missing or damaged."""
        try:
            authority, certificate, key = ((folder / f"{name}.pem").read_bytes() for name in ("ca", "cert", "key"))
        except OSError as error:
            raise UserError(
                f"certificates: {error.filename} expected ({error.strerror}); make them with `steelyard certs`"
            ) from None
        trusted = _parsed(folder / "ca.pem", authority, x509.load_pem_x509_certificates)
        chain = _parsed(folder / "cert.pem", certificate, x509.load_pem_x509_certificates)
        shown = chain[0].public_key()
        held = _parsed(folder / "key.pem", key, lambda pem: serialization.load_pem_private_key(pem, None)).public_key()
        if shown != held:
            raise UserError(
                f"certificates: {folder}: cert.pem and key.pem of one pair expected, they are of two; make them anew "
                "with `steelyard certs`"
            )
        if _is_of_a_namesake(chain, trusted):
            raise UserError(
                f"certificates: {folder / 'ca.pem'}: the authority of cert.pem expected, it is another one of the same "
                f"name; {MEND}"
            )
        return cls(authority=authority, certificate=certificate, key=key)


class ServerTls(Tls):
    """The server's."""

    def credentials(self) -> grpc.ServerCredentials:
        """Mutual TLS: a client without a certificate of this authority cannot connect."""
        return grpc.ssl_server_credentials(
            [(self.key, self.certificate)], root_certificates=self.authority, require_client_auth=True
        )


class ClientTls(Tls):
    """A client's."""

    def credentials(self) -> grpc.ChannelCredentials:
        """Mutual TLS from the client's side."""
        return grpc.ssl_channel_credentials(self.authority, self.key, self.certificate)


def write_certificates(folder: Path, clients: int, hosts: Sequence[str]) -> None:
    """Make an authority, a server's certificate and one per client, valid for a year.

        ca.pem  ca-key.pem  server/{ca,cert,key}.pem  client-0/{ca,cert,key}.pem  ...

    Args:
        folder: made if need be; keys in it can be read by their owner alone.
        clients: how many.
        hosts: DNS names and IP addresses under which clients reach the server; loopback is always among them.

    Raises:
        UserError: the folder is not empty, or a host or the number of clients makes no sense.
    """
    if clients < 1:
        raise UserError(f"certificates: at least 1 client expected, got {clients}")
    names = [_host_name(host) for host in dict.fromkeys((*LOOPBACK, *hosts))]
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"certificates: an empty or new folder expected, {folder} is taken; choose another")
    folder.mkdir(parents=True, exist_ok=True)
    authority = _make_authority()
    (folder / "ca.pem").write_bytes(_pem(authority[0]))
    _write_key(folder / "ca-key.pem", authority[1])
    _write_role(folder / "server", authority, "steelyard server", names, ExtendedKeyUsageOID.SERVER_AUTH)
    for k in range(clients):
        identity = x509.UniformResourceIdentifier(f"steelyard://client/{k}")
        usage = ExtendedKeyUsageOID.CLIENT_AUTH
        _write_role(folder / f"client-{k}", authority, f"steelyard client {k}", [identity], usage)


def client_of_certificate(pem: bytes) -> int | None:
    """The client's index that a certificate names; None unless it names exactly one.

    Whether to trust the certificate is TLS's business, settled before anybody asks for the index.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        return None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    match = CLIENT_URI.fullmatch(uris[0]) if len(uris) == 1 else None
    return int(match[1]) if match else None


def mistake_of(said: str, folder: Path) -> str | None:
    """What is wrong with certificates, for a person, by gRPC's words for a client's connection that did not come about.

    Args:
        said: gRPC's words.
        folder: the client's role folder of certificates.

    Returns:
        None: nothing that could be known of. A server that refuses a client's certificate only closes the connection.
    """
    if "Hostname Verification Check failed" in said:
        return "the server's certificate does not name its host; make it with `steelyard certs --host HOST`"
    _, found, why = said.partition("CERTIFICATE_VERIFY_FAILED: ")
    if not found:
        return None
    return f"the server's certificate does not hold by {folder / 'ca.pem'} ({why.removesuffix(': OK')}); {MEND}"


def _make_authority() -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("steelyard authority")
    certificate = (
        _builder(name, name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate, key


def _write_role(
    folder: Path, authority: Authority, name: str, names: Sequence[x509.GeneralName], usage: x509.ObjectIdentifier
) -> None:
    issuer, issuer_key = authority
    key = ec.generate_private_key(ec.SECP256R1())
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    certificate = (
        _builder(_name(name), issuer.subject, key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(issuer_id, critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    folder.mkdir(mode=0o700)
    (folder / "ca.pem").write_bytes(_pem(issuer))
    (folder / "cert.pem").write_bytes(_pem(certificate))
    _write_key(folder / "key.pem", key)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + VALID)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not re.fullmatch(r"(?!-)[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})*", host):
            raise UserError(f"certificates: a DNS name or an IP address expected as host, got {host!r}") from None
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)


def _is_of_a_namesake(chain: Sequence[x509.Certificate], trusted: Sequence[x509.Certificate]) -> bool:
    """Whether no trusted authority signed a role's own certificate, though one has the name of who did.

    Of any other that is not among them nothing is known: an intermediate one, for instance, may stand in the peers'
    ca.pem alone.
    """
    top, others = chain[0], list(chain[1:])
    while not any(_signed(authority, top) for authority in trusted):
        above = next((other for other in others if _signed(other, top)), None)
        if above is None:
            return any(authority.subject == top.issuer for authority in trusted)
        others.remove(above)
        top = above
    return False


def _signed(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _parsed(path: Path, pem: bytes, parse: Callable[[bytes], T]) -> T:
    """What a file holds: gRPC would take a server's damaged one for a busy port, and fail a client's every call."""
    try:
        return parse(pem)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"certificates: {path}: a PEM file expected, it is damaged ({said}); make them anew with `steelyard certs`"
        ) from None

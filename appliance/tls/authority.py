"""The node's own certificate authority, for nodes that no other authority reaches.

Owns the making of keys and certificates (ECDSA P-256, X.509 version 3, RFC 5280). The authority
may vouch for the names that it was made for and no others (name constraints, RFC 5280 section
4.2.1.10): applications can trust it without trusting this node to speak for anybody else. Refuses
names that no certificate can have.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.errors import SignatureError, UsageError

AUTHORITY_DAYS = 3653
CERTIFICATE_DAYS = 825
"""The longest that every client takes from a private authority."""
LOCAL_NAMES = ("localhost",)
LOCAL_ADDRESSES = ("127.0.0.1", "::1")
_BACK = timedelta(days=1)
"""Certificates are valid since yesterday: clocks of machines without a network differ."""
_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")
_MOST = 64


@dataclass(frozen=True, slots=True)
class Names:
    """By what a node is called. Make it with `names_of`."""

    names: tuple[str, ...]
    addresses: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        return (*self.names, *self.addresses)


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate with its private key.

    `by_name` is one of the same key for the host names alone, if there is one.
    """

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    by_name: x509.Certificate | None = None

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def by_name_pem(self) -> bytes:
        return self.by_name.public_bytes(Encoding.PEM) if self.by_name is not None else b""

    @classmethod
    def parse(cls, key_pem: bytes, pem: bytes) -> Issued:
        """Read both. Raises SignatureError if they are damaged or do not belong together."""
        try:
            key = load_pem_private_key(key_pem, password=None)
            certificate = x509.load_pem_x509_certificate(pem)
        except (ValueError, TypeError) as error:
            raise _damaged(str(error)) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise _damaged("it is of another kind")
        if key.public_key() != certificate.public_key():
            raise _damaged("its certificate is another key's")
        return cls(key, certificate)


def names_of(names: Sequence[str], addresses: Sequence[str]) -> Names:
    """Checked names, and those by which the node calls itself. Raises UsageError."""
    wanted = [*dict.fromkeys([*(name.lower().rstrip(".") for name in names), *LOCAL_NAMES])]
    for name in wanted:
        if len(name) > 253 or not _NAME.fullmatch(name) or name.rpartition(".")[2].isdecimal():
            raise UsageError(
                f"{name!r} is not a host name",
                hint="letters, digits, hyphens and dots; addresses go to --address",
            )
    try:
        found = [str(ip_address(address)) for address in (*addresses, *LOCAL_ADDRESSES)]
    except ValueError as error:
        raise UsageError(str(error), hint="--address takes an IP address") from None
    if len(wanted) + len(found) > _MOST:
        raise UsageError(f"more than {_MOST} names and addresses", hint="give fewer")
    return Names(tuple(wanted), tuple(dict.fromkeys(found)))


def make_authority(names: Names, now: datetime | None = None) -> Issued:
    """An authority that may vouch for `names` alone, and for no other authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    title = f"Appliance {names.names[0]} {(now or datetime.now(UTC)):%Y-%m-%d}"
    subject = _title(title)
    builder = (
        _builder(subject, subject, key.public_key(), AUTHORITY_DAYS, now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.NameConstraints(_permitted(names), None), critical=True)
    )
    return Issued(key, builder.sign(key, hashes.SHA256()))


def issue(
    authority: Issued, names: Names, *, days: int = CERTIFICATE_DAYS, now: datetime | None = None
) -> Issued:
    """A node's certificate for `names`, with a new key; and one for the host names among them.

    Some clients check no limits on addresses, and refuse a certificate with an address by an
    authority that has such limits, by whatever name they ask (decision 0286).
    """
    key = ec.generate_private_key(ec.SECP256R1())
    hosts = [x509.DNSName(name) for name in names.names]
    addresses = [x509.IPAddress(ip_address(address)) for address in names.addresses]
    both, by_name = (
        _certificate(authority, key, alternative, names.names[0], days, now)
        for alternative in ([*hosts, *addresses], hosts)
    )
    return Issued(key, both, by_name)


def _certificate(
    authority: Issued,
    key: ec.EllipticCurvePrivateKey,
    alternative: Sequence[x509.GeneralName],
    title: str,
    days: int,
    now: datetime | None,
) -> x509.Certificate:
    issuer = authority.certificate.subject
    signer = authority.key.public_key()
    builder = (
        _builder(_title(title), issuer, key.public_key(), days, now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternative), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)
    )
    return builder.sign(authority.key, hashes.SHA256())


def make_local_client(now: datetime | None = None) -> Issued:
    """What the node's own commands show where callers need a certificate; signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _title("appliance commands on this node")
    builder = (
        _builder(subject, subject, key.public_key(), 2 * AUTHORITY_DAYS, now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    )
    return Issued(key, builder.sign(key, hashes.SHA256()))


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    days: int,
    now: datetime | None,
) -> x509.CertificateBuilder:
    begin = (now or datetime.now(UTC)).replace(microsecond=0)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin - _BACK)
        .not_valid_after(begin + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _title(text: str) -> x509.Name:
    # ub-common-name, RFC 5280 appendix A.1; clients look at the alternative names.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _permitted(names: Names) -> list[x509.GeneralName]:
    return [
        *(x509.DNSName(name) for name in names.names),
        *(x509.IPAddress(ip_network(address)) for address in names.addresses),
    ]


def _usage(*, signs_certificates: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _damaged(reason: str) -> SignatureError:
    return SignatureError(
        f"the key of the node's certificate authority cannot be used: {reason}",
        hint="restore it from a backup, or make a new one with `appliance tls create --replace`",
    )

"""What a certificate says, and whether it is strong enough: reading, never making.

Owns the parsing of PEM that an operator brings. Refuses keys and signatures that clients refuse
too (below 112 bits of security, NIST SP 800-131A; SHA-1), so that this is found when a certificate
comes in and not when applications call.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from appliance.errors import VerificationError

DAY_SECONDS = 86_400
_RSA_BITS, _CURVE_BITS = 2048, 256
_WEAK_HASHES = (hashes.MD5, hashes.SHA1)
_MOST = 64
"""Certificates of one file."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """One certificate, read. Times are Unix seconds, `sha256` is the fingerprint in hex."""

    subject: str
    issuer: str
    names: tuple[str, ...]
    addresses: tuple[str, ...]
    not_before: int
    not_after: int
    key: str
    """What kind of key, for example `RSA 3072`."""
    sha256: str

    def days_left(self, now: float) -> int:
        """Whole days until it expires; negative once it has."""
        return int((self.not_after - now) // DAY_SECONDS)


def read_pem(pem: bytes, *, name: str) -> list[x509.Certificate]:
    """The certificates of `pem`, in order; `name` is what errors call it.

    Raises VerificationError if there is none, or too many.
    """
    try:
        found = x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise _refused(
            f"{name} holds no readable certificate: {error}",
            name,
            hint="it must be PEM, `-----BEGIN CERTIFICATE-----`",
        ) from None
    if len(found) > _MOST:
        raise _refused(
            f"{name} holds {len(found)} certificates", name, hint=f"give at most {_MOST}"
        )
    return found


def read_der(der: bytes) -> tuple[x509.Certificate | None, str]:
    """A certificate as TLS carries it, None if it cannot be read, and its fingerprint in hex."""
    sha256 = hashlib.sha256(der).hexdigest()
    try:
        return x509.load_der_x509_certificate(der), sha256
    except ValueError:
        return None, sha256


def described(certificate: x509.Certificate, *, name: str = "the certificate") -> Certificate:
    """What it says. Raises VerificationError for what no client would understand."""
    try:
        names = _names(certificate)
        return Certificate(
            subject=certificate.subject.rfc4514_string(),
            issuer=certificate.issuer.rfc4514_string(),
            names=tuple(names.get_values_for_type(x509.DNSName)) if names else (),
            addresses=tuple(str(a) for a in names.get_values_for_type(x509.IPAddress))
            if names
            else (),
            not_before=_seconds(certificate.not_valid_before_utc),
            not_after=_seconds(certificate.not_valid_after_utc),
            key=_kind(certificate),
            sha256=certificate.fingerprint(hashes.SHA256()).hex(),
        )
    except (ValueError, TypeError, x509.DuplicateExtension) as error:
        raise _refused(f"{name} cannot be read: {error}", name) from None


def check_strength(certificate: x509.Certificate, *, name: str) -> None:
    """Raise VerificationError (`certificate_weak`) for a weak key or signature."""
    key = certificate.public_key()
    strong = (
        (isinstance(key, RSAPublicKey) and key.key_size >= _RSA_BITS)
        or (isinstance(key, EllipticCurvePublicKey) and key.curve.key_size >= _CURVE_BITS)
        or isinstance(key, Ed25519PublicKey | Ed448PublicKey)
    )
    if not strong:
        raise _refused(
            f"the key of {name} is too weak: {_kind(certificate)}",
            name,
            hint=f"use RSA from {_RSA_BITS} bits on, or ECDSA on P-256 or a larger curve",
            code="certificate_weak",
        )
    if isinstance(certificate.signature_hash_algorithm, _WEAK_HASHES):
        raise _refused(
            f"{name} is signed over {certificate.signature_hash_algorithm.name.upper()}",
            name,
            hint="have it issued again, signed over SHA-256",
            code="certificate_weak",
        )


def check_dates(certificate: x509.Certificate, now: float, *, name: str) -> None:
    """Raise VerificationError (`certificate_expired`) unless `now` is within its dates."""
    first = _seconds(certificate.not_valid_before_utc)
    last = _seconds(certificate.not_valid_after_utc)
    if not first <= now <= last:
        word = "expired on" if now > last else "is not valid before"
        raise _refused(
            f"{name} {word} {day(last if now > last else first)}",
            name,
            hint="have it issued again, or set the clock (`date --set`)",
            code="certificate_expired",
        )


def check_authorities(certificates: Sequence[x509.Certificate], now: float, *, name: str) -> None:
    """Raise VerificationError unless each may issue certificates now, and is strong."""
    for certificate in certificates:
        subject = certificate.subject.rfc4514_string() or name
        if not _is_authority(certificate):
            raise _refused(
                f"{subject} is not a certificate authority",
                name,
                hint="give the certificate of the authority that issues, not one that it issued",
            )
        check_dates(certificate, now, name=subject)
        check_strength(certificate, name=subject)


def day(seconds: float) -> str:
    """The day of a Unix time, UTC."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}"


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False


def _names(certificate: x509.Certificate) -> x509.SubjectAlternativeName | None:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return None
    return found.value


def _kind(certificate: x509.Certificate) -> str:
    key = certificate.public_key()
    if isinstance(key, RSAPublicKey):
        return f"RSA {key.key_size}"
    if isinstance(key, EllipticCurvePublicKey):
        return f"ECDSA {key.curve.name}"
    return type(key).__name__.removesuffix("PublicKey")


def _seconds(at: datetime) -> int:
    return int(at.timestamp())


def _refused(
    message: str,
    path: str,
    *,
    hint: str = "have it issued again",
    code: str = "certificate_invalid",
) -> VerificationError:
    return VerificationError(message, path=path, hint=hint, code=code)

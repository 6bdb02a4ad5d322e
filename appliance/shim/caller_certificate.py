"""Whose certificate a connection was opened with, as the audit log names it."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.audit.event import clip
from appliance.errors import ApplianceError
from appliance.tls.certificate import described, read_der

SCOPE_NAME = "appliance.caller"
"""What it is called in a connection's extra information and in a request's scope."""


@dataclass(frozen=True, slots=True)
class CallerCertificate:
    """`sha256` is the certificate's fingerprint in hex; both are empty without one."""

    subject: str = ""
    sha256: str = ""


NO_CERTIFICATE = CallerCertificate()


def caller_certificate(der: bytes) -> CallerCertificate:
    """Names a certificate that was verified, even one whose subject cannot be read."""
    certificate, sha256 = read_der(der)
    try:
        subject = described(certificate).subject if certificate is not None else ""
    except ApplianceError:
        subject = ""
    return CallerCertificate(clip(subject or "unreadable"), sha256)

"""What of a request's content is kept, and how: nothing, a commitment, or sealed to the auditor.

Owns the three modes of `audit.content`. A commitment is HMAC-SHA256 under a salt of its own, so
nobody can try guesses against the log: with `commit` the salt comes of a secret of the node, with
`sealed` it lies in the sealed content, which only the auditor's key opens (HPKE, RFC 9180: X25519,
HKDF-SHA256, ChaCha20-Poly1305). Sealed content lies outside the tree: it can be erased, and every
proof stays. Refuses to keep content in clear.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from appliance.config import AuditSettings, Layout
from appliance.errors import AuditError, AuditUnavailableError, NotFoundError, UsageError
from appliance.fsops import create_durable, make_dirs, write_durable

SECRET_NAME = "content.key"  # noqa: S105
Part = Literal["asked", "answered"]

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
_PURPOSE = b"appliance-audit-content/1\n"
_SALT_BYTES = 32
_DAY = re.compile(r"[0-9]{8}")


@dataclass(frozen=True, slots=True)
class Kept:
    """What a record says about content: `content_commit` and `content_ref`, empty if nothing."""

    commit: str = ""
    ref: str = ""


class ContentKeeper:
    """Keeps content as `settings` say. Thread-safe; `keep` may write a file."""

    def __init__(self, layout: Layout, settings: AuditSettings) -> None:
        """Raises AuditUnavailableError if the node's secret cannot be made or read."""
        self._mode = settings.content
        self._directory = layout.audit_content
        self._secret = b""
        if self._mode == "commit":
            self._secret = _secret(layout.audit_key)
        if self._mode == "sealed":
            self._auditor = X25519PublicKey.from_public_bytes(parse_auditor(settings.auditor_key))

    @property
    def keeps(self) -> bool:
        """Whether anything is kept."""
        return self._mode != "metadata"

    @property
    def writes(self) -> bool:
        """Whether `keep` writes a file."""
        return self._mode == "sealed"

    def keep(self, request_id: str, part: Part, content: bytes) -> Kept:
        """Keep `content`, if there is any, durably before this returns.

        Raises AuditUnavailableError.
        """
        if not (self.keeps and content):
            return Kept()
        if not self.writes:
            return Kept(commitment(_salt(self._secret, request_id, part), content))
        ref = f"{datetime.now(UTC):%Y%m%d}/{request_id}.{part}"
        salt = secrets.token_bytes(_SALT_BYTES)
        sealed = _SUITE.encrypt(salt + content, self._auditor, info=_info(ref))
        path = self._directory / ref
        try:
            make_dirs(path.parent)
            write_durable(path, sealed)
        except OSError as error:
            raise AuditUnavailableError(
                f"sealed content cannot be written: {error.strerror}",
                hint="check free space and health of the disk",
            ) from error
        return Kept(commitment(salt, content), ref)


def erase_before(directory: Path, day: date) -> int:
    """Erase what was sealed before `day` (UTC); returns how many files. Raises OSError."""
    count = 0
    for path in directory.iterdir() if directory.is_dir() else ():
        if _DAY.fullmatch(path.name) and path.name < f"{day:%Y%m%d}":
            for file in path.iterdir():
                file.unlink()
                count += 1
            path.rmdir()
    return count


def commitment(salt: bytes, content: bytes) -> str:
    """The text that a record has."""
    return f"hmac-sha256:{hmac.new(salt, content, hashlib.sha256).hexdigest()}"


def committed(layout: Layout, request_id: str, part: Part, content: bytes) -> str:
    """What a record of the mode `commit` says about `content`. Raises NotFoundError."""
    if not (layout.audit_key / SECRET_NAME).exists():
        raise NotFoundError("this node has committed to no content", hint="set audit.content")
    return commitment(_salt(_secret(layout.audit_key), request_id, part), content)


def unseal(sealed: bytes, ref: str, private: X25519PrivateKey, commit: str) -> bytes:
    """The content that was sealed as `ref`, which a record commits to with `commit`.

    Raises AuditError if the key does not open it or it is not what the record commits to.
    """
    try:
        opened = _SUITE.decrypt(sealed, private, info=_info(ref))
    except (InvalidTag, ValueError):
        raise AuditError(
            "the content does not open",
            path=ref,
            hint="use the private key that it was sealed to; if that is it, the file was altered",
        ) from None
    salt, content = opened[:_SALT_BYTES], opened[_SALT_BYTES:]
    if not hmac.compare_digest(commitment(salt, content), commit):
        raise AuditError(
            "the content is not what the record commits to",
            path=ref,
            hint="another content was put in its place: keep the file, and find out who had access",
        )
    return content


def parse_auditor(text: str) -> bytes:
    """The public key in `audit.auditor_key`. Raises UsageError."""
    try:
        key = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        key = b""
    if len(key) != 32:
        raise UsageError(
            "audit.auditor_key is not an auditor's key",
            hint="take the line that `appliance audit content-key` printed",
        )
    return key


def _info(ref: str) -> bytes:
    return _PURPOSE + ref.encode("ascii")


def _salt(secret: bytes, request_id: str, part: Part) -> bytes:
    return hmac.digest(secret, f"{request_id}\n{part}".encode(), "sha256")


def _secret(key_dir: Path) -> bytes:
    path = key_dir / SECRET_NAME
    try:
        create_durable(path, secrets.token_bytes(_SALT_BYTES))
        return path.read_bytes()
    except OSError as error:
        raise AuditUnavailableError(
            f"the node's content secret cannot be used: {error.strerror}",
            hint="check the disk and the owner of audit-key",
        ) from error

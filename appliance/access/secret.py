"""The form of a key: `sk-<id>-<secret>`, or `sk-admin-<id>-<secret>`.

Owns making, splitting and hashing. The id is public: it lets a person recognise a key in a list
and lets the store find its row without a search. The secret is 200 random bits in lower-case
base 32, so one double click selects the whole key. That many random bits need no slow hash:
SHA-256 at rest cannot be reversed by guessing.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from typing import Literal

_ID_BYTES = 5
_SECRET_BYTES = 25
_KEY = re.compile(r"sk-(?:admin-)?([a-z2-7]{8})-([a-z2-7]{40})")


def generate(kind: Literal["api", "admin"] = "api") -> tuple[str, str]:
    """A fresh (id, whole key)."""
    key_id = fresh_id()
    return key_id, prefix(key_id, kind) + _base32(_SECRET_BYTES)


def fresh_id() -> str:
    """Eight characters that no two things share."""
    return _base32(_ID_BYTES)


def prefix(key_id: str, kind: Literal["api", "admin"]) -> str:
    """What the key `key_id` begins with."""
    return f"sk-admin-{key_id}-" if kind == "admin" else f"sk-{key_id}-"


def id_of(key: str) -> str | None:
    """The id inside `key`, or None if `key` does not have the form of one."""
    match = _KEY.fullmatch(key)
    return match[1] if match else None


def digest(key: str) -> bytes:
    """What is kept of `key`: 32 bytes."""
    return hashlib.sha256(key.encode("ascii")).digest()


def _base32(size: int) -> str:
    return base64.b32encode(secrets.token_bytes(size)).decode("ascii").lower()

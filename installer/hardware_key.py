"""Keys that never leave their hardware: PKCS #11 tokens (OASIS PKCS #11 2.40), cards, modules.

Owns `NAME.token`, the file that stands for such a key in a trust directory: one line, the key's
URI in securesystemslib's form, `hsm:ID?label=LABEL`, and nothing secret. The library does the
signing, with ECDSA on P-256 or P-384. Refuses a PIN on the command line, where every process of the
machine could read it.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from urllib.parse import parse_qsl, urlparse

from securesystemslib.exceptions import UnsupportedLibraryError
from securesystemslib.signer import HSMSigner

from appliance.config import PKCS11_MODULE_VARIABLE, pkcs11_module
from appliance.errors import (
    NotFoundError,
    SignatureError,
    UnavailableError,
    UnsupportedError,
    UsageError,
    first_line,
)
from installer.passphrase import read_pin

SUFFIX = ".token"
ABSENT = "token_absent"
"""Code of the error for a token that is not connected."""


def signer_at(uri: str) -> HSMSigner:
    """What signs with the key at `uri`; asks for the PIN when it signs.

    Raises UsageError for what is no such URI, NotFoundError (ABSENT) if there is no such token or
    key, UnsupportedError, UnavailableError about the PKCS #11 module.
    """
    key_id, label = _parsed(uri)
    if not pkcs11_module():
        raise UsageError(
            f"{uri} is on a token, and no PKCS #11 module is named",
            hint=f"set {PKCS11_MODULE_VARIABLE} to the library that came with the token",
        )
    try:
        found, key = HSMSigner.import_(key_id, label, _pin_of(label))
    except ValueError as error:
        raise NotFoundError(
            f"there is no key {uri}: {error}",
            hint="connect the token; `pkcs11-tool --list-objects` shows its label and key IDs",
            code=ABSENT,
        ) from None
    except UnsupportedLibraryError as error:
        raise UnsupportedError(
            "this installation has no programs for tokens",
            hint="use a checkout of the source with its packager's environment",
        ) from error
    except RuntimeError as error:  # the base of the library's errors
        raise UnavailableError(
            f"the token of {uri} does not answer: {first_line(error)}",
            hint=f"check {PKCS11_MODULE_VARIABLE}, and that the token was initialized",
        ) from error
    return HSMSigner.from_priv_key_uri(found, key, _pin_of(label))


def signer_in(path: Path) -> HSMSigner:
    """What signs with the key for which the file `path` stands. Raises as `signer_at`."""
    try:
        text = path.read_text("ascii")
    except UnicodeDecodeError:
        raise SignatureError(
            f"{path} does not name a key on a token",
            path=path.name,
            hint="restore the trust directory from its backup",
        ) from None
    return signer_at(text.strip())


def _parsed(uri: str) -> tuple[int, str | None]:
    parts = urlparse(uri)
    if parts.scheme != HSMSigner.SCHEME or not (parts.path.isdecimal() or not parts.path):
        raise UsageError(
            f"{uri!r} does not name a key on a token",
            hint="for instance hsm:2?label=Officer+1: the key's ID, and the token's label",
        )
    key_id = int(parts.path) if parts.path else HSMSigner.SCHEME_KEYID
    return key_id, dict(parse_qsl(parts.query)).get("label")


@lru_cache(maxsize=64)
def _pin_of(label: str | None) -> _Pin:
    return _Pin(label)


class _Pin:
    """Asks for a token's PIN once: a command may sign several times."""

    def __init__(self, label: str | None) -> None:
        self._label = label or "the token"
        self._pin: str | None = None

    def __call__(self, _secret: str) -> str:
        if self._pin is None:
            self._pin = read_pin(self._label)
        return self._pin

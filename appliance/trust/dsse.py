"""Dead Simple Signing Envelopes in exactly one byte form.

Owns parsing and writing of DSSE JSON (https://github.com/secure-systems-lab/dsse). Refuses every
other spelling of the same envelope (spaces, other key order, loose base64), so that each byte of
a signed file is either signed or fixed.
"""

from __future__ import annotations

import base64
import binascii

import msgspec
from securesystemslib.dsse import Envelope as Preimage

from appliance.errors import SignatureError

MAX_ENVELOPE_BYTES = 16 * 1024 * 1024


class EnvelopeSignature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One signature; `sig` is base64."""

    sig: str
    keyid: str


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """The envelope as it is written; `payload` is base64."""

    payload: str
    payload_type: str
    signatures: tuple[EnvelopeSignature, ...]


def preimage(payload: bytes, payload_type: str) -> bytes:
    """The bytes that are signed: DSSE's pre-authentication encoding."""
    return Preimage(payload, payload_type, {}).pae()


def encode(payload: bytes, payload_type: str, *, signature: bytes, keyid: str) -> bytes:
    """The bytes of an envelope with one signature."""
    return msgspec.json.encode(
        Envelope(
            payload=_to_base64(payload),
            payload_type=payload_type,
            signatures=(EnvelopeSignature(sig=_to_base64(signature), keyid=keyid),),
        )
    )


def decode(data: bytes, *, path: str = "") -> Envelope:
    """Parse an envelope file. Raises SignatureError, naming `path`, unless it is canonical."""
    if len(data) > MAX_ENVELOPE_BYTES:
        raise refused(f"it is {len(data)} bytes long", path)
    try:
        envelope = msgspec.json.decode(data, type=Envelope)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise refused(str(error), path) from None
    if msgspec.json.encode(envelope) != data:
        raise refused("it is not in canonical form", path)
    return envelope


def opened(envelope: Envelope, payload_type: str, *, path: str = "") -> tuple[bytes, bytes, str]:
    """Payload, signature and key id of an envelope with one signature; nothing is verified yet.

    Raises SignatureError for another payload type and for any number of signatures but one: a
    second signature would be bytes that nobody checks.
    """
    if envelope.payload_type != payload_type:
        raise refused(f"it holds {envelope.payload_type!r}, not {payload_type!r}", path)
    if len(envelope.signatures) != 1:
        raise refused(f"it has {len(envelope.signatures)} signatures instead of one", path)
    (only,) = envelope.signatures
    return _from_base64(envelope.payload, path), _from_base64(only.sig, path), only.keyid


def refused(
    reason: str, path: str, *, hint: str = "get a fresh copy from the one who signed it"
) -> SignatureError:
    """The error for an envelope that is not accepted."""
    return SignatureError(
        f"{path or 'the signature'} is not a valid signature: {reason}",
        path=path,
        hint=hint,
    )


def _to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _from_base64(text: str, path: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise refused(str(error), path) from None
    if _to_base64(data) != text:
        raise refused("its base64 is not canonical", path)
    return data

"""Images in requests, in every API's words, as the engine takes them.

Owns the reading of data URIs and of base64, and how large an image may be, which is looked at
before anything is decoded. Refuses addresses: the appliance fetches nothing. What the bytes are is
the engine's to find out, in a process of its own.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable
from typing import Literal, NoReturn

from appliance.errors import RequestError
from appliance.pb import engine_v1_pb2 as pb

MAX_BYTES = 20 * 1024 * 1024
"""Of one image."""
MAX_BYTES_TOGETHER = 48 * 1024 * 1024
"""Of all images of a request; a message to the engine has 64 MiB."""
Detail = Literal["auto", "low", "high", "original"]
_DATA = re.compile(r"data:(?P<type>[a-z]+/[a-z0-9.+-]+);base64,", re.IGNORECASE)
_HEAD_CHARS = 128
_SPELLINGS = {"image/jpg": "image/jpeg", "image/pjpeg": "image/jpeg", "image/x-png": "image/png"}
_SEEN_WHOLE = ("auto", "high")


def from_url(url: str, detail: str | None, *, at: str, detail_at: str) -> pb.ContentPart:
    """The image of a data URI; errors name `at` or `detail_at`. Raises RequestError."""
    if detail is not None and detail not in _SEEN_WHOLE:
        raise RequestError(
            f"`{detail_at}` may be auto or high only: images are seen as large as may be",
            param=detail_at,
            hint="scale the image down yourself to save tokens",
            code="unsupported_parameter",
        )
    head = _DATA.match(url[:_HEAD_CHARS])
    if head is None:
        if url[:5].lower() == "data:":
            _refuse(at, "the data URI does not begin with data:TYPE;base64,")
        refuse_address(at)
    return from_base64(head["type"], url[head.end() :], at=at)


def from_base64(media_type: str, data: str, *, at: str) -> pb.ContentPart:
    """The image of a media type and base64; errors name `at`. Raises RequestError."""
    if len(data) > (MAX_BYTES + 2) // 3 * 4:
        _refuse(at, f"the image is larger than {MAX_BYTES} bytes")
    try:
        decoded = binascii.a2b_base64(data, strict_mode=True)
    except ValueError:  # binascii.Error, or characters that are not ASCII
        _refuse(at, "the image is not in base64")
    media_type = media_type.lower()
    image = pb.Image(media_type=_SPELLINGS.get(media_type, media_type), data=decoded)
    return pb.ContentPart(image=image)


def refuse_address(at: str) -> NoReturn:
    """An image that would have to be fetched, or that was stored somewhere. Raises RequestError."""
    raise RequestError(
        f"`{at}` names an image elsewhere; this appliance fetches nothing",
        param=at,
        hint="send the image itself: data:image/png;base64,...",
        code="unsupported_parameter",
    )


def check_total(messages: Iterable[pb.ChatMessage]) -> None:
    """Raise RequestError if the images of a request are too large together."""
    total = sum(len(part.image.data) for message in messages for part in message.content)
    if total > MAX_BYTES_TOGETHER:
        _refuse("messages", f"the images are larger than {MAX_BYTES_TOGETHER} bytes together")


def _refuse(at: str, reason: str) -> NoReturn:
    raise RequestError(f"`{at}`: {reason}", param=at, code="invalid_image")

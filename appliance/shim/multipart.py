"""A multipart/form-data body (RFC 7578), read as it comes: little more than a boundary is held.

Owns the grammar of RFC 2046, section 5.1, as far as forms use it. Refuses nested multiparts,
transfer encodings, and heads or counts of parts beyond what a form has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from email.utils import collapse_rfc2231_value
from typing import Literal

from appliance.errors import RequestError

_HEAD_BYTES = 8 * 1024
_PARTS = 16
_BOUNDARY_BYTES = 70
_State = Literal["preamble", "delimiter", "head", "body", "epilogue"]
_IDENTITIES = frozenset({"", "7bit", "8bit", "binary"})


@dataclass(frozen=True, slots=True)
class PartHead:
    """A part begins; its bytes follow."""

    name: str
    filename: str | None


def boundary_of(content_type: str) -> bytes:
    """The boundary that a Content-Type names. Raises RequestError `unsupported_media_type`."""
    message = Message()
    message["content-type"] = content_type
    boundary = message.get_boundary("")
    if (
        message.get_content_type() != "multipart/form-data"
        or not boundary.isascii()
        or not 0 < len(boundary) <= _BOUNDARY_BYTES
    ):
        raise RequestError(
            "the body must be a form",
            hint="send it with `Content-Type: multipart/form-data` and its boundary",
            code="unsupported_media_type",
        )
    return boundary.encode("ascii")


class FormReader:
    """Feed it the body; it yields a PartHead for each part, then the bytes of that part."""

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"\r\n--" + boundary
        # The first delimiter has no line break before it, unless a preamble has one.
        self._buffer = b"\r\n"
        self._state: _State = "preamble"
        self._parts = 0

    def feed(self, data: bytes) -> Iterator[PartHead | bytes]:
        """What `data` adds. Raises RequestError if it is not a form."""
        self._buffer += data
        going = True
        while going:
            item, going = self._step()
            if item:
                yield item

    def end(self) -> None:
        """The body is over. Raises RequestError if the form is not."""
        if self._state != "epilogue":
            raise _not_a_form("it ends early")

    def _step(self) -> tuple[PartHead | bytes | None, bool]:
        """The next item, if there is one, and whether there may be more in the buffer."""
        match self._state:
            case "preamble":
                return None, self._body()[1]
            case "body":
                return self._body()
            case "delimiter":
                return None, self._line()
            case "head":
                head = self._head()
                return head, head is not None
            case "epilogue":
                self._buffer = b""
                return None, False

    def _body(self) -> tuple[bytes, bool]:
        """Bytes up to the delimiter, or as many as cannot be the beginning of one."""
        end = self._buffer.find(self._delimiter)
        if end < 0:
            end = max(0, len(self._buffer) - len(self._delimiter) + 1)
            return self._take(end), False
        data = self._take(end)
        self._take(len(self._delimiter))
        self._state = "delimiter"
        return data, True

    def _line(self) -> bool:
        """What ends a delimiter: a line break, or two dashes after the last part."""
        if len(self._buffer) < 2:
            return False
        ending = self._take(2)
        if ending not in (b"\r\n", b"--"):
            raise _not_a_form("something stands behind a boundary")
        self._state = "head" if ending == b"\r\n" else "epilogue"
        return True

    def _head(self) -> PartHead | None:
        end = self._buffer.find(b"\r\n\r\n")
        if end > _HEAD_BYTES or (end < 0 and len(self._buffer) > _HEAD_BYTES):
            raise _not_a_form(f"the head of a part exceeds {_HEAD_BYTES} bytes")
        if end < 0:
            return None
        self._parts += 1
        if self._parts > _PARTS:
            raise _not_a_form(f"it has more than {_PARTS} parts")
        head = _part(self._take(end))
        self._take(4)
        self._state = "body"
        return head

    def _take(self, count: int) -> bytes:
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken


def _part(head: bytes) -> PartHead:
    try:
        message = HeaderParser().parsestr(head.decode("utf-8"))
    except UnicodeDecodeError:
        raise _not_a_form("the head of a part is not UTF-8") from None
    if str(message.get("content-transfer-encoding", "")).lower() not in _IDENTITIES:
        raise _not_a_form("a part has a transfer encoding")
    if message.get_content_disposition() != "form-data":
        raise _not_a_form("a part is not form-data")
    name, filename = (
        message.get_param(parameter, None, "content-disposition")
        for parameter in ("name", "filename")
    )
    if name is None:
        raise _not_a_form("a part has no name")
    return PartHead(
        collapse_rfc2231_value(name),
        None if filename is None else collapse_rfc2231_value(filename),
    )


def _not_a_form(why: str) -> RequestError:
    return RequestError(f"the body is not a form: {why}", code="invalid_form")

"""A file on its way in: written as it comes, and nowhere unless all of it came.

Owns the form around it. Refuses a second file, fields that are not in the form, and more bytes
than one file may have.
"""

from __future__ import annotations

import secrets
import time

from appliance.errors import RequestError
from appliance.shim.batches.file_store import PIECE_BYTES, FileStore, StoredFile
from appliance.shim.multipart import FormReader, PartHead
from appliance.shim.wire.decode import convert_form
from appliance.shim.wire.files import FileForm
from appliance.shim.wire.parameters import FILES

_FIELD_BYTES = 1024
_NAME_CHARACTERS = 255


class Upload:
    """One file of `owner`, in pieces; kept for `seconds` unless it says less."""

    def __init__(self, files: FileStore, owner: str, *, most: int, seconds: int) -> None:
        self._files = files
        self._owner = owner
        self._most = most
        self._seconds = seconds
        self._fields: dict[str, bytes] = {}
        self._open: str = ""
        self._name: str | None = None
        self._piece = bytearray()
        self._pieces = 0
        self._size = 0
        self.id = f"file-{secrets.token_hex(16)}"

    async def begin(self) -> None:
        """Before the first byte."""
        now = int(time.time())
        await self._files.begin(StoredFile(self.id, self._owner, now, now + self._seconds, "", ""))

    async def feed(self, reader: FormReader, data: bytes) -> None:
        """More of the body. Raises RequestError, CapacityError."""
        for item in reader.feed(data):
            if isinstance(item, PartHead):
                self._begin_part(item)
            elif self._open == "file":
                await self._add(item)
            else:
                self._add_field(item)

    async def end(self) -> StoredFile:
        """All came: now it is a file. Raises RequestError."""
        form = self._form()
        asked = form.expires_after_seconds
        if asked is not None and asked > self._seconds:
            raise RequestError(
                f"files are kept for {self._seconds} seconds at most",
                param="expires_after[seconds]",
                hint="ask for less, or have api.stored_file_hours raised",
                code="invalid_value",
            )
        if self._piece:
            await self._write(bytes(self._piece))
        assert self._name is not None
        return await self._files.complete(
            self._owner, self.id, self._name, form.purpose, asked or self._seconds
        )

    async def discard(self) -> None:
        """It is not wanted, or not complete."""
        await self._files.discard(self.id)

    def _form(self) -> FileForm:
        fields: dict[str, object] = {
            name: value.decode("utf-8", "replace") for name, value in self._fields.items()
        }
        if self._name is not None:
            fields["file"] = b""
        form = convert_form(fields, FileForm, FILES)
        if (form.expires_after_anchor is None) != (form.expires_after_seconds is None):
            absent = "anchor" if form.expires_after_anchor is None else "seconds"
            raise RequestError(
                f"`expires_after[{absent}]` is required",
                param=f"expires_after[{absent}]",
                code="missing_parameter",
            )
        if not self._size:
            raise RequestError("the file is empty", param="file", code="invalid_value")
        return form

    def _begin_part(self, part: PartHead) -> None:
        self._open = part.name
        if part.name in self._fields or (part.name == "file" and self._name is not None):
            raise RequestError(
                f"`{part.name}` stands twice in the form", param=part.name, code="invalid_value"
            )
        if part.name == "file":
            if part.filename is None:
                raise RequestError(
                    "`file` must have a file name", param="file", code="invalid_value"
                )
            self._name = _printable(part.filename)
        else:
            self._fields[part.name] = b""

    def _add_field(self, data: bytes) -> None:
        self._fields[self._open] += data
        if len(self._fields[self._open]) > _FIELD_BYTES:
            raise RequestError(
                f"a field of the form is longer than {_FIELD_BYTES} bytes",
                param=self._open,
                code="invalid_value",
            )

    async def _add(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._most:
            raise too_large(self._most)
        self._piece += data
        while len(self._piece) >= PIECE_BYTES:
            await self._write(bytes(self._piece[:PIECE_BYTES]))
            del self._piece[:PIECE_BYTES]

    async def _write(self, piece: bytes) -> None:
        await self._files.append(self.id, self._pieces, piece)
        self._pieces += 1


def too_large(most: int) -> RequestError:
    """What is told to who sends more than `most` bytes."""
    return RequestError(
        f"the file is larger than {most} bytes",
        param="file",
        hint="send several, or have api.max_file_bytes raised",
        code="file_too_large",
    )


def _printable(name: str) -> str:
    """The last part of a name, fit to be shown."""
    last = name.replace("\\", "/").rpartition("/")[2][:_NAME_CHARACTERS]
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in last) or "file"

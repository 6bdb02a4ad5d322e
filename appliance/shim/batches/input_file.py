"""The input of a batch: its lines, and whether they are a batch.

Owns what is checked before anything runs; what a line asks for is checked by its endpoint when it
runs, and becomes that line's error. A line without anything is no request, and is counted as a
line. Refuses to hold more than one line and the pieces it came in.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Container
from dataclasses import dataclass, field

import msgspec

from appliance.access import KeyInfo
from appliance.errors import UnavailableError
from appliance.shim.wire.batches import BatchErrorOut, BatchPath, InputBody, InputLine, WholeLine
from appliance.shim.wire.decode import as_given, refused

MAX_LINES = 50_000
_MAX_ERRORS = 100
"""Of one file that are told."""
_BOM = b"\xef\xbb\xbf"
"""What editors and shells of Windows write before UTF-8."""
_LINE = msgspec.json.Decoder(InputLine)
_WHOLE = msgspec.json.Decoder(WholeLine)


class LongLineError(Exception):
    """The line `number` is longer than a request may be."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@dataclass(frozen=True, slots=True)
class TextLine:
    """One line that is not empty; the first has number 1."""

    number: int
    text: bytes

    @property
    def request(self) -> InputLine:
        """What it says. Raises msgspec.DecodeError, or UnicodeDecodeError."""
        return _LINE.decode(self.text)


async def text_lines(pieces: AsyncIterator[bytes], most: int) -> AsyncIterator[TextLine]:
    """The lines of a file that comes in `pieces`. Raises LongLineError above `most` bytes."""
    number, rest = 0, b""
    async for piece in pieces:
        if not number:
            piece = piece.removeprefix(_BOM) if not rest else piece
        *whole, rest = (rest + piece).split(b"\n")
        for text in whole:
            number += 1
            if len(text) > most:
                raise LongLineError(number)
            if text.strip():
                yield TextLine(number, text)
        if len(rest) > most:
            raise LongLineError(number + 1)
    if rest.strip():
        yield TextLine(number + 1, rest)


@dataclass(slots=True)
class Examination:
    """What was found in an input file; with `errors` it is no batch."""

    endpoint: BatchPath
    key: KeyInfo
    served: Container[str]
    """Models that take requests."""
    coming: Container[str] = ()
    """Models that are being loaded."""
    total: int = 0
    model: str = ""
    errors: list[BatchErrorOut] = field(default_factory=list)
    _names: set[str] = field(default_factory=set)

    async def read(self, lines: AsyncIterator[TextLine]) -> None:
        """Look at every line, until too much is wrong.

        Raises UnavailableError if the model is being loaded: nothing is wrong with that.
        """
        try:
            async for line in lines:
                self.total += 1
                self._examine(line)
                if len(self.errors) >= _MAX_ERRORS:
                    return
                if self.total > MAX_LINES:
                    self._wrong(None, "too_many_tasks", f"there are more than {MAX_LINES} lines")
                    return
        except LongLineError as error:
            self._wrong(error.number, "line_too_long", "the line is longer than a request may be")
        if not self.total and not self.errors:
            self._wrong(None, "empty_file", "the file has no requests")

    def _examine(self, line: TextLine) -> None:
        number = line.number
        try:
            request = line.request
            # What it asks for is looked at with the line, so that its place is said with it.
            body = _WHOLE.decode(line.text).body
        except msgspec.ValidationError as error:
            misfit = refused(str(error), WholeLine, as_given(line.text))
            self._wrong(number, "invalid_request", misfit.message, misfit.param)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self._wrong(number, "invalid_json_line", "the line is not valid JSON")
        else:
            self._examine_request(number, request)
            self._examine_body(number, body)

    def _examine_request(self, number: int, request: InputLine) -> None:
        if request.custom_id in self._names:
            self._wrong(
                number, "duplicate_custom_id", "an earlier line has this custom_id", "custom_id"
            )
        self._names.add(request.custom_id)
        if request.method != "POST":
            self._wrong(number, "invalid_method", "the method must be POST", "method")
        if request.url != self.endpoint:
            self._wrong(number, "invalid_url", f"the url must be {self.endpoint}", "url")

    def _examine_body(self, number: int, body: InputBody) -> None:
        if body.stream:
            self._wrong(number, "invalid_value", "a line cannot be streamed", "body.stream")
        if body.background:
            self._wrong(
                number, "invalid_value", "a line cannot be in the background", "body.background"
            )
        if not self.model:
            self.model = body.model
            self._examine_model(number)
        elif body.model != self.model:
            message = f"the model must be {self.model!r}, as in the lines before"
            self._wrong(number, "mismatched_model", message, "body.model")

    def _examine_model(self, number: int) -> None:
        if not self.key.may_use(self.model):
            message = f"the API key may not use the model {self.model!r}"
            self._wrong(number, "model_not_allowed", message, "body.model")
        elif self.model in self.served:
            return
        elif self.model in self.coming:
            raise UnavailableError("the model of the batch is being loaded", code="model_loading")
        else:
            message = f"the model {self.model!r} is not served here"
            self._wrong(number, "model_not_found", message, "body.model")

    def _wrong(self, line: int | None, code: str, message: str, param: str | None = None) -> None:
        self.errors.append(BatchErrorOut(code, message, param, line))

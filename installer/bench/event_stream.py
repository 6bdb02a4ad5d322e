"""Server-sent events, read as the WHATWG HTML standard defines them (section 9.2.6).

Owns lines, fields and the blank line that ends an event. Bytes may come in any pieces; an event
that the stream's end cuts off is discarded. Refuses to know what is in `data`.
"""

from __future__ import annotations

import re

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class EventReader:
    """Feed it bytes; it gives the `data` of each event that became complete."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._begun = False
        self._cr = False

    def feed(self, data: bytes) -> list[bytes]:
        """Events that `data` completes, in order; those without data are passed over."""
        lines = self._lines(data)
        events = []
        for line in lines:
            if line:
                self._field(line)
            elif self._data:
                events.append(b"\n".join(self._data))
                self._data.clear()
        return events

    def _lines(self, data: bytes) -> list[bytes]:
        # A CR ends the line at once; an LF right behind it belongs to it.
        behind_cr, self._cr = self._cr, data.endswith(b"\r") if data else self._cr
        text = self._rest + (data.removeprefix(b"\n") if behind_cr else data)
        if not self._begun:
            if _BOM.startswith(text):
                self._rest = text
                return []
            text, self._begun = text.removeprefix(_BOM), True
        *lines, self._rest = _LINE_END.split(text)
        return lines

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))

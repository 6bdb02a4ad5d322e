"""The text of a custom tool's call, read from the JSON that a model writes it in, as it comes.

The arguments are `{"input": TEXT}` and nothing else: the tool was strict. Owns the state between
two pieces. Refuses nothing: what is behind the text is left unread.
"""

from __future__ import annotations

import json
import re

from appliance.shim.wire.response_tools import INPUT

_BEFORE = re.compile(rf'\s*\{{\s*"{INPUT}"\s*:\s*"')
_WHOLE = re.compile(
    r'(?:[^"\\]|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[0-9a-fA-F]{4}'
    r"|\\u(?![dD][89abAB])[0-9a-fA-F]{4}|\\[^u])*"
)
"""Characters and escapes that are complete: half of a surrogate pair waits for the other."""


class CustomInput:
    """The reader of one call."""

    def __init__(self) -> None:
        self._unread = ""
        self._within = False

    def add(self, arguments: str) -> str:
        """What `arguments`, the next piece of JSON, adds to the text."""
        self._unread += arguments
        if not self._within:
            begun = _BEFORE.match(self._unread)
            if begun is None:
                return ""
            self._within, self._unread = True, self._unread[begun.end() :]
        whole = _WHOLE.match(self._unread)
        assert whole is not None, "the pattern matches nothing too"
        self._unread = self._unread[whole.end() :]
        text = str(json.loads(f'"{whole[0]}"', strict=False))
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

"""Reads one call that is a JSON object, while it is generated.

    {"name": "weather", "parameters": {"city": "Oslo"}}

`arguments` and `parameters` mean the same, and `"type": "function"` may come first. In this order
the arguments are handed on character for character as the model wrote them; a call in another
order when it is complete. Llama's and Mistral's formats are made of such objects.
"""

from __future__ import annotations

import enum
import json
import re

MAX_HEAD_CHARS = 4096
"""Looking for a form that can be streamed ends here, so that a hostile head cannot cost n^2."""
MAX_WHOLE_CHARS = 16 * 1024
"""A call in another order is held back until it is complete; a longer one is text."""
_STRING = r'"(?:[^"\\]|\\.)*"'
_HEAD = re.compile(
    rf"""\{{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*({_STRING})\s*,"""
    r"""\s*"(?:arguments|parameters)"\s*:\s*(?=\{)""",
    re.DOTALL,
)
_FIRST_KEY = re.compile(rf"\{{\s*({_STRING})\s*:", re.DOTALL)
_KEYS = frozenset({"name", "type", "id", "arguments", "parameters"})


class ObjectEnd:
    """Finds where a JSON object that comes in parts ends. `depth`: how many are open already."""

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._in_string = False
        self._escaped = False

    def find(self, text: str, start: int = 0) -> int | None:
        """Index after the closing brace; or of a `<` outside strings, which no JSON has."""
        for index in range(start, len(text)):
            char = text[index]
            if self._in_string:
                self._step_string(char)
            elif char == "<":
                return index
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return index + 1
        return None

    def _step_string(self, char: str) -> None:
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        elif char == '"':
            self._in_string = False


class Found(enum.Enum):
    """What is known of an object that may be a call."""

    UNDECIDED = "undecided"
    HEAD = "head"  # its name; its arguments follow
    WHOLE = "whole"  # all of it
    NO_CALL = "no call"


class JsonCall:
    """Decides, for one object, whether it is a call; fed with all of it so far, each time.

    Attributes:
        name: of the function, when it is a call.
        arguments_json: with WHOLE, all of the arguments.
        end: where in the text the head, or the whole, ends.
    """

    def __init__(self) -> None:
        self._object = ObjectEnd()
        self._scanned = 0
        self.name = ""
        self.arguments_json = ""
        self.end = 0

    def look(self, held: str) -> Found:
        """`held` begins with the opening brace."""
        head = _HEAD.match(held, 0, MAX_HEAD_CHARS)
        name = json_string(head[1]) if head else None
        if head and name is not None:
            self.name, self.end = name, head.end()
            return Found.HEAD
        key = _FIRST_KEY.match(held, 0, MAX_HEAD_CHARS)
        if key and json_string(key[1]) not in _KEYS:
            return Found.NO_CALL
        end = self._object.find(held[:MAX_WHOLE_CHARS], self._scanned)
        if end is not None:
            return self._whole(held[:end])
        self._scanned = len(held)
        return Found.NO_CALL if len(held) >= MAX_WHOLE_CHARS else Found.UNDECIDED

    def _whole(self, text: str) -> Found:
        try:
            call = json.loads(text)
        except (ValueError, RecursionError):
            return Found.NO_CALL
        arguments = call.get("arguments", call.get("parameters"))
        if isinstance(arguments, str):
            arguments = _object(arguments)
        if not isinstance(call.get("name"), str) or not isinstance(arguments, dict):
            return Found.NO_CALL
        self.name, self.end = call["name"], len(text)
        self.arguments_json = json.dumps(arguments, ensure_ascii=False)
        return Found.WHOLE


def json_string(text: str) -> str | None:
    """The string that `text` is in JSON, or None."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, str) else None


def _object(text: str) -> object:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value

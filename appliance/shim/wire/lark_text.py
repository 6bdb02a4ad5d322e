"""A Lark grammar without rules that contain themselves, as the regular expression that it is.

Tools for coding describe the text that they take in Lark, most of them a sequence of lines: such a
grammar is regular, and can be held to inside of a JSON string as any pattern can. Owns the reading
of Lark's notation (its "Grammar Reference"). Refuses what is not regular, or not plain text:
recursion, flags, templates, `%ignore`, and imports from elsewhere than `common`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

MAX_PATTERN: Final = 4096
"""What the engine takes: rules that double each other would grow without end."""
_STATEMENT = re.compile(
    r"(?P<kind>[?!]*)(?P<name>_?[A-Za-z]\w*)(?:\.-?\d+)?[ \t]*:(?P<body>.*)", re.DOTALL
)
_IMPORT = re.compile(r"%import[ \t]+common\.(?P<name>\w+)(?:[ \t]*->[ \t]*(?P<alias>\w+))?[ \t]*")
_TOKEN = re.compile(
    r"""\s*(?:
    (?P<comment>//[^\n]*)
    |(?P<string>"(?:[^"\\\n]|\\.)*")(?P<fold>i?)
    |/(?P<regex>(?:[^/\\\n]|\\.)+)/(?P<flags>[imslux]*)
    |->\s*(?P<alias>\w+)
    |~\s*(?P<low>\d+)(?:\s*\.\.\s*(?P<high>\d+))?
    |(?P<range>\.\.)
    |(?P<name>_?[A-Za-z]\w*)
    |(?P<sign>[|()\[\]?*+])
    )""",
    re.VERBOSE,
)
_SPECIAL = re.compile(r"[\\.^$|?*+()\[\]{}/]")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "\\": "\\", '"': '"', "/": "/"}
_COMMON = {
    "CNAME": "[_A-Za-z][_A-Za-z0-9]*",
    "CR": r"\r",
    "DIGIT": "[0-9]",
    "HEXDIGIT": "[0-9A-Fa-f]",
    "INT": "[0-9]+",
    "LCASE_LETTER": "[a-z]",
    "LETTER": "[A-Za-z]",
    "LF": r"\n",
    "NEWLINE": r"(?:\r?\n)+",
    "SIGNED_INT": "[+-]?[0-9]+",
    "UCASE_LETTER": "[A-Z]",
    "WORD": "[A-Za-z]+",
    "WS": r"[ \t\f\r\n]+",
    "WS_INLINE": r"[ \t]+",
}


class LarkError(ValueError):
    """The grammar cannot be held to; the text says why."""


def pattern_of(grammar: str) -> str:
    """The regular expression of exactly the texts that `grammar` admits. Raises LarkError."""
    return _Grammar(grammar).pattern("start", ())


class _Grammar:
    def __init__(self, text: str) -> None:
        self._bodies: dict[str, str] = {}
        self._patterns: dict[str, str] = {}
        for statement in _statements(text):
            self._take(statement)

    def pattern(self, name: str, within: tuple[str, ...]) -> str:
        """That of the rule or terminal `name`, met inside of those of `within`."""
        if name in within:
            raise LarkError(f"{name!r} contains itself, and only what does not can be held to")
        if name not in self._patterns:
            if name not in self._bodies:
                raise LarkError(f"there is no {name!r} in it")
            body = _Body(self, self._bodies[name], (*within, name))
            self._patterns[name] = _bounded(body.whole())
        return self._patterns[name]

    def _take(self, statement: str) -> None:
        if imported := _IMPORT.fullmatch(statement):
            name = imported["name"]
            if name not in _COMMON:
                raise LarkError(f"common.{name} is not known here")
            self._patterns[imported["alias"] or name] = _COMMON[name]
            return
        rule = _STATEMENT.fullmatch(statement)
        if rule is None:
            raise LarkError(f"{statement.split()[0]!r} is not supported")
        if rule["name"] in self._bodies:
            raise LarkError(f"{rule['name']!r} is there twice")
        self._bodies[rule["name"]] = rule["body"]


class _Body:
    """What stands behind the colon, read from left to right."""

    def __init__(self, grammar: _Grammar, text: str, within: tuple[str, ...]) -> None:
        self._grammar = grammar
        self._within = within
        self._tokens = list(_tokens(text))
        self._at = 0

    def whole(self) -> str:
        pattern = self._alternatives()
        if self._at < len(self._tokens):
            raise LarkError(f"{self._tokens[self._at][0].strip()!r} closes nothing")
        return pattern

    def _next(self) -> re.Match[str] | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _alternatives(self) -> str:
        found = [self._sequence()]
        while (token := self._next()) is not None and token["sign"] == "|":
            self._at += 1
            found.append(self._sequence())
        return found[0] if len(found) == 1 else f"(?:{'|'.join(found)})"

    def _sequence(self) -> str:
        parts: list[str] = []
        while (token := self._next()) is not None and token["sign"] not in ("|", ")", "]"):
            self._at += 1
            if token["alias"] is None:
                parts.append(self._repeated(self._item(token)))
        return _bounded("".join(parts))

    def _item(self, token: re.Match[str]) -> str:
        if token["string"] is not None:
            if token["fold"]:
                raise LarkError("strings without regard to case are not supported")
            return _quoted(_text(token["string"]))
        if token["regex"] is not None:
            if token["flags"]:
                raise LarkError("flags of regular expressions are not supported")
            return f"(?:{token['regex']})"
        if token["name"] is not None:
            return self._grammar.pattern(token["name"], self._within)
        if token["sign"] in ("(", "["):
            inner = self._alternatives()
            closing = self._next()
            if closing is None or closing["sign"] != {"(": ")", "[": "]"}[token["sign"]]:
                raise LarkError(f"a {token['sign']!r} is not closed")
            self._at += 1
            return f"(?:{inner})?" if token["sign"] == "[" else inner
        raise LarkError(f"{token[0].strip()!r} stands where nothing is repeated")

    def _repeated(self, item: str) -> str:
        while (token := self._next()) is not None:
            if token["sign"] in ("?", "*", "+"):
                item = f"(?:{item}){token['sign']}"
            elif token["low"] is not None:
                high = token["high"] or token["low"]
                item = f"(?:{item}){{{token['low']},{high}}}"
            else:
                break
            self._at += 1
        return item


def _statements(text: str) -> Iterator[str]:
    """Definitions and directives, each with the lines that go on with it."""
    lines: list[str] = []
    for line in text.splitlines():
        begins = line[:1] not in ("", " ", "\t", "|", ")", "]", "/")
        if begins and lines:
            yield "\n".join(lines)
            lines = []
        if line.strip() and not line.lstrip().startswith("//"):
            lines.append(line)
    if lines:
        yield "\n".join(lines)


def _tokens(text: str) -> Iterator[re.Match[str]]:
    at, end = 0, len(text.rstrip())
    while at < end:
        token = _TOKEN.match(text, at)
        if token is None or token["range"] is not None:
            raise LarkError(f"{text[at:].split()[0]!r} is not supported")
        at = token.end()
        if token["comment"] is None:
            yield token


def _text(string: str) -> str:
    def unescaped(match: re.Match[str]) -> str:
        if match[1] not in _ESCAPES:
            raise LarkError(f"the escape {match[0]!r} is not supported")
        return _ESCAPES[match[1]]

    return re.sub(r"\\(.)", unescaped, string[1:-1])


def _quoted(text: str) -> str:
    """`text` as a pattern; more than one character is a group, to be repeated as one."""
    quoted = _SPECIAL.sub(r"\\\g<0>", text).replace("\n", r"\n")
    return quoted if len(text) == 1 else f"(?:{quoted})"


def _bounded(pattern: str) -> str:
    if len(pattern) > MAX_PATTERN:
        raise LarkError(f"as one pattern it has more than {MAX_PATTERN} characters")
    return pattern

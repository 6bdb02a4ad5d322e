"""What of a JSON schema can be honoured exactly, said before anything is compiled.

Owns the list of keywords. The schema is copied with only what is enforced; annotations are
dropped; every other keyword is refused, naming it and its place, so that nothing is ignored in
silence. Sizes are bounded here too. Source: JSON Schema 2020-12, core and validation.

Stricter than the text of the standard where an automaton cannot tell: an object's free keys may
repeat in the output, so a count of distinct keys cannot be promised (`minProperties`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Final, NoReturn
from urllib.parse import quote, unquote

from appliance.engine.grammar.finite import is_endless
from appliance.engine.grammar.formats import PATTERNS, anchored
from appliance.engine.grammar.pattern import MAX_SIZE, PatternError, check_pattern
from appliance.errors import RequestError

MAX_BYTES: Final = 256 * 1024
MAX_DEPTH: Final = 100
"""Levels of JSON in the schema's own text."""
MAX_SCHEMAS: Final = 5_000
MAX_VALUES: Final = 10_000
"""Values of `enum`, over the whole schema."""
MAX_LITERAL: Final = 4096
"""Characters of a name and of a value of `enum` or `const`: what is forced is encoded at once."""
MAX_COUNT: Final = 1_000_000
"""Of items, properties and characters."""
MAX_MULTIPLE: Final = 10_000
"""The automaton of `multipleOf` has a state for each remainder, at the finest decimal place."""

MAX_EXACT: Final = 1 << 53
"""The compiler's numbers are doubles."""

TYPES: Final = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})
ANNOTATIONS: Final = frozenset(
    {
        "$comment", "$schema", "title", "description", "default", "example", "examples",
        "deprecated", "readOnly", "writeOnly", "contentEncoding", "contentMediaType",
        "discriminator",
    }
)  # fmt: skip
_ONE = frozenset({"items", "additionalProperties"})
_LISTS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_COUNTS = frozenset({"minItems", "maxItems", "minLength", "maxLength", "maxProperties"})
_BOUNDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
_UNFIT = {
    "minProperties": "the number of distinct keys cannot be enforced beyond those required",
    "additionalItems": "write `items` for what follows `prefixItems`",
    "$id": "only the root may have an `$id`",
}
_UNWRITABLE = re.compile("[\x00-\x07\x0b\x0e-\x1f\ud800-\udfff]")
"""Characters that JSON writes as `\\u` only, which the output has no use for."""
Schema = bool | dict[str, object]


def checked(text: str, param: str) -> Schema:
    """`text` as a schema of what is enforced. Raises RequestError naming `param` and the place."""
    if len(text.encode()) > MAX_BYTES:
        raise RequestError(f"the schema has more than {MAX_BYTES} bytes", param=param)
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise RequestError("the schema is not valid JSON", param=param) from None
    if _too_deep(value):
        raise RequestError(f"the schema is nested more than {MAX_DEPTH} deep", param=param)
    return _Check(value, param).whole()


class _Check:
    """One schema under examination. `_places` are the JSON pointers of its subschemas."""

    def __init__(self, root: object, param: str) -> None:
        self._root = root
        self._param = param
        self._places: set[str] = set()
        self._references: list[tuple[str, str]] = []
        self._values = 0
        self._size = 0

    def whole(self) -> Schema:
        result = self._schema(self._root, "", self._param)
        for target, at in self._references:
            if target not in self._places:
                raise RequestError(
                    f"`$ref` names no schema of this document: #{target}",
                    param=at,
                    hint="references are `#`, `#/$defs/NAME` or another place in the same schema",
                )
        if is_endless(result):
            raise RequestError(
                "nothing finite satisfies the schema: it requires itself",
                param=self._param,
                hint="make a property optional, or allow null or an empty array",
            )
        return result

    def _schema(self, given: object, pointer: str, at: str) -> Schema:
        self._places.add(pointer)
        if len(self._places) > MAX_SCHEMAS:
            raise RequestError(f"the schema has more than {MAX_SCHEMAS} parts", param=self._param)
        if isinstance(given, bool):
            return given
        if not isinstance(given, dict):
            raise RequestError("a schema must be an object or a boolean", param=at)
        result: dict[str, object] = {}
        for keyword, value in given.items():
            place = f"{at}.{keyword}"
            if keyword in _ONE:
                result[keyword] = self._schema(value, f"{pointer}/{keyword}", place)
            elif keyword in _LISTS:
                result[keyword] = self._list(value, f"{pointer}/{keyword}", place)
            elif keyword in _MAPS:
                result[keyword] = self._map(value, f"{pointer}/{keyword}", place, keyword)
            elif keyword in _VALUES:
                _VALUES[keyword](self, value, place)
                result[keyword] = _encoded(value) if keyword == "$ref" else value
            elif keyword == "minProperties":
                self._fewest(given, value, place)
            elif keyword != "$id" or pointer:
                self._other(keyword, place)
        return _with_format(result)

    def _list(self, value: object, pointer: str, at: str) -> list[Schema]:
        if not isinstance(value, list) or not value:
            raise RequestError("this must be an array of schemas, not empty", param=at)
        return [
            self._schema(item, f"{pointer}/{index}", f"{at}[{index}]")
            for index, item in enumerate(value)
        ]

    def _map(self, value: object, pointer: str, at: str, keyword: str) -> dict[str, Schema]:
        if not isinstance(value, dict):
            raise RequestError("this must be an object of schemas", param=at)
        if keyword == "patternProperties":
            for pattern in value:
                self._pattern(pattern, f"{at}.{pattern}")
        elif keyword == "properties":
            self._names(list(value), at)
        return {
            name: self._schema(item, f"{pointer}/{_escaped(name)}", f"{at}.{name}")
            for name, item in value.items()
        }

    def _type(self, value: object, at: str) -> None:
        names = value if isinstance(value, list) else [value]
        if not names or not all(isinstance(name, str) and name in TYPES for name in names):
            raise RequestError(f"types are {', '.join(sorted(TYPES))}", param=at)

    def _enum(self, value: object, at: str) -> None:
        if not isinstance(value, list) or not value:
            raise RequestError("`enum` must be an array, not empty", param=at)
        self._values += len(value)
        if self._values > MAX_VALUES:
            raise RequestError(f"the schema lists more than {MAX_VALUES} values", param=at)
        for index, item in enumerate(value):
            self._const(item, f"{at}[{index}]")

    def _const(self, value: object, at: str) -> None:
        if len(json.dumps(value, ensure_ascii=False)) > MAX_LITERAL:
            raise RequestError(f"this has more than {MAX_LITERAL} characters", param=at)
        self._names(value, at)

    def _names(self, value: object, at: str) -> None:
        for item in _leaves(value):
            if isinstance(item, str) and len(item) > MAX_LITERAL:
                raise RequestError(f"a name has more than {MAX_LITERAL} characters", param=at)
            if isinstance(item, str) and _UNWRITABLE.search(item):
                raise RequestError("control characters cannot be enforced", param=at)
            if isinstance(item, int | float) and abs(item) > MAX_EXACT:
                raise RequestError("numbers beyond 2^53 cannot be enforced", param=at)

    def _required(self, value: object, at: str) -> None:
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise RequestError("`required` must be an array of names", param=at)
        self._names(value, at)

    def _count(self, value: object, at: str) -> None:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not 0 <= value <= MAX_COUNT:  # type: ignore[operator]
            raise RequestError(f"this must be a whole number from 0 to {MAX_COUNT}", param=at)

    def _number(self, value: object, at: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > MAX_EXACT:
            raise RequestError("this must be a number between -2^53 and 2^53", param=at)

    def _multiple(self, value: object, at: str) -> None:
        self._number(value, at)
        digits = f"{value:.6f}".rstrip("0").replace(".", "")
        exact = float(f"{value:.6f}") == value
        if not exact or not 0 < int(digits) <= MAX_MULTIPLE:
            raise RequestError(
                f"`multipleOf` must be above 0, with at most six decimal places, and at most"
                f" {MAX_MULTIPLE} in units of the last",
                param=at,
            )

    def _pattern(self, value: object, at: str) -> None:
        if not isinstance(value, str):
            raise RequestError("a pattern must be a string", param=at)
        try:
            self._size += check_pattern(value)
        except PatternError as error:
            raise RequestError(f"this pattern cannot be enforced: {error}", param=at) from None
        if self._size > MAX_SIZE:
            raise RequestError(
                f"the schema's patterns unfold to more than {MAX_SIZE} states", param=at
            )

    def _format(self, value: object, at: str) -> None:
        if value not in PATTERNS:
            raise RequestError(
                f"this `format` cannot be enforced: {str(value)[:64]!r}",
                param=at,
                hint=f"formats are {', '.join(sorted(PATTERNS))}",
                code="unsupported_parameter",
            )

    def _reference(self, value: object, at: str) -> None:
        if not isinstance(value, str) or not (value == "#" or value.startswith("#/")):
            raise RequestError(
                "`$ref` must be `#` or begin with `#/`: nothing is fetched",
                param=at,
                code="unsupported_parameter",
            )
        self._references.append((unquote(value[1:]), at))

    def _fewest(self, schema: dict[str, object], value: object, at: str) -> None:
        """`minProperties`, which holds by itself if so many are required."""
        self._count(value, at)
        required = schema.get("required")
        known = len(set(required)) if isinstance(required, list) else 0
        if isinstance(value, int) and value > known:
            self._refuse("minProperties", at)

    def _other(self, keyword: str, at: str) -> None:
        if keyword not in ANNOTATIONS:
            self._refuse(keyword, at)

    def _refuse(self, keyword: str, at: str) -> NoReturn:
        reason = _UNFIT.get(keyword, "the output could not be held to it")
        raise RequestError(
            f"the schema keyword `{keyword[:64]}` is not supported: {reason}",
            param=at,
            hint="leave it out and check the answer yourself",
            code="unsupported_parameter",
        )


_VALUES: Final[dict[str, Callable[[_Check, object, str], None]]] = {
    "type": _Check._type,
    "enum": _Check._enum,
    "const": _Check._const,
    "required": _Check._required,
    "multipleOf": _Check._multiple,
    "pattern": _Check._pattern,
    "format": _Check._format,
    "$ref": _Check._reference,
    **dict.fromkeys(_COUNTS, _Check._count),
    **dict.fromkeys(_BOUNDS, _Check._number),
}
KEYWORDS: Final = frozenset(_VALUES) | _ONE | _LISTS | _MAPS
"""What is enforced."""


def _with_format(schema: dict[str, object]) -> Schema:
    """`format` as the pattern that stands for it; beside a pattern of its own, both hold."""
    name = schema.pop("format", None)
    if name is None:
        return schema
    if name == "hostname":  # RFC 1035, 2.3.4
        given = schema.get("maxLength", MAX_COUNT)
        assert isinstance(given, int)
        schema["maxLength"] = min(253, given)
    assert isinstance(name, str)
    if "pattern" not in schema:
        schema["pattern"] = anchored(name)
        return schema
    extra = {"pattern": anchored(name)}
    present = schema.get("allOf", [])
    assert isinstance(present, list)
    schema["allOf"] = [*present, extra]
    return schema


def _encoded(reference: object) -> str:
    """A checked `$ref` with its pointer as RFC 3986 wants it, however it was written."""
    assert isinstance(reference, str)
    return "#" + quote(unquote(reference[1:]), safe="/~")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _too_deep(value: object) -> bool:
    """Whether arrays and objects are nested deeper than MAX_DEPTH."""
    level: list[object] = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            item
            for outer in level
            if isinstance(outer, dict | list)
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(level)


def _escaped(name: str) -> str:
    """RFC 6901, section 3."""
    return name.replace("~", "~0").replace("/", "~1")


def _leaves(value: object) -> Iterator[object]:
    """Every scalar inside a JSON value, and every name."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield name
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    else:
        yield value

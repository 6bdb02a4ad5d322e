"""What a place of a request may hold, in words: from its type, for the answer to who sent another.

Owns the words; the bounds are those of the types themselves, so that both ends of a range are said
and none can be forgotten. Refuses to quote more of a request than a short value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache

import msgspec
from msgspec import inspect

_STEP = re.compile(r"\[(?P<index>\d+)\]|\[\.\.\.\]|\.?(?P<name>[^.\[]+)")
_LONGEST = 40
"""Characters of a value that are quoted."""


def expected(kind: type, path: str, *, key: bool = False) -> str:
    """What may stand at `path` of a `kind`, such as "a number from 0 to 2"; empty if unknown.

    `path` is msgspec's, for example `messages[0].role` or `logit_bias[...]`; `key` asks for the
    names of the object there.
    """
    kinds = [_type_of(kind)]
    for step in _STEP.finditer(path):
        kinds = [inner for outer in kinds for inner in _below(outer, step)]
    if key:
        kinds = [k.key_type for k in _alternatives(kinds) if isinstance(k, inspect.DictType)]
    return _said(_alternatives(kinds))


def found(given: object, path: str) -> str:
    """What stands there, such as "3" or "a string"; empty if that cannot be said."""
    for step in _STEP.finditer(path):
        try:
            at = step["name"] if step["index"] is None else int(step["index"])
            given = given[at]  # type: ignore[index]  # TypeError if nothing is in it
        except (LookupError, TypeError):
            return ""
    return _value(given)


@cache
def _type_of(kind: type) -> inspect.Type:
    return inspect.type_info(kind)


def _below(outer: inspect.Type, step: re.Match[str]) -> Iterator[inspect.Type]:
    for kind in _alternatives([outer]):
        match kind:
            case inspect.StructType():
                if step["name"] is not None and step["name"] == kind.tag_field:
                    yield inspect.LiteralType((str(kind.tag),))
                yield from (f.type for f in kind.fields if f.encode_name == step["name"])
            case inspect.ListType() if step["name"] is None:
                yield kind.item_type
            case inspect.DictType() if step["index"] is None:
                yield kind.value_type


def _alternatives(kinds: Iterable[inspect.Type]) -> Iterator[inspect.Type]:
    for kind in kinds:
        match kind:
            case inspect.UnionType():
                yield from _alternatives(kind.types)
            case inspect.Metadata():
                yield from _alternatives([kind.type])
            case _:
                yield kind


def _said(kinds: Iterable[inspect.Type]) -> str:
    """The alternatives; null, which most parameters take, is only said where it is the only one."""
    values: dict[str, None] = {}
    others: dict[str, None] = {}
    for kind in kinds:
        if isinstance(kind, inspect.LiteralType):
            values |= dict.fromkeys(_quoted(value) for value in kind.values)
        elif words := _words(kind):
            others[words] = None
    if len(others) + bool(values) > 1:
        others.pop("null", None)
    if values:
        others[f"one of {', '.join(values)}" if len(values) > 1 else next(iter(values))] = None
    return " or ".join(others)


def _words(kind: inspect.Type) -> str:
    match kind:
        case inspect.NoneType():
            return "null"
        case inspect.BoolType():
            return "a boolean"
        case inspect.IntType():
            return f"a whole number{_range(kind)}"
        case inspect.FloatType():
            return f"a number{_range(kind)}"
        case inspect.StrType() if kind.pattern is not None:
            return f"a string that matches {kind.pattern}"
        case inspect.StrType():
            return f"a string{_length(kind, 'character')}"
        case inspect.ListType():
            return f"an array{_length(kind, 'entry', 'entries')}"
        case inspect.DictType():
            return f"an object{_length(kind, 'name')}"
        case inspect.StructType():
            return "an object"
        case _:
            return ""


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    low = f" above {_plain(kind.gt)}" if kind.gt is not None else ""
    if kind.ge is not None:
        low = f" from {_plain(kind.ge)}"
    if kind.le is None:
        return low
    return f"{low}{' and up' if kind.ge is None else ''} to {_plain(kind.le)}"


def _plain(number: float) -> str:
    return f"{number:.16g}" if isinstance(number, float) else str(number)


def _length(
    kind: inspect.StrType | inspect.ListType | inspect.DictType, one: str, many: str = ""
) -> str:
    low, high = kind.min_length or 0, kind.max_length
    several = many or f"{one}s"
    if high is not None:
        return f" of {low} to {high} {several}" if low else f" of up to {high} {several}"
    return f" of at least {low} {one if low == 1 else several}" if low else ""


def _quoted(value: object) -> str:
    return f"'{value}'" if isinstance(value, str) else msgspec.json.encode(value).decode()


def _value(given: object) -> str:
    match given:
        case None | bool():
            return msgspec.json.encode(given).decode()
        case int() | float():
            return _short(_plain(given), "a number")
        case str():
            return _short(f"'{given}'", f"a string of {len(given)} characters")
        case list():
            return f"an array of {len(given)}" if given else "an empty array"
        case dict():
            return f"an object of {len(given)}" if given else "an empty object"
        case _:
            return ""


def _short(text: str, otherwise: str) -> str:
    return text if len(text) <= _LONGEST else otherwise

"""Request bodies into typed requests, refusing by name what does not fit.

msgspec checks and converts in one pass; its message ends with a path such as `$.messages[0].role`,
which becomes the `param` of the error. A name that stands twice in an object is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NoReturn, TypeVar, get_origin
from urllib.parse import parse_qsl

import msgspec
from starlette.types import Scope

from appliance.errors import RequestError
from appliance.shim.exchange import exchange_of
from appliance.shim.wire.duplicates import refuse_duplicates
from appliance.shim.wire.parameters import Parameter

T = TypeVar("T")
_PATH = re.compile(
    r"^(?P<what>.*?)(?: - at (?:`key` in )?`\$\.?(?P<path>[^`]*?)(?:\[\.\.\.\])?`)?$", re.DOTALL
)
_ITEM = re.compile(r"\[\d+\]`$")
"""The place in a list that a query gives by repeating a name."""
_FIELD = re.compile(r"Object (?P<how>contains unknown|missing required) field `(?P<name>[^`]*)`")


def decode(
    scope: Scope,
    body: bytes,
    decoder: msgspec.json.Decoder[T],
    parameters: Sequence[Parameter],
    prepare: Callable[[object], None] | None = None,
) -> T:
    """`body` as `decoder` has it; `parameters` explains names that are known, not supported.

    `prepare` may complete the body in place before it is checked. Raises RequestError naming the
    parameter.
    """
    _check_media_type(scope)
    exchange_of(scope).body = body
    try:
        if prepare is None:
            request = decoder.decode(body)
        else:
            given = msgspec.json.decode(body)
            prepare(given)
            request = msgspec.convert(given, decoder.type)
    except msgspec.ValidationError as error:
        _refuse(str(error), parameters)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise RequestError("the body is not valid JSON", code="invalid_json") from None
    except RecursionError:
        raise RequestError("the body is nested too deeply", code="invalid_json") from None
    refuse_duplicates(body)
    for parameter in parameters:
        if parameter.treatment == "limited":
            parameter.check(request)
    return request


def decode_query(scope: Scope, kind: type[T], parameters: Sequence[Parameter] = ()) -> T:
    """The query of the URL as `kind`; `parameters` explains names that are not supported.

    Raises RequestError naming the parameter.
    """
    try:
        pairs = parse_qsl(
            scope["query_string"].decode("ascii"), keep_blank_values=True, errors="strict"
        )
        return msgspec.convert(_gathered(pairs, kind), kind, strict=False)
    except msgspec.ValidationError as error:
        _refuse(_ITEM.sub("`", str(error)), parameters)
    except ValueError:
        raise RequestError(
            "the query of the URL cannot be read", hint="percent-encode it", code="invalid_value"
        ) from None


def _gathered(pairs: Sequence[tuple[str, str]], kind: type) -> dict[str, str | list[str]]:
    """The values by name. A list is spelled `name[]=a&name[]=b`, or without the brackets; any
    other name with two values would mean the one or the other, so it is refused."""
    lists, others = _names_of(kind)
    lone: dict[str, str] = {}
    many: dict[str, list[str]] = {}
    for name, value in pairs:
        plain = name.removesuffix("[]")
        if plain in lists:
            many.setdefault(plain, []).append(value)
        elif name in lone:
            raise RequestError(
                f"`{name}` is there twice", param=name, hint="say it once", code="invalid_value"
            )
        else:
            lone[name if plain in others else plain] = value
    return {**lone, **many}


@cache
def _names_of(kind: type) -> tuple[frozenset[str], frozenset[str]]:
    """The parameters of the query `kind` that may have several values, and the others."""
    fields = msgspec.structs.fields(kind)
    lists = frozenset(field.encode_name for field in fields if get_origin(field.type) is list)
    return lists, frozenset(field.encode_name for field in fields) - lists


def convert_form(fields: Mapping[str, object], kind: type[T], parameters: Sequence[Parameter]) -> T:
    """The fields of a form as `kind`. Raises RequestError naming the field."""
    try:
        return msgspec.convert(fields, kind, strict=False)
    except msgspec.ValidationError as error:
        _refuse(str(error), parameters)


def _check_media_type(scope: Scope) -> None:
    values = [value for name, value in scope["headers"] if name == b"content-type"]
    media_type = values[0].split(b";")[0].strip().lower() if len(values) == 1 else b""
    if media_type != b"application/json":
        raise RequestError(
            "the body must be JSON",
            hint="send it with `Content-Type: application/json`",
            code="unsupported_media_type",
        )
    encodings = [value for name, value in scope["headers"] if name == b"content-encoding"]
    if any(value.strip().lower() not in (b"", b"identity") for value in encodings):
        raise RequestError(
            "the body is compressed",
            hint="send it as it is, without `Content-Encoding`",
            code="unsupported_media_type",
        )


def _refuse(message: str, parameters: Sequence[Parameter]) -> NoReturn:
    match = _PATH.match(message)
    assert match is not None, "the pattern matches every text"
    what, path = match["what"], match["path"] or ""
    field = _FIELD.match(what)
    if field is None:
        raise RequestError(what, param=path or None, code="invalid_value")
    param = f"{path}.{field['name']}" if path else field["name"]
    if field["how"] == "missing required":
        raise RequestError(f"`{param}` is required", param=param, code="missing_parameter")
    known = next((p for p in parameters if p.name == param), None)
    if known is not None:
        known.refuse()
    raise RequestError(f"unknown parameter `{param}`", param=param, code="unknown_parameter")

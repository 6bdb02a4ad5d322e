"""Request bodies into typed requests, refusing by name what does not fit.

msgspec checks and converts in one pass; its message ends with a path such as `$.messages[0].role`,
which becomes the `param` of the error. A name that stands twice in an object is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TypeVar, get_origin
from urllib.parse import parse_qsl

import msgspec
from starlette.types import Scope

from appliance.errors import RequestError
from appliance.shim.exchange import exchange_of
from appliance.shim.wire.duplicates import refuse_duplicates
from appliance.shim.wire.expectation import expected, found
from appliance.shim.wire.parameters import Parameter

T = TypeVar("T")
_PATH = re.compile(
    r"^(?P<what>.*?)(?: - at (?P<key>`key` in )?`\$\.?(?P<path>[^`]*)`)?$", re.DOTALL
)
_ITEM = re.compile(r"\[\d+\]`$")
"""The place in a list that a query gives by repeating a name."""
_ANY = "[...]"
"""At the end of a path: some value of an object, whose name msgspec does not say."""
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
        request = _typed(body, decoder, parameters, prepare)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise RequestError("the body is not valid JSON", code="invalid_json") from None
    except RecursionError:
        raise RequestError("the body is nested too deeply", code="invalid_json") from None
    refuse_duplicates(body)
    for parameter in parameters:
        if parameter.treatment == "limited":
            parameter.check(request)
    return request


def _typed(
    body: bytes,
    decoder: msgspec.json.Decoder[T],
    parameters: Sequence[Parameter],
    prepare: Callable[[object], None] | None,
) -> T:
    try:
        if prepare is None:
            return decoder.decode(body)
        given = msgspec.json.decode(body)
        prepare(given)
        return msgspec.convert(given, decoder.type)
    except msgspec.ValidationError as error:
        given = as_given(body)
        if _drop_unasked(given, parameters):
            return _typed(msgspec.json.encode(given), decoder, parameters, prepare)
        raise refused(str(error), decoder.type, given, parameters) from None


def decode_query(scope: Scope, kind: type[T], parameters: Sequence[Parameter] = ()) -> T:
    """The query of the URL as `kind`; `parameters` explains names that are not supported.

    Raises RequestError naming the parameter.
    """
    try:
        pairs = parse_qsl(
            scope["query_string"].decode("ascii"), keep_blank_values=True, errors="strict"
        )
        values = _gathered(pairs, kind)
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise refused(_ITEM.sub("`", str(error)), kind, values, parameters) from None
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
        raise refused(str(error), kind, fields, parameters) from None


def as_given(text: bytes) -> object:
    """`text` as plain values, to say what is in it; UNSET where it is not JSON to its end."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return msgspec.UNSET


def _drop_unasked(given: object, parameters: Sequence[Parameter]) -> bool:
    """Take parameters out of `given` that are known, not possible here, and null: clients that
    write every field that they know ask for nothing by it. Whether there were any."""
    if not isinstance(given, dict):
        return False
    unasked = {p.name for p in parameters if p.treatment == "refused" and p.name in given}
    unasked = {name for name in unasked if given[name] is None}
    for name in unasked:
        del given[name]
    return bool(unasked)


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


def refused(
    message: str, kind: type, given: object, parameters: Sequence[Parameter] = ()
) -> RequestError:
    """The error for msgspec's `message` about `given`, which is no `kind`."""
    match = _PATH.match(message)
    assert match is not None, "the pattern matches every text"
    what, path = match["what"], match["path"] or ""
    field = _FIELD.match(what)
    if field is None:
        return _misfit(what, kind, given, path, key=match["key"] is not None)
    param = f"{path}.{field['name']}" if path else field["name"]
    if field["how"] == "missing required":
        return RequestError(f"`{param}` is required", param=param, code="missing_parameter")
    known = next((p for p in parameters if p.name == param), None)
    if known is not None:
        return known.refusal()
    return RequestError(
        f"unknown parameter `{param}`",
        param=param,
        hint="leave it out; GET /docs has those that there are",
        code="unknown_parameter",
    )


def _misfit(what: str, kind: type, given: object, path: str, *, key: bool) -> RequestError:
    """That the value at `path` cannot be taken: what may stand there, and what does."""
    param = path.removesuffix(_ANY)
    wanted, got = expected(kind, path, key=key), "" if key else found(given, path)
    if not wanted:
        return RequestError(what, param=param or None, code="invalid_value")
    place = f"a name in `{param}`" if key else f"`{param}`" if param else "the body"
    one = f"one of the values of {place}" if path.endswith(_ANY) and not key else place
    return RequestError(
        f"Invalid value for {one}: expected {wanted}" + (f", but got {got} instead" if got else ""),
        param=param or None,
        hint="correct it; GET /docs says what it is for",
        code="invalid_value",
    )

"""`response_format` and `tool_choice` on the wire, and what they are in the engine's words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from appliance.errors import RequestError
from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.wire.chosen import Chosen, allowed, forced, free, named

Name = Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]
_ANSWER_S = re.compile(r"^structured\.json_schema")
_FUNCTION_S = re.compile(r"^tools\[(\d+)\]\.function\.parameters(.*)", re.DOTALL)


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class TextFormat(_Strict, frozen=True, tag_field="type", tag="text"):
    """The model's own form."""


class JsonObjectFormat(_Strict, frozen=True, tag_field="type", tag="json_object"):
    """Any JSON object."""


class JsonSchema(_Strict, frozen=True):
    """`strict` or not, the answer satisfies the schema; without a schema it is any JSON."""

    name: Name
    description: str | None = None
    schema: dict[str, object] | None = None
    strict: bool | None = None


class JsonSchemaFormat(_Strict, frozen=True, tag_field="type", tag="json_schema"):
    """JSON that a schema admits."""

    json_schema: JsonSchema


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat


class FunctionName(_Strict, frozen=True):
    name: Name


class NamedChoice(_Strict, frozen=True, tag_field="type", tag="function"):
    """This function must be called."""

    function: FunctionName


class AllowedTool(_Strict, frozen=True):
    type: Literal["function"]
    function: FunctionName


class AllowedTools(_Strict, frozen=True):
    mode: Literal["auto", "required"]
    tools: Annotated[list[AllowedTool], Meta(min_length=1)]


class AllowedChoice(_Strict, frozen=True, tag_field="type", tag="allowed_tools"):
    """Of the tools only these, for this request."""

    allowed_tools: AllowedTools


ToolChoice = Literal["auto", "none", "required"] | NamedChoice | AllowedChoice


def structured(given: ResponseFormat | None) -> pb.StructuredOutput | None:
    """`response_format` in the engine's words; None leaves the form to the model."""
    if isinstance(given, JsonObjectFormat):
        return pb.StructuredOutput(json_object=True)
    if isinstance(given, JsonSchemaFormat):
        return schema_form(given.json_schema.schema or {})
    return None


def schema_form(schema: dict[str, object]) -> pb.StructuredOutput:
    """JSON that `schema` admits, in the engine's words."""
    return pb.StructuredOutput(json_schema=msgspec.json.encode(schema).decode())


def choose(choice: ToolChoice | None, tools: Sequence[pb.Tool]) -> Chosen:
    """The chat API's `choice` among `tools`. Raises RequestError if one is not there."""
    match choice:
        case None | "auto":
            return free(tools)
        case "none":
            return Chosen()
        case "required":
            return forced(tools, "tool_choice")
        case NamedChoice():
            return named(tools, choice.function.name, "tool_choice.function.name")
        case AllowedChoice():
            names = {
                f"tool_choice.allowed_tools.tools[{index}].function.name": tool.function.name
                for index, tool in enumerate(choice.allowed_tools.tools)
            }
            return allowed(tools, names, required=choice.allowed_tools.mode == "required")


@contextmanager
def in_the_callers_words(
    form: str, function: Callable[[int, str], str], kept: Sequence[int] | None = None
) -> Iterator[None]:
    """The engine's errors name a place in a schema; let them name it as the caller knows it.

    form: the place of the answer's schema. function: that of what stands inside of a function's, by
    the number of its tool. kept: which of the caller's tools the engine has; None: all.
    """

    def function_s(match: re.Match[str]) -> str:
        index = int(match[1])
        return function(index if kept is None else kept[index], match[2])

    try:
        yield
    except RequestError as error:
        if error.param is not None:
            error.param = _ANSWER_S.sub(form, _FUNCTION_S.sub(function_s, error.param))
        raise

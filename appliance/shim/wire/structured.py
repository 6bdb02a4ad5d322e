"""`response_format` and `tool_choice` on the wire, and what they are in the engine's words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from appliance.errors import RequestError
from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.wire.messages import Tool

Name = Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]
_ENGINE_PARAM = "structured.json_schema"


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
        schema = msgspec.json.encode(given.json_schema.schema or {})
        return pb.StructuredOutput(json_schema=schema.decode())
    return None


def choose(
    choice: ToolChoice | None, tools: Sequence[Tool]
) -> tuple[Sequence[Tool], pb.ToolChoice, str]:
    """The tools that the model may call, the engine's choice, and the name with it.

    Raises RequestError for a choice among tools that are not there.
    """
    match choice:
        case None | "auto":
            return tools, pb.TOOL_CHOICE_AUTO, ""
        case "none":
            return (), pb.TOOL_CHOICE_NONE, ""
        case "required":
            _find("tools", bool(tools), "tool_choice")
            return tools, pb.TOOL_CHOICE_REQUIRED, ""
        case NamedChoice():
            name = choice.function.name
            _find(name, any(t.function.name == name for t in tools), "tool_choice.function.name")
            return tools, pb.TOOL_CHOICE_NAMED, name
        case AllowedChoice():
            known = {tool.function.name for tool in tools}
            names = [tool.function.name for tool in choice.allowed_tools.tools]
            for index, name in enumerate(names):
                param = f"tool_choice.allowed_tools.tools[{index}].function.name"
                _find(name, name in known, param)
            chosen = [tool for tool in tools if tool.function.name in names]
            required = choice.allowed_tools.mode == "required"
            return chosen, pb.TOOL_CHOICE_REQUIRED if required else pb.TOOL_CHOICE_AUTO, ""


@contextmanager
def in_the_callers_words(place: str) -> Iterator[None]:
    """The engine's errors name a place in a schema; let them name it from `place` on."""
    try:
        yield
    except RequestError as error:
        if error.param is None or not error.param.startswith(_ENGINE_PARAM):
            raise
        param = place + error.param.removeprefix(_ENGINE_PARAM)
        raise RequestError(error.message, param=param, hint=error.hint, code=error.code) from None


def _find(wanted: str, found: bool, param: str) -> None:
    if not found:
        raise RequestError(
            f"`tool_choice` asks for {wanted}, which `tools` does not have",
            param=param,
            code="invalid_value",
        )

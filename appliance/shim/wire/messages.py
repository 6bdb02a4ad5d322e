"""The messages of a chat, as the API has them and as the engine wants them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.wire import images


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class TextPart(_Strict, frozen=True, tag_field="type", tag="text"):
    """Text, which every model understands."""

    text: str


class ImageUrl(_Strict, frozen=True):
    url: str
    detail: images.Detail | None = None


class ImagePart(_Strict, frozen=True, tag_field="type", tag="image_url"):
    """An image, for models that read them."""

    image_url: ImageUrl


Content = str | Annotated[list[TextPart], Meta(min_length=1)]
Shown = str | Annotated[list[TextPart | ImagePart], Meta(min_length=1)]


class CalledFunction(_Strict, frozen=True):
    name: str
    arguments: str


class ToolCall(_Strict, frozen=True, kw_only=True):
    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class _Message(_Strict, frozen=True, kw_only=True, tag_field="role"):
    name: str | None = None


class System(_Message, frozen=True, kw_only=True, tag="system"):
    content: Content


class Developer(_Message, frozen=True, kw_only=True, tag="developer"):
    """The newer name of the system role."""

    content: Content


class User(_Message, frozen=True, kw_only=True, tag="user"):
    content: Shown


class Assistant(_Message, frozen=True, tag="assistant"):
    """An earlier answer. What the SDKs send back as null with it is taken as null only,
    annotations also as an empty list."""

    content: Content | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    refusal: None = None
    annotations: Annotated[list[object], Meta(max_length=0)] | None = None
    audio: None = None
    function_call: None = None


class ToolResult(_Message, frozen=True, kw_only=True, tag="tool"):
    content: Content
    tool_call_id: str


Message = System | Developer | User | Assistant | ToolResult


class Function(_Strict, frozen=True):
    name: Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, object] | None = None
    strict: bool | None = None


class Tool(_Strict, frozen=True):
    type: Literal["function"]
    function: Function


def to_engine(messages: Iterable[Message]) -> list[pb.ChatMessage]:
    """`messages` in the engine's words. Raises RequestError for an image that cannot be one."""
    return [_to_engine(message, f"messages[{i}].content") for i, message in enumerate(messages)]


def _to_engine(message: Message, at: str) -> pb.ChatMessage:
    result = pb.ChatMessage(
        role="system" if isinstance(message, Developer) else _role(message),
        content=_parts(message.content, at),
        name=message.name or "",
    )
    if isinstance(message, ToolResult):
        result.tool_call_id = message.tool_call_id
    if isinstance(message, Assistant):
        result.reasoning = message.reasoning_content or ""
        result.tool_calls.extend(
            pb.ToolCall(id=call.id, name=call.function.name, arguments_json=call.function.arguments)
            for call in message.tool_calls or ()
        )
    return result


def tools_to_engine(tools: Iterable[Tool]) -> list[pb.Tool]:
    """`tools` in the engine's words; a function without parameters takes an empty object."""
    return [
        tool_to_engine(
            tool.function.name,
            tool.function.description,
            tool.function.parameters,
            strict=bool(tool.function.strict),
        )
        for tool in tools
    ]


def tool_to_engine(
    name: str,
    description: str | None,
    parameters: dict[str, object] | None,
    *,
    strict: bool = False,
) -> pb.Tool:
    """One function in the engine's words."""
    schema = parameters or {"type": "object", "properties": {}}
    return pb.Tool(
        name=name,
        description=description or "",
        parameters_json=msgspec.json.encode(schema).decode(),
        strict=strict,
    )


def _role(message: Message) -> str:
    return str(message.__struct_config__.tag)


def _parts(
    content: str | list[TextPart] | list[TextPart | ImagePart] | None, at: str
) -> list[pb.ContentPart]:
    if content is None:
        return []
    if isinstance(content, str):
        return [pb.ContentPart(text=content)]
    return [_part(part, f"{at}[{i}]") for i, part in enumerate(content)]


def _part(part: TextPart | ImagePart, at: str) -> pb.ContentPart:
    if isinstance(part, TextPart):
        return pb.ContentPart(text=part.text)
    given, at = part.image_url, f"{at}.image_url"
    return images.from_url(given.url, given.detail, at=f"{at}.url", detail_at=f"{at}.detail")

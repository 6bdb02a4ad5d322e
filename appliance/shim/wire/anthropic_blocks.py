"""The blocks that messages of Anthropic's API are made of.

Refuses content that no model here understands (documents) by its type, and addresses of images.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from appliance.errors import RequestError
from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.wire import images


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class CacheControl(_Strict, frozen=True):
    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class _Block(_Strict, frozen=True, tag_field="type"):
    cache_control: CacheControl | None = None


class TextBlock(_Block, frozen=True, kw_only=True, tag="text"):
    text: str
    citations: None = None


class Base64Source(_Strict, frozen=True, tag_field="type", tag="base64"):
    media_type: str
    data: str


class UrlSource(_Strict, frozen=True, tag_field="type", tag="url"):
    """Known, and refused: nothing is fetched."""

    url: str


class FileSource(_Strict, frozen=True, tag_field="type", tag="file"):
    """Known, and refused: no images are kept."""

    file_id: str


class ImageBlock(_Block, frozen=True, kw_only=True, tag="image"):
    """An image, for models that read them."""

    source: Base64Source | UrlSource | FileSource


class DocumentBlock(_Block, frozen=True, kw_only=True, tag="document"):
    """Known, and refused: no model here reads documents."""

    source: object = None
    title: object = None
    context: object = None
    citations: object = None


class ThinkingBlock(_Block, frozen=True, kw_only=True, tag="thinking"):
    """Earlier reasoning. It is not signed here, so any signature is taken; one of ours may hold
    what the block does not show."""

    thinking: str
    signature: str = ""


class ToolUseBlock(_Block, frozen=True, kw_only=True, tag="tool_use"):
    id: str
    name: str
    input: dict[str, object]


Shown = TextBlock | ImageBlock | DocumentBlock
"""What a user or a tool may show."""


class ToolResultBlock(_Block, frozen=True, kw_only=True, tag="tool_result"):
    tool_use_id: str
    content: str | list[Shown] | None = None
    is_error: bool = False


def parts(content: str | Iterable[Shown], at: str = "") -> list[pb.ContentPart]:
    """`content` in the engine's words; `at` is its place. Raises RequestError."""
    if isinstance(content, str):
        return [pb.ContentPart(text=content)]
    return [part(block, f"{at}[{index}]") for index, block in enumerate(content)]


def part(block: Shown, at: str) -> pb.ContentPart:
    """One block in the engine's words. Raises RequestError."""
    if isinstance(block, TextBlock):
        return pb.ContentPart(text=block.text)
    if isinstance(block, DocumentBlock):
        raise RequestError(
            "could not process PDF or another document: no model here reads them",
            param=f"{at}.type",
            hint="send its text",
            code="unsupported_parameter",
        )
    source = block.source
    if not isinstance(source, Base64Source):
        images.refuse_address(f"{at}.source")
    return images.from_base64(source.media_type, source.data, at=f"{at}.source.data")

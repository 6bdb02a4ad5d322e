"""The answer of /v1/responses, whole and as the events of a stream.

Every field stands in every answer, null only where Open Responses allows it. Events are structs
whose tag is their name; each has its place in the order (`sequence_number`).
"""

from __future__ import annotations

from typing import Literal

import msgspec

from appliance.shim.exchange import Tier
from appliance.shim.wire.response_items import (
    Logprob,
    OutputItem,
    OutputText,
    ReasoningText,
)
from appliance.shim.wire.response_tools import AnyToolOut
from appliance.shim.wire.responses import ToolChoice
from appliance.shim.wire.structured import JsonObjectFormat, TextFormat
from appliance.shim.wire.usage import Usage

AnyItem = dict[str, object]
"""An item as it was listed when its response was made."""
ResponseStatus = Literal["completed", "failed", "in_progress", "cancelled", "queued", "incomplete"]


class InputDetails(msgspec.Struct, frozen=True):
    cached_tokens: int
    cache_write_tokens: int = 0
    """Writing into the prefix cache is not counted apart and costs nothing."""


class OutputDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int


class ResponseUsage(msgspec.Struct, frozen=True):
    """Tokens that are billed."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputDetails
    output_tokens_details: OutputDetails


class ResponseError(msgspec.Struct, frozen=True):
    code: Literal["server_error", "rate_limit_exceeded"]
    message: str


class IncompleteDetails(msgspec.Struct, frozen=True):
    reason: Literal["max_output_tokens"] = "max_output_tokens"


class SchemaFormatOut(msgspec.Struct, frozen=True, tag_field="type", tag="json_schema"):
    name: str
    schema: dict[str, object]
    description: str | None
    strict: Literal[True] = True
    """It holds, whatever was asked."""


class TextOut(msgspec.Struct, frozen=True):
    format: TextFormat | JsonObjectFormat | SchemaFormatOut = TextFormat()
    verbosity: Literal["medium"] = "medium"


class ReasoningOut(msgspec.Struct, frozen=True):
    effort: str | None = None
    summary: str | None = None


class ResponseObject(msgspec.Struct, kw_only=True):
    """What was asked, and how far the answer has come. Changes while it is computed."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: ResponseStatus = "in_progress"
    background: bool = False
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    model: str
    output: list[OutputItem] = []
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    prompt_cache_key: str | None = None
    reasoning: ReasoningOut = ReasoningOut()
    safety_identifier: str | None = None
    service_tier: Tier = "default"
    store: bool = False
    temperature: float = 1.0
    """1 also stands for the bundle's default, if the request left it alone."""
    text: TextOut = TextOut()
    tool_choice: ToolChoice = "auto"
    tools: list[AnyToolOut] = []
    top_logprobs: int = 0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None = None
    metadata: dict[str, str] = {}


class _Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    sequence_number: int


class _Progress(_Event, frozen=True, kw_only=True):
    response: ResponseObject


class Created(_Progress, frozen=True, tag="response.created"):
    pass


class InProgress(_Progress, frozen=True, tag="response.in_progress"):
    pass


class Completed(_Progress, frozen=True, tag="response.completed"):
    pass


class Incomplete(_Progress, frozen=True, tag="response.incomplete"):
    pass


class Failed(_Progress, frozen=True, tag="response.failed"):
    pass


class _ItemEvent(_Event, frozen=True, kw_only=True):
    output_index: int
    item: OutputItem


class ItemAdded(_ItemEvent, frozen=True, tag="response.output_item.added"):
    pass


class ItemDone(_ItemEvent, frozen=True, tag="response.output_item.done"):
    pass


class _Within(_Event, frozen=True, kw_only=True):
    output_index: int
    item_id: str


TextPart = OutputText | ReasoningText


class _PartEvent(_Within, frozen=True, kw_only=True):
    part: TextPart
    content_index: int = 0


class PartAdded(_PartEvent, frozen=True, tag="response.content_part.added"):
    pass


class PartDone(_PartEvent, frozen=True, tag="response.content_part.done"):
    pass


class TextDelta(_Within, frozen=True, tag="response.output_text.delta"):
    delta: str
    logprobs: list[Logprob]
    content_index: int = 0


class TextDone(_Within, frozen=True, tag="response.output_text.done"):
    text: str
    logprobs: list[Logprob]
    content_index: int = 0


class ReasoningDelta(_Within, frozen=True, tag="response.reasoning_text.delta"):
    delta: str
    content_index: int = 0


class ReasoningDone(_Within, frozen=True, tag="response.reasoning_text.done"):
    text: str
    content_index: int = 0


class ArgumentsDelta(_Within, frozen=True, tag="response.function_call_arguments.delta"):
    delta: str


class ArgumentsDone(_Within, frozen=True, tag="response.function_call_arguments.done"):
    name: str
    arguments: str


class InputDelta(_Within, frozen=True, tag="response.custom_tool_call_input.delta"):
    delta: str


class InputDone(_Within, frozen=True, tag="response.custom_tool_call_input.done"):
    input: str


ResponseEvent = (
    Created
    | InProgress
    | ItemAdded
    | PartAdded
    | ReasoningDelta
    | ReasoningDone
    | TextDelta
    | TextDone
    | ArgumentsDelta
    | ArgumentsDone
    | InputDelta
    | InputDone
    | PartDone
    | ItemDone
    | Completed
    | Incomplete
    | Failed
)


class DeletedResponse(msgspec.Struct, frozen=True):
    id: str
    deleted: Literal[True] = True
    object: Literal["response.deleted"] = "response.deleted"


class ItemList(msgspec.Struct, frozen=True):
    """Items that a response was made from; empty ids if the page is empty."""

    data: list[AnyItem]
    first_id: str
    last_id: str
    has_more: bool
    object: Literal["list"] = "list"


def response_usage(usage: Usage) -> ResponseUsage:
    """`usage` in this API's words."""
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        input_tokens_details=InputDetails(usage.prompt_tokens_details.cached_tokens),
        output_tokens_details=OutputDetails(usage.completion_tokens_details.reasoning_tokens),
    )

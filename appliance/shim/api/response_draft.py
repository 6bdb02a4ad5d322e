"""A response before its first word: what was asked, in the answer's words."""

from __future__ import annotations

from appliance.shim.generation import Generation
from appliance.shim.wire import response_object as wire
from appliance.shim.wire.response_tools import shown
from appliance.shim.wire.responses import ResponsesRequest, SchemaFormat
from appliance.shim.wire.structured import TextFormat


def draft(
    request: ResponsesRequest, generation: Generation, *, stored: bool
) -> wire.ResponseObject:
    """The response to `request`, in progress. Its id names the request in the audit log."""
    reasoning = request.reasoning
    return wire.ResponseObject(
        id=f"resp_{generation.exchange.request_id.removeprefix('req_')}",
        created_at=generation.created,
        background=bool(request.background),
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        max_tool_calls=request.max_tool_calls,
        model=request.model,
        previous_response_id=request.previous_response_id,
        prompt_cache_key=request.prompt_cache_key,
        reasoning=wire.ReasoningOut(
            reasoning.effort if reasoning else None, reasoning.summary if reasoning else None
        ),
        safety_identifier=request.safety_identifier,
        service_tier=generation.exchange.tier,
        store=stored,
        temperature=_given(request.temperature, 1.0),
        parallel_tool_calls=request.parallel_tool_calls is not False,
        text=_text(request),
        tool_choice=request.tool_choice or "auto",
        tools=[shown(tool) for tool in request.tools or ()],
        top_logprobs=request.top_logprobs or 0,
        top_p=_given(request.top_p, 1.0),
        presence_penalty=_given(request.presence_penalty, 0.0),
        frequency_penalty=_given(request.frequency_penalty, 0.0),
        user=request.user,
        metadata=request.metadata or {},
    )


def _given(value: float | None, default: float) -> float:
    return default if value is None else value


def _text(request: ResponsesRequest) -> wire.TextOut:
    wanted = request.text.format if request.text is not None else None
    if isinstance(wanted, SchemaFormat):
        return wire.TextOut(wire.SchemaFormatOut(wanted.name, wanted.schema, wanted.description))
    return wire.TextOut(wanted or TextFormat())

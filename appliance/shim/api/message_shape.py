"""A generation as an Anthropic message and as the events that lead to it.

    message_start, for each block: content_block_start, deltas, content_block_stop;
    message_delta, message_stop

Owns which block is open. One is open at a time: a delta of another kind closes it first. Reasoning
that the caller does not want to see is a block without words, whose signature has them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from appliance.errors import ApplianceError, UnavailableError
from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.event_stream import MESSAGE_EVENTS
from appliance.shim.generation import Generation
from appliance.shim.refusals import refusal
from appliance.shim.wire import anthropic_message as wire
from appliance.shim.wire.anthropic import MessagesRequest
from appliance.shim.wire.anthropic_thinking import signature_of
from appliance.shim.wire.usage import Usage

Events = Iterator[msgspec.Struct]
Kind = Literal["text", "thinking", "tool_use"]
_REASONS: dict[int, wire.StopReason] = {
    pb.FINISH_REASON_STOP: "end_turn",
    pb.FINISH_REASON_LENGTH: "max_tokens",
    pb.FINISH_REASON_TOOL_CALLS: "tool_use",
}


@dataclass(slots=True)
class _Block:
    """What a block has said so far."""

    kind: Kind
    unseen: bool = False
    call_id: str = ""
    name: str = ""
    texts: list[str] = field(default_factory=list)

    def begun(self) -> wire.Block:
        """The block before its first word."""
        if self.kind == "text":
            return wire.TextOut("")
        if self.kind == "thinking":
            return wire.ThinkingOut("")
        return wire.ToolUseOut(self.call_id, self.name, {})

    def delta(self, text: str) -> wire.TextDelta | wire.ThinkingDelta | wire.InputDelta:
        """More of it."""
        self.texts.append(text)
        if self.kind == "text":
            return wire.TextDelta(text)
        if self.kind == "thinking":
            return wire.ThinkingDelta(text)
        return wire.InputDelta(text)

    def whole(self, *, cut: bool) -> wire.Block:
        """The block. Arguments that were `cut` off are left out.

        Raises UnavailableError for others that are no JSON object.
        """
        text = "".join(self.texts)
        if self.kind == "text":
            return wire.TextOut(text)
        if self.unseen:
            return wire.ThinkingOut("", self.signature)
        if self.kind == "thinking":
            return wire.ThinkingOut(text)
        return wire.ToolUseOut(self.call_id, self.name, _object(text, cut=cut))

    @property
    def signature(self) -> str:
        """What an unseen block brings back."""
        return signature_of("".join(self.texts))


class MessageShape:
    """One message."""

    framing = MESSAGE_EVENTS

    def __init__(self, generation: Generation, request: MessagesRequest) -> None:
        self._generation = generation
        self._model = request.model
        self._max_tokens = request.max_tokens
        self._unseen = request.thinking is not None and request.thinking.unseen
        self._blocks: list[_Block] = []
        self._open = False
        """Whether the last block is."""
        self._end = wire.MessageEnd(None, None)

    def first(self) -> Sequence[msgspec.Struct]:
        usage = wire.MessageUsage(
            input_tokens=self._generation.prompt_tokens,
            output_tokens=0,
            cache_read_input_tokens=0,
            output_tokens_details=wire.ThinkingDetails(0),
        )
        return [wire.MessageStart(self._message(usage, []))]

    def delta(self, choice: int, delta: pb.Delta) -> Sequence[msgspec.Struct]:
        return list(self._delta(delta))

    def finish(self, choice: int, finished: pb.Finished) -> Sequence[msgspec.Struct]:
        reason = _REASONS[finished.reason]
        if reason == "end_turn" and finished.stop:
            self._end = wire.MessageEnd("stop_sequence", finished.stop)
        elif reason == "max_tokens" and finished.usage.generated_tokens < self._max_tokens:
            self._end = wire.MessageEnd("model_context_window_exceeded", None)
        else:
            self._end = wire.MessageEnd(reason, None)
        return list(self._close())

    def last(self, usage: Usage) -> Sequence[msgspec.Struct]:
        return [wire.MessageDelta(self._end, wire.message_usage(usage)), wire.MessageStop()]

    def failed(self, error: ApplianceError, usage: Usage) -> Sequence[msgspec.Struct]:
        exchange = self._generation.exchange
        return [refusal(error, exchange.dialect, exchange.request_id).document]

    def take(self, choice: int, event: pb.Delta | pb.Finished) -> None:
        if isinstance(event, pb.Finished):
            self.finish(choice, event)
        else:
            self.delta(choice, event)

    def whole(self, usage: Usage) -> msgspec.Struct:
        # What ends a message early ends its last block.
        cut = self._end.stop_reason in ("max_tokens", "model_context_window_exceeded")
        blocks = [block.whole(cut=cut and block is self._blocks[-1]) for block in self._blocks]
        return self._message(wire.message_usage(usage), blocks)

    def _message(self, usage: wire.MessageUsage, blocks: list[wire.Block]) -> wire.MessageOut:
        return wire.MessageOut(
            id=f"msg_{self._generation.exchange.request_id.removeprefix('req_')}",
            model=self._model,
            content=blocks,
            usage=usage,
            stop_reason=self._end.stop_reason,
            stop_sequence=self._end.stop_sequence,
        )

    def _delta(self, delta: pb.Delta) -> Events:
        if delta.reasoning:
            yield from self._say("thinking", delta.reasoning)
        if delta.text:
            yield from self._say("text", delta.text)
        for call in delta.tool_calls:
            if call.name:
                yield from self._begin(_Block("tool_use", call_id=call.id, name=call.name))
            if call.arguments_json:
                yield self._add(call.arguments_json)

    def _say(self, kind: Kind, text: str) -> Events:
        if not self._open or self._blocks[-1].kind != kind:
            yield from self._begin(_Block(kind, unseen=self._unseen and kind == "thinking"))
        event = self._add(text)
        if not self._blocks[-1].unseen:
            yield event

    def _begin(self, block: _Block) -> Events:
        yield from self._close()
        self._blocks.append(block)
        self._open = True
        yield wire.BlockStart(len(self._blocks) - 1, block.begun())

    def _add(self, text: str) -> msgspec.Struct:
        return wire.BlockDelta(len(self._blocks) - 1, self._blocks[-1].delta(text))

    def _close(self) -> Events:
        if self._open:
            self._open = False
            index, block = len(self._blocks) - 1, self._blocks[-1]
            if block.unseen:
                yield wire.BlockDelta(index, wire.SignatureDelta(block.signature))
            yield wire.BlockStop(index)


def _object(text: str, *, cut: bool) -> dict[str, object]:
    try:
        return msgspec.json.decode(text or "{}", type=dict[str, object])
    except msgspec.DecodeError:
        if cut:
            return {}
        raise UnavailableError(
            "the model called a tool with arguments that are not a JSON object",
            hint="ask again, or with more max_tokens",
            code="engine_error",
        ) from None

"""A generation as a response object and as the events that lead to it.

    created, in_progress
    for each item:  output_item.added, content_part.added, deltas, done, content_part.done,
                    output_item.done            (calls have arguments or an input instead of parts)
    completed | incomplete | failed

Owns which item is open. One is open at a time: a delta of another kind closes it first.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import msgspec

from appliance.errors import ApplianceError
from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.api.open_items import (
    OpenCall,
    OpenCustomCall,
    OpenItem,
    OpenMessage,
    OpenReasoning,
    OpenText,
)
from appliance.shim.api.response_draft import draft
from appliance.shim.event_stream import RESPONSE_EVENTS
from appliance.shim.generation import Generation
from appliance.shim.refusals import refusal
from appliance.shim.wire import response_items as items
from appliance.shim.wire import response_object as wire
from appliance.shim.wire.responses import ResponsesRequest
from appliance.shim.wire.usage import Usage

E = TypeVar("E", bound=msgspec.Struct)
Events = Iterator[msgspec.Struct]


class ResponseShape:
    """One response. `response` is what it is now."""

    framing = RESPONSE_EVENTS

    def __init__(self, generation: Generation, request: ResponsesRequest, *, stored: bool) -> None:
        self.response = draft(request, generation, stored=stored)
        self._numbers = 0
        self._suffix = self.response.id.removeprefix("resp_")
        self._wants_logprobs = request.logprobs is not None
        self._tools = {tool.called: tool for tool in request.callables}
        self._open: OpenItem | None = None

    def first(self) -> Sequence[msgspec.Struct]:
        return [
            self._event(wire.Created, response=self.response),
            self._event(wire.InProgress, response=self.response),
        ]

    def delta(self, choice: int, delta: pb.Delta) -> Sequence[msgspec.Struct]:
        return list(self._delta(delta))

    def finish(self, choice: int, finished: pb.Finished) -> Sequence[msgspec.Struct]:
        cut = finished.reason == pb.FINISH_REASON_LENGTH
        self.response.status = "incomplete" if cut else "completed"
        self.response.incomplete_details = wire.IncompleteDetails() if cut else None
        return list(self._finish("incomplete" if cut else "completed"))

    def last(self, usage: Usage) -> Sequence[msgspec.Struct]:
        response = self.end(usage)
        kind = wire.Completed if response.status == "completed" else wire.Incomplete
        return [self._event(kind, response=response)]

    def failed(self, error: ApplianceError, usage: Usage) -> Sequence[msgspec.Struct]:
        self.break_off("failed", error, usage)
        return [self._event(wire.Failed, response=self.response)]

    def take(self, choice: int, event: pb.Delta | pb.Finished) -> None:
        if isinstance(event, pb.Finished):
            self.finish(choice, event)
        else:
            self.delta(choice, event)

    def whole(self, usage: Usage) -> msgspec.Struct:
        return self.end(usage)

    def end(self, usage: Usage) -> wire.ResponseObject:
        """The finished response; the first call says when it was finished."""
        response = self.response
        response.usage = wire.response_usage(usage)
        if response.status == "completed" and response.completed_at is None:
            response.completed_at = int(time.time())
        return response

    def break_off(
        self, status: wire.ResponseStatus, error: ApplianceError | None, usage: Usage
    ) -> None:
        """It will not be finished: keep what came, billed with `usage`."""
        if self._open is not None:
            self.response.output.append(self._open.item("incomplete"))
            self._open = None
        self.response.status = status
        self.response.incomplete_details = None
        self.response.usage = wire.response_usage(usage)
        if error is not None:
            self.response.error = response_error(error)

    def _delta(self, delta: pb.Delta) -> Events:
        if delta.reasoning:
            yield from self._switch(OpenReasoning, "rs")
            yield from self._add(delta.reasoning, [])
        logprobs = [_logprob(token) for token in delta.logprobs] if self._wants_logprobs else []
        if delta.text or logprobs:
            yield from self._switch(OpenMessage, "msg")
            yield from self._add(delta.text, logprobs)
        for call in delta.tool_calls:
            yield from self._call(call)

    def _call(self, call: pb.ToolCallDelta) -> Events:
        if call.name:
            yield from self._close("completed")
            yield from self._begin(self._opened(call))
        if call.arguments_json:
            yield from self._argue(call.arguments_json)

    def _opened(self, call: pb.ToolCallDelta) -> OpenItem:
        tool, place = self._tools.get(call.name), f"{self._suffix}_{len(self.response.output)}"
        if tool is not None and tool.custom:
            return OpenCustomCall(f"ctc_{place}", call.id, tool)
        return OpenCall(f"fc_{place}", call.id, call.name, tool)

    def _argue(self, arguments: str) -> Events:
        item = self._open
        if not isinstance(item, OpenCustomCall):
            yield from self._add(arguments, [])
        elif text := item.read(arguments):
            yield from self._add(text, [])

    def _finish(self, status: items.Status) -> Events:
        if self._open is None and not self.response.output:
            # Nothing was said: an empty message says so.
            yield from self._switch(OpenMessage, "msg")
        yield from self._close(status)

    def _switch(self, kind: type[OpenText], prefix: str) -> Events:
        if not isinstance(self._open, kind):
            yield from self._close("completed")
            yield from self._begin(kind(f"{prefix}_{self._suffix}_{len(self.response.output)}"))

    def _begin(self, item: OpenItem) -> Events:
        self._open = item
        index = len(self.response.output)
        yield self._event(wire.ItemAdded, output_index=index, item=item.begun())
        if isinstance(item, OpenText):
            yield self._within(wire.PartAdded, part=item.part("", []))

    def _add(self, text: str, logprobs: list[items.Logprob]) -> Events:
        item = self._open
        assert item is not None, "a call's first delta has its name"
        item.texts.append(text)
        item.logprobs.extend(logprobs)
        if isinstance(item, OpenMessage):
            yield self._within(wire.TextDelta, delta=text, logprobs=logprobs)
        elif isinstance(item, OpenReasoning):
            yield self._within(wire.ReasoningDelta, delta=text)
        elif isinstance(item, OpenCustomCall):
            yield self._within(wire.InputDelta, delta=text)
        else:
            yield self._within(wire.ArgumentsDelta, delta=text)

    def _close(self, status: items.Status) -> Events:
        item = self._open
        if item is None:
            return
        text = "".join(item.texts)
        if isinstance(item, OpenMessage):
            yield self._within(wire.TextDone, text=text, logprobs=item.logprobs)
        elif isinstance(item, OpenReasoning):
            yield self._within(wire.ReasoningDone, text=text)
        elif isinstance(item, OpenCall):
            yield self._within(wire.ArgumentsDone, name=item.name, arguments=text)
        elif isinstance(item, OpenCustomCall):
            yield self._within(wire.InputDone, input=text)
        if isinstance(item, OpenText):
            yield self._within(wire.PartDone, part=item.part(text, item.logprobs))
        done = item.item(status)
        yield self._event(wire.ItemDone, output_index=len(self.response.output), item=done)
        self.response.output.append(done)
        self._open = None

    def _within(self, kind: type[E], **fields: Any) -> E:  # noqa: ANN401
        assert self._open is not None
        index = len(self.response.output)
        return self._event(kind, output_index=index, item_id=self._open.id, **fields)

    def _event(self, kind: type[E], **fields: Any) -> E:  # noqa: ANN401
        number, self._numbers = self._numbers, self._numbers + 1
        return kind(sequence_number=number, **fields)


def response_error(error: ApplianceError) -> wire.ResponseError:
    """`error` as a response carries it: the API has few codes for it."""
    told = refusal(error)
    return wire.ResponseError(
        "rate_limit_exceeded" if told.status == 429 else "server_error",
        told.message,
    )


def _logprob(token: pb.TokenLogprob) -> items.Logprob:
    return items.Logprob(
        token=token.token.decode("utf-8", "replace"),
        logprob=token.logprob,
        bytes=list(token.token),
        top_logprobs=[
            items.TopLogprob(top.token.decode("utf-8", "replace"), top.logprob, list(top.token))
            for top in token.top
        ],
    )

"""From a generation to the caller: all at once, or as a stream.

Owns the moment of the last byte: RES is durable before the body, or before the last events of a
stream. What the bytes look like is a `Shape`, one for each API.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Protocol

import msgspec
from starlette.types import Send

from appliance.audit.event import Tokens
from appliance.errors import ApplianceError, AuditUnavailableError
from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.event_stream import EventStream, Framing
from appliance.shim.exchange import Exchange
from appliance.shim.generation import Generation
from appliance.shim.services import Services
from appliance.shim.wire.usage import Usage

NO_TOKENS = Tokens()


class Shape(Protocol):
    """One API's way to say it; made for one request."""

    framing: Framing

    def first(self) -> Sequence[msgspec.Struct]:
        """What opens a stream."""

    def delta(self, choice: int, delta: pb.Delta) -> Sequence[msgspec.Struct]:
        """What to say for `delta`; empty if there is nothing to say."""

    def finish(self, choice: int, finished: pb.Finished) -> Sequence[msgspec.Struct]:
        """What ends a choice."""

    def last(self, usage: Usage) -> Sequence[msgspec.Struct]:
        """What follows all choices, when RES is durable."""

    def failed(self, error: ApplianceError, usage: Usage) -> Sequence[msgspec.Struct]:
        """What ends a stream that broke off; `usage` is what is billed all the same."""

    def take(self, choice: int, event: pb.Delta | pb.Finished) -> None:
        """Keep `event` for `whole`."""

    def whole(self, usage: Usage) -> msgspec.Struct:
        """The body of an answer that is not streamed."""


async def send_document(send: Send, document: msgspec.Struct, status: int = 200) -> None:
    """Send `document` as a complete JSON answer."""
    body = msgspec.json.encode(document)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode("ascii")),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def send_recorded(
    services: Services,
    exchange: Exchange,
    send: Send,
    document: msgspec.Struct,
    *,
    tokens: Tokens = NO_TOKENS,
    bundle_digest: str = "",
) -> None:
    """Answer with what is there already, as soon as REQ and RES are durable."""
    if exchange.keep is not None:
        await exchange.keep(document, tokens)
    bill = await services.accounting.admit(exchange, bundle_digest=bundle_digest)
    answer = msgspec.json.encode(document) if bill.wants_answer else b""
    await bill.close("ok", tokens, status=200, answer=answer)
    await send_document(send, document)


async def send_answer(
    generation: Generation,
    shape: Shape,
    send: Send,
    *,
    stream: bool,
    keepalive_seconds: float,
    settled: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Answer as it is computed if `stream`, else at its end.

    `settled` is awaited between RES and the last byte; its ApplianceError ends the answer.
    """
    if stream:
        await send_stream(generation, shape, send, keepalive_seconds, settled)
    else:
        await send_whole(generation, shape, send, settled)


async def take_all(generation: Generation, shape: Shape) -> None:
    """Wait for all of it, and make RES durable."""
    async with generation.guard(), aclosing(generation.events()) as events:
        async for together in events:
            for choice, event in together:
                shape.take(choice, event)
    keep = generation.exchange.keep
    if keep is not None:
        await keep(shape.whole(generation.usage()), generation.tokens())
    await generation.settle()


async def send_whole(
    generation: Generation,
    shape: Shape,
    send: Send,
    settled: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Wait for all of it, then answer."""
    await take_all(generation, shape)
    if settled is not None:
        await settled()
    await send_document(send, shape.whole(generation.usage()))


async def send_stream(
    generation: Generation,
    shape: Shape,
    send: Send,
    keepalive_seconds: float,
    settled: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Answer while it is computed. An error on the way is the last frame, after its RES."""
    stream = EventStream(send, keepalive_seconds, shape.framing)
    try:
        async with generation.guard(), stream.open():
            generation.started = True
            await stream.data(*shape.first())
            await _pass_on(generation, shape, stream)
        await generation.settle()
        if settled is not None:
            await settled()
    except ApplianceError as error:
        last = await _recorded(generation, error)
        await stream.fail(*shape.failed(last, generation.usage()))
    else:
        await stream.done(*shape.last(generation.usage()))


async def _recorded(generation: Generation, error: ApplianceError) -> ApplianceError:
    """Make sure that RES is written; the error to tell, which may be that it cannot be."""
    if not generation.closed:
        try:
            await generation.abandon(error)
        except AuditUnavailableError as worse:
            return worse
    return error


async def _pass_on(generation: Generation, shape: Shape, stream: EventStream) -> None:
    async with aclosing(generation.events()) as events:
        async for together in events:
            # One write for all of them; each stays an event of its own.
            said = [d for choice, event in together for d in _said(shape, choice, event)]
            await stream.data(*said)


def _said(shape: Shape, choice: int, event: pb.Delta | pb.Finished) -> Sequence[msgspec.Struct]:
    if isinstance(event, pb.Finished):
        return shape.finish(choice, event)
    return shape.delta(choice, event)

"""One admitted request for text: its calls to the engine, its tokens and its bill.

Owns the order of things. The engine starts at once; nothing is sent before REQ is durable; `settle`
makes RES durable before the last byte; leaving the context early stops the engine, asks it what
it had computed and writes RES with that. Refuses to know the shape of the answer.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager

from starlette.types import Receive

from appliance.audit.event import Outcome, Tokens
from appliance.errors import ApplianceError, UnavailableError
from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.accounting import Bill
from appliance.shim.capacity import give_share
from appliance.shim.engine_client import EngineClient, GenerateStream
from appliance.shim.engine_errors import ENGINE_UNAVAILABLE
from appliance.shim.exchange import Exchange
from appliance.shim.lifeline import DisconnectedError, Lifeline
from appliance.shim.merge import merged
from appliance.shim.metrics import Metrics
from appliance.shim.refusals import INTERNAL, status_of
from appliance.shim.services import Services
from appliance.shim.suspects import Suspicion
from appliance.shim.tally import Tally, total, usage
from appliance.shim.token_times import TokenTimes
from appliance.shim.transcript import Transcript
from appliance.shim.wire.usage import Usage

_ACCEPT_SECONDS = 30.0
"""The engine says at once whether it takes a request of words, even if the request then waits."""
_SEEING_SECONDS = 300.0
"""It sees images before it takes a request, one after the other, those of others among them."""
FINISH_REASONS = {
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_TOOL_CALLS: "tool_calls",
}
Event = pb.Delta | pb.Finished


class Generation:
    """What a handler sees of a request that the engine has taken."""

    def __init__(
        self,
        *,
        engine: EngineClient,
        metrics: Metrics,
        exchange: Exchange,
        requests: Sequence[pb.GenerateRequest],
        streams: Sequence[GenerateStream],
        accepted: Sequence[pb.Accepted],
        lifeline: Lifeline,
        bill: Bill,
        suspicion: Suspicion,
    ) -> None:
        self._engine = engine
        self._requests = requests
        self._per_prompt = requests[0].n
        self._streams = streams
        self._tallies = [Tally(answer.prompt_tokens) for answer in accepted]
        self._bill = bill
        self._suspicion = suspicion
        # Lines of batches would drown the figures of those who wait for an answer.
        self._times = None if exchange.line else TokenTimes(metrics, exchange)
        self._received = 0
        self._delivered = 0
        self._transcript = Transcript() if bill.wants_answer else None
        self._reasons: set[str] = set()
        self.exchange = exchange
        self.guard = lifeline.guard
        self.created = int(time.time())
        self.fingerprint = f"fp_{accepted[0].bundle_digest[:16]}"
        """Changes whenever another bundle answers under the same model name."""
        self.started = False
        """A handler sets this when it has sent the head of a stream."""

    @property
    def choices(self) -> int:
        """Number of answers: sequences of all prompts."""
        return sum(request.n for request in self._requests)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, as the engine said when it accepted them."""
        return sum(tally.prompt_tokens for tally in self._tallies)

    @property
    def closed(self) -> bool:
        """Whether RES is written."""
        return self._bill.closed

    async def events(self) -> AsyncGenerator[list[tuple[int, Event]], None]:
        """Deltas and ends, each with the number of its choice; those that came together at once.

        Raises UnavailableError if the engine breaks off. Each choice ends exactly once.
        """
        async with _suspecting(self._suspicion), aclosing(merged(self._streams)) as messages:
            async for prompt, together in messages:
                if len(together) == 1 and together[0].HasField("delta"):
                    events, broken = self._read_delta(prompt, together[0].delta), None
                else:
                    events, broken = self._read(prompt, together)
                if events:
                    yield events
                # The handler came back for more: these were handed on.
                self._delivered = self._received
                if broken is not None:
                    raise broken
        if sum(len(tally.finished) for tally in self._tallies) != self.choices:
            raise UnavailableError("the engine ended early", code="engine_error")

    def _read_delta(self, prompt: int, delta: pb.Delta) -> list[tuple[int, Event]]:
        """What `_read` gives for a delta that came alone, which nearly all do."""
        choice, tokens = prompt * self._per_prompt + delta.index, delta.tokens
        self._tallies[prompt].received += tokens
        self._received += tokens
        if tokens and self._times is not None:
            self._times.note(choice, tokens)
        if self._transcript is not None:
            self._transcript.add(choice, delta)
        return [(choice, delta)]

    def _read(
        self, prompt: int, together: Sequence[pb.GenerateEvent]
    ) -> tuple[list[tuple[int, Event]], UnavailableError | None]:
        """What they say, and why nothing follows if the engine gave up behind that."""
        first, tally = prompt * self._per_prompt, self._tallies[prompt]
        events: list[tuple[int, Event]] = []
        tokens: dict[int, int] = defaultdict(int)
        broken = None
        for event in together:
            kind = event.WhichOneof("event")
            if kind == "delta":
                delta = event.delta
                choice = first + delta.index
                tokens[choice] += delta.tokens
                events.append((choice, delta))
            elif kind == "finished":
                finished = event.finished
                tally.finished[finished.index] = finished.usage
                broken = self._end(finished)
                if broken is not None:
                    break
                events.append((first + finished.index, finished))
        self._note(tally, tokens, events)
        return events, broken

    def _end(self, finished: pb.Finished) -> UnavailableError | None:
        """Keep why a sequence ended; the error if that was not of its own."""
        try:
            self._reasons.add(_reason(finished))
        except UnavailableError as error:
            return error
        return None

    def tokens(self) -> Tokens:
        """What is billed, after the last event."""
        return total(self._tallies, delivered=self._delivered)

    def usage(self) -> Usage:
        """The same, as callers see it."""
        return usage(self.tokens(), self._tallies)

    async def settle(self) -> None:
        """All is computed: make RES durable. Raises AuditUnavailableError."""
        await self._bill.close(
            "ok",
            self.tokens(),
            status=200,
            finish_reason=",".join(sorted(self._reasons)),
            answer=self._answer(),
            failed_status=200 if self.started else 503,
        )

    async def abandon(self, error: BaseException) -> None:
        """Stop the engine, learn what it computed, make RES durable."""
        for stream in self._streams:
            stream.cancel()
        await asyncio.gather(*map(self._learn, self._requests, self._tallies))
        outcome, status, code = _end_of(error)
        await self._bill.close(
            outcome,
            total(self._tallies, delivered=self._delivered if self.started else 0),
            status=200 if self.started else status,
            code=code,
            answer=self._answer(),
        )

    def _answer(self) -> bytes:
        return self._transcript.encoded() if self._transcript is not None else b""

    async def _learn(self, request: pb.GenerateRequest, tally: Tally) -> None:
        if len(tally.finished) == request.n:
            return
        try:
            tally.settled = await self._engine.settle(request.request_id)
        except ApplianceError:
            tally.settled = None

    def _note(
        self, tally: Tally, tokens: Mapping[int, int], events: Sequence[tuple[int, Event]]
    ) -> None:
        """Count what came, `tokens` by choice, and write down what it says where that is kept."""
        received = sum(tokens.values())
        tally.received += received
        self._received += received
        if self._times is not None:
            self._times.note_all(tokens)
        if self._transcript is not None:
            for choice, event in events:
                if isinstance(event, pb.Delta):
                    self._transcript.add(choice, event)


@asynccontextmanager
async def admitted(
    services: Services,
    exchange: Exchange,
    receive: Receive,
    requests: Sequence[pb.GenerateRequest],
) -> AsyncIterator[Generation]:
    """Start `requests` in the engine and admit the exchange: REQ is durable inside.

    What they can use is reserved before they start (admission.py). Raises what admission raises,
    and the engine's refusal, before REQ, so that it becomes a REJECT. A caller that hangs up
    meanwhile is noticed inside: then there is a REQ, and a RES with what was computed.
    """
    for request in requests:
        request.caller = exchange.key_id
        request.priority = exchange.priority
    await give_share(exchange, requests, services.engine)
    async with (
        services.admission.generation(exchange, requests) as reservation,
        services.suspects.watching(requests) as suspicion,
        # The engine first: what this side still has to set up is done beside it.
        _started(services.engine, requests) as streams,
        services.lifeline(exchange, receive) as lifeline,
    ):
        accepted = await _accepted(streams, suspicion, _patience(requests))
        reservation.require(sum(answer.prompt_tokens for answer in accepted))
        bill = await services.accounting.admit(exchange, bundle_digest=accepted[0].bundle_digest)
        generation = Generation(
            engine=services.engine,
            metrics=services.metrics,
            exchange=exchange,
            requests=requests,
            streams=streams,
            accepted=accepted,
            lifeline=lifeline,
            bill=bill,
            suspicion=suspicion,
        )
        try:
            yield generation
        except BaseException as error:
            if not generation.closed:
                await generation.abandon(error)
            raise


@asynccontextmanager
async def _started(
    engine: EngineClient, requests: Sequence[pb.GenerateRequest]
) -> AsyncIterator[list[GenerateStream]]:
    """The calls for `requests`, cancelled in the end."""
    streams = [engine.generate(request) for request in requests]
    try:
        yield streams
    finally:
        for stream in streams:
            stream.cancel()


@asynccontextmanager
async def _suspecting(
    suspicion: Suspicion, streams: Sequence[GenerateStream] = ()
) -> AsyncIterator[None]:
    """Note it if the engine goes away within; not if it was away before `streams` began."""
    try:
        yield
    except UnavailableError as error:
        there = not streams or any(stream.connected for stream in streams)
        if there and error.code == ENGINE_UNAVAILABLE:
            suspicion.engine_ended = True
        raise


def _patience(requests: Sequence[pb.GenerateRequest]) -> float:
    """Seconds within which the engine must have said whether it takes `requests`."""
    parts = (p for r in requests for message in r.chat.messages for p in message.content)
    seen = any(part.WhichOneof("part") == "image" for part in parts)
    return _SEEING_SECONDS if seen else _ACCEPT_SECONDS


async def _accepted(
    streams: Sequence[GenerateStream], suspicion: Suspicion, seconds: float
) -> list[pb.Accepted]:
    try:
        async with asyncio.timeout(seconds), _suspecting(suspicion, streams):
            return [await stream.accepted() for stream in streams]
    except TimeoutError:
        raise UnavailableError(
            "the engine does not answer", hint="try again shortly", code=ENGINE_UNAVAILABLE
        ) from None


def _reason(finished: pb.Finished) -> str:
    reason = FINISH_REASONS.get(finished.reason)
    if finished.reason == pb.FINISH_REASON_DEADLINE:
        raise UnavailableError("the request's time is up", code="timeout")
    if reason is None:
        name = pb.FinishReason.Name(finished.reason).removeprefix("FINISH_REASON_").lower()
        raise UnavailableError(f"the engine ended the answer: {name}", code="engine_error")
    return reason


def _end_of(error: BaseException) -> tuple[Outcome, int, str]:
    """Outcome, status and code that RES has for a request that ended with `error`."""
    if isinstance(error, DisconnectedError):
        return "cancelled", 0, ""
    known = error if isinstance(error, ApplianceError) else INTERNAL
    return "error", status_of(known), known.code

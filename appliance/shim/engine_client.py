"""The shim's side of the engine's protocol.

Owns the channel over the Unix socket: it connects on first use, and again by itself after the
engine was away. Every failure is a typed error. Refuses to retry a call: only the caller knows
whether that is right.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from appliance.errors import UnavailableError
from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.engine_errors import typed, unanswered
from appliance.shim.pulse import EVERY_SECONDS, Pulse
from appliance.shim.rpc import Call, Channel, RpcError, Status

A = TypeVar("A", bound=Message)

_QUICK_SECONDS = 5.0
"""Deadline of calls that compute nothing."""
_TOKENIZE_SECONDS = 30.0
"""The same, for one that works through a prompt beside everything else."""


class Method(Generic[A]):
    """A call of a service, and what it answers with."""

    def __init__(self, service: str, name: str, answer: type[A]) -> None:
        self.path = f"/{service}/{name}"
        self.answer = answer


_ENGINE = "appliance.engine.v1.Engine"
_GENERATE = Method(_ENGINE, "Generate", pb.GenerateEvent)
_EMBED = Method(_ENGINE, "Embed", pb.EmbedResponse)
_SCORE = Method(_ENGINE, "Score", pb.ScoreResponse)
_SETTLE = Method(_ENGINE, "Settle", pb.SettleResponse)
_TOKENIZE = Method(_ENGINE, "Tokenize", pb.TokenizeResponse)
_DETOKENIZE = Method(_ENGINE, "Detokenize", pb.DetokenizeResponse)
_MODELS = Method(_ENGINE, "ListModels", pb.ListModelsResponse)
_STATS = Method(_ENGINE, "Stats", pb.StatsResponse)
_CHECK = Method("grpc.health.v1.Health", "Check", health_pb2.HealthCheckResponse)


class GenerateStream:
    """One running Generate call; `cancel` ends it in the engine.

    Whoever has one calls `cancel` in any case: until then the engine's pulse is felt for it.
    """

    def __init__(self, call: Call, pulse: Pulse, *, connected: bool) -> None:
        self._call = call
        self._pulse = pulse
        self._ahead: list[pb.GenerateEvent] = []
        self.connected = connected
        """The engine was there when the call was made, so it is not there any more if it fails."""
        pulse.add(self)

    async def accepted(self) -> pb.Accepted:
        """The first event: the engine has taken the request. Raises typed errors."""
        first, *self._ahead = await self._take() or [pb.GenerateEvent()]
        if first.WhichOneof("event") != "accepted":
            raise UnavailableError("the engine broke its protocol", code="engine_error")
        return first.accepted

    async def events(self) -> AsyncIterator[list[pb.GenerateEvent]]:
        """Every event behind the first, once, those that came together at once. Raises typed
        errors."""
        if self._ahead:
            yield self._ahead
        while events := await self._take():
            yield events

    async def _take(self) -> list[pb.GenerateEvent]:
        try:
            messages = await self._call.take()
        except RpcError as error:
            raise typed(error) from None
        events = list(map(pb.GenerateEvent.FromString, messages))
        if any(event.further for event in events):
            return [one for event in events for one in (event, *event.further)]
        return events

    def cancel(self) -> None:
        """Stop the sequences of this call; harmless when it is over."""
        self._pulse.discard(self)
        self._call.cancel()

    def give_up(self) -> None:
        """The engine hangs: whoever iterates gets `engine_unavailable`."""
        self._call.fail(RpcError(Status.UNAVAILABLE))


class EngineClient:
    """Calls to the engine that listens on the Unix socket `socket`."""

    def __init__(self, socket: Path) -> None:
        self._channel = Channel(socket, ahead=_GENERATE.path)
        seconds = EVERY_SECONDS
        self._pulse = Pulse(lambda: self._answers(seconds), every_seconds=seconds)

    async def close(self) -> None:
        """Close the channel; calls that still run are cancelled."""
        self._pulse.close()
        await self._channel.close()

    def generate(self, request: pb.GenerateRequest) -> GenerateStream:
        """Start `request`; the engine works from now on."""
        connected = self.connected
        return GenerateStream(self._start(_GENERATE, request), self._pulse, connected=connected)

    @property
    def connected(self) -> bool:
        """Whether the engine was there when it was last heard of; one that hangs is not."""
        return self._channel.connected and not self._pulse.hangs

    async def embed(self, request: pb.EmbedRequest) -> pb.EmbedResponse:
        """The vectors for `request`. Being cancelled cancels the call."""
        return await self._computed(_EMBED, request)

    async def score(self, request: pb.ScoreRequest) -> pb.ScoreResponse:
        """The scores for `request`. Being cancelled cancels the call."""
        return await self._computed(_SCORE, request)

    async def settle(self, request_id: str) -> Sequence[pb.Usage]:
        """What a cancelled call computed, per sequence."""
        answer = await self._told(_SETTLE, pb.SettleRequest(request_id=request_id))
        return answer.sequences

    async def tokenize(self, request: pb.TokenizeRequest) -> Sequence[int]:
        """The token ids of a prompt. Being cancelled cancels the call."""
        return (await self._told(_TOKENIZE, request, _TOKENIZE_SECONDS)).ids

    async def detokenize(self, request: pb.DetokenizeRequest) -> str:
        """The text of token ids. Being cancelled cancels the call."""
        return (await self._told(_DETOKENIZE, request, _TOKENIZE_SECONDS)).text

    async def models(self) -> Sequence[pb.Model]:
        """Every model the engine holds, in whatever state."""
        return (await self._told(_MODELS, pb.ListModelsRequest())).models

    async def stats(self) -> Sequence[pb.ModelStats]:
        """Counters and gauges, per model."""
        return (await self._told(_STATS, pb.StatsRequest())).models

    async def serving(self) -> bool:
        """Whether the engine says of itself that it serves (grpc.health.v1)."""
        try:
            answer = await self._check(_QUICK_SECONDS)
        except RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def _answers(self, seconds: float) -> bool:
        """False if no answer came within `seconds`; an error is one."""
        try:
            await self._check(seconds)
        except RpcError as error:
            return error.status is not Status.DEADLINE_EXCEEDED
        return True

    async def _check(self, seconds: float) -> health_pb2.HealthCheckResponse:
        call = self._start(_CHECK, health_pb2.HealthCheckRequest(service=""), seconds)
        return _CHECK.answer.FromString(await call.answer())

    async def _computed(self, method: Method[A], request: Message) -> A:
        """An answer that may take its time; the pulse may end the wait."""
        call = self._start(method, request)
        waiting = _Computing(call)
        self._pulse.add(waiting)
        try:
            return method.answer.FromString(await call.answer())
        except RpcError as error:
            raise typed(error) from None
        finally:
            self._pulse.discard(waiting)

    async def _told(
        self, method: Method[A], request: Message, seconds: float = _QUICK_SECONDS
    ) -> A:
        """An answer that comes soon, or the engine is away."""
        try:
            answer = await self._start(method, request, seconds).answer()
        except RpcError as error:
            raise unanswered(error) from None
        return method.answer.FromString(answer)

    def _start(self, method: Method[A], request: Message, seconds: float | None = None) -> Call:
        return self._channel.call(method.path, request.SerializeToString(), seconds)


class _Computing:
    """A call with one answer that the pulse may end."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def give_up(self) -> None:
        self._call.fail(RpcError(Status.UNAVAILABLE))

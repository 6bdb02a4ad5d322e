"""The shim's side of the engine's protocol.

Owns the channel over the Unix socket: it connects on first use, and again by itself, within a
second, after the engine was away. Every failure is a typed error. Refuses to retry a call: only
the caller knows whether that is right.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from appliance.errors import UnavailableError
from appliance.pb import engine_v1_pb2 as pb
from appliance.pb import engine_v1_pb2_grpc as pb_grpc
from appliance.shim.engine_calls import EndedError, Messages, answer_of, end
from appliance.shim.engine_errors import engine_away, typed, unanswered
from appliance.shim.pulse import EVERY_SECONDS, Pulse

A = TypeVar("A")

_QUICK_SECONDS = 5.0
"""Deadline of calls that compute nothing."""
_TOKENIZE_SECONDS = 30.0
"""The same, for one that works through a prompt beside everything else."""
_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.max_send_message_length", 64 * 1024 * 1024),
    # A Unix socket has no proxy; do not let the environment name one.
    ("grpc.enable_http_proxy", 0),
)


class GenerateStream:
    """One running Generate call; `cancel` ends it in the engine.

    Whoever has one calls `cancel` in any case: until then the engine's pulse is felt for it.
    """

    def __init__(
        self,
        call: grpc.aio.UnaryStreamCall[pb.GenerateRequest, pb.GenerateEvent],
        pulse: Pulse,
        *,
        connected: bool,
    ) -> None:
        self._messages = Messages(call)
        self._pulse = pulse
        self.events = self._typed_events()
        """Every event, to the end, once. Raises typed errors."""
        self.connected = connected
        """The engine was there when the call was made, so it is not there any more if it fails."""
        pulse.add(self)

    async def _typed_events(self) -> AsyncIterator[pb.GenerateEvent]:
        try:
            async for event in self._messages:
                yield event
        except grpc.aio.AioRpcError as error:
            raise typed(error) from None
        except EndedError:
            raise engine_away() from None

    async def accepted(self) -> pb.Accepted:
        """The first event: the engine has taken the request."""
        event = await anext(self.events, None)
        if event is None or event.WhichOneof("event") != "accepted":
            raise UnavailableError("the engine broke its protocol", code="engine_error")
        return event.accepted

    def cancel(self) -> None:
        """Stop the sequences of this call; harmless when it is over."""
        self._pulse.discard(self)
        self._messages.close()

    def give_up(self) -> None:
        """The engine hangs: whoever iterates gets `engine_unavailable`."""
        self._messages.end()


class _Answer(Generic[A]):
    """A call with one answer that the pulse may end."""

    def __init__(self, call: grpc.aio.UnaryUnaryCall[Any, A]) -> None:
        self._call = call

    def give_up(self) -> None:
        end(self._call)

    async def wait(self, pulse: Pulse) -> A:
        pulse.add(self)
        try:
            return await answer_of(self._call)
        except grpc.aio.AioRpcError as error:
            raise typed(error) from None
        except EndedError:
            raise engine_away() from None
        finally:
            pulse.discard(self)


class EngineClient:
    """Calls to the engine that listens on the Unix socket `socket`."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.aio.insecure_channel(f"unix:{socket}", options=_OPTIONS)
        self._engine = pb_grpc.EngineStub(self._channel)  # type: ignore[no-untyped-call]
        self._health = health_pb2_grpc.HealthStub(self._channel)
        seconds = EVERY_SECONDS
        self._pulse = Pulse(lambda: self._answers(seconds), every_seconds=seconds)

    async def close(self) -> None:
        """Close the channel; calls that still run are cancelled."""
        self._pulse.close()
        await self._channel.close(None)

    def generate(self, request: pb.GenerateRequest) -> GenerateStream:
        """Start `request`; the engine works from now on."""
        connected = self.connected
        return GenerateStream(self._engine.Generate(request), self._pulse, connected=connected)

    @property
    def connected(self) -> bool:
        """Whether the engine was there when it was last heard of; one that hangs is not."""
        ready = bool(self._channel.get_state() == grpc.ChannelConnectivity.READY)
        return ready and not self._pulse.hangs

    async def embed(self, request: pb.EmbedRequest) -> pb.EmbedResponse:
        """The vectors for `request`. Being cancelled cancels the call."""
        call: _Answer[pb.EmbedResponse] = _Answer(self._engine.Embed(request))
        return await call.wait(self._pulse)

    async def score(self, request: pb.ScoreRequest) -> pb.ScoreResponse:
        """The scores for `request`. Being cancelled cancels the call."""
        call: _Answer[pb.ScoreResponse] = _Answer(self._engine.Score(request))
        return await call.wait(self._pulse)

    async def settle(self, request_id: str) -> Sequence[pb.Usage]:
        """What a cancelled call computed, per sequence."""
        request = pb.SettleRequest(request_id=request_id)
        try:
            answer: pb.SettleResponse = await answer_of(
                self._engine.Settle(request, timeout=_QUICK_SECONDS)
            )
        except grpc.aio.AioRpcError as error:
            raise unanswered(error) from None
        return answer.sequences

    async def tokenize(self, request: pb.TokenizeRequest) -> Sequence[int]:
        """The token ids of a prompt. Being cancelled cancels the call."""
        try:
            answer: pb.TokenizeResponse = await answer_of(
                self._engine.Tokenize(request, timeout=_TOKENIZE_SECONDS)
            )
        except grpc.aio.AioRpcError as error:
            raise unanswered(error) from None
        return answer.ids

    async def detokenize(self, request: pb.DetokenizeRequest) -> str:
        """The text of token ids. Being cancelled cancels the call."""
        try:
            answer: pb.DetokenizeResponse = await answer_of(
                self._engine.Detokenize(request, timeout=_TOKENIZE_SECONDS)
            )
        except grpc.aio.AioRpcError as error:
            raise unanswered(error) from None
        return answer.text

    async def models(self) -> Sequence[pb.Model]:
        """Every model the engine holds, in whatever state."""
        try:
            answer: pb.ListModelsResponse = await answer_of(
                self._engine.ListModels(pb.ListModelsRequest(), timeout=_QUICK_SECONDS)
            )
        except grpc.aio.AioRpcError as error:
            raise unanswered(error) from None
        return answer.models

    async def stats(self) -> Sequence[pb.ModelStats]:
        """Counters and gauges, per model."""
        try:
            answer: pb.StatsResponse = await answer_of(
                self._engine.Stats(pb.StatsRequest(), timeout=_QUICK_SECONDS)
            )
        except grpc.aio.AioRpcError as error:
            raise unanswered(error) from None
        return answer.models

    async def _answers(self, seconds: float) -> bool:
        """False if no answer came within `seconds`; an error is one."""
        try:
            await answer_of(
                self._health.Check(health_pb2.HealthCheckRequest(service=""), timeout=seconds)
            )
        except grpc.aio.AioRpcError as error:
            return bool(error.code() != grpc.StatusCode.DEADLINE_EXCEEDED)
        return True

    async def serving(self) -> bool:
        """Whether the engine says of itself that it serves (grpc.health.v1)."""
        try:
            answer = await answer_of(
                self._health.Check(
                    health_pb2.HealthCheckRequest(service=""), timeout=_QUICK_SECONDS
                )
            )
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

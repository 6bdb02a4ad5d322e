"""The gRPC service of engine_v1.proto, one method a call."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from typing import TypeVar

import grpc

from appliance.engine.encoder_runner import Vectors
from appliance.engine.generation import Generation
from appliance.engine.grammar.turn import Turn
from appliance.engine.output import FinishReason
from appliance.engine.reranker import Ranking
from appliance.engine.tokenizer import Tokenizer
from appliance.engine_daemon import stats, wire
from appliance.engine_daemon.asked import deadline_of, encode_chat, generation_of, held_to
from appliance.engine_daemon.calls import Call, CallLedger, EmbedCall
from appliance.engine_daemon.faults import ServicerContext, answered
from appliance.engine_daemon.hosted import HostedModel
from appliance.engine_daemon.queueing import Queueing
from appliance.engine_daemon.registry import ModelRegistry
from appliance.pb import engine_v1_pb2 as pb
from appliance.pb import engine_v1_pb2_grpc as pb_grpc

T = TypeVar("T")


class EngineService(pb_grpc.EngineServicer):
    """Translates; the registry and its models do the work."""

    def __init__(self, registry: ModelRegistry) -> None:
        self._registry = registry
        self._ledger = CallLedger()

    async def Generate(self, request: pb.GenerateRequest, context: ServicerContext) -> None:  # noqa: N802
        async with answered(context):
            hosted, adapter = self._registry.called(request.model)
            with nullcontext() if adapter is None else adapter.preparing():
                await self._generate(request, context, hosted, adapter)

    async def Settle(  # noqa: N802
        self, request: pb.SettleRequest, context: ServicerContext
    ) -> pb.SettleResponse:
        async with answered(context):
            finished = await self._ledger.get(request.request_id).settled()
            return pb.SettleResponse(sequences=[wire.usage(end) for end in finished])

    async def Embed(self, request: pb.EmbedRequest, context: ServicerContext) -> pb.EmbedResponse:  # noqa: N802
        async with answered(context):
            hosted = self._registry.serving(request.model)
            model = hosted.embedding
            model.check_dimensions(request.dimensions)
            inputs = [_embed_input(given) for given in request.inputs]
            call = self._ledger.open_whole(request.request_id)
            texts = await self._queued(
                call, hosted, lambda: model.encode(inputs), lambda t: hosted.embed(call, t)
            )
            vectors = model.shortened(await self._results(call, hosted), request.dimensions)
            return pb.EmbedResponse(
                embeddings=[pb.Embedding(values=row.tolist()) for row in vectors],
                prompt_tokens=sum(map(len, texts)),
                bundle_digest=hosted.bundle.digest,
            )

    async def Score(self, request: pb.ScoreRequest, context: ServicerContext) -> pb.ScoreResponse:  # noqa: N802
        async with answered(context):
            hosted = self._registry.serving(request.model)
            model = hosted.reranker
            asked = Ranking(
                list(request.queries),
                list(request.documents),
                request.instruction,
                request.max_document_tokens,
            )
            call = self._ledger.open_whole(request.request_id)
            pairs = await self._queued(
                call, hosted, lambda: model.encode(asked), lambda p: hosted.score(call, p)
            )
            scores = await self._results(call, hosted)
            return pb.ScoreResponse(
                scores=scores.tolist(),
                prompt_tokens=sum(map(len, pairs)),
                bundle_digest=hosted.bundle.digest,
            )

    async def _queued(
        self,
        call: EmbedCall,
        hosted: HostedModel,
        encode: Callable[[], list[T]],
        queue: Callable[[list[T]], None],
    ) -> list[T]:
        """What `encode` gives, in a thread, handed to `queue`; if it comes to that, it will run."""
        try:
            with hosted.preparing():
                texts = await asyncio.to_thread(encode)
                queue(texts)
        except BaseException:
            self._ledger.forget(call)
            raise
        return texts

    async def _results(self, call: EmbedCall, hosted: HostedModel) -> Vectors:
        """Raises UnavailableError. Whoever stops waiting stops the computation."""
        try:
            return await call.results()
        finally:
            hosted.cancel(call.number)
            self._ledger.close(call)

    async def Load(self, request: pb.LoadRequest, context: ServicerContext) -> pb.LoadResponse:  # noqa: N802
        async with answered(context):
            hosted = await self._registry.load(request.model)
            return pb.LoadResponse(model=hosted.describe())

    async def Unload(  # noqa: N802
        self, request: pb.UnloadRequest, context: ServicerContext
    ) -> pb.UnloadResponse:
        async with answered(context):
            await self._registry.unload(request.model)
            return pb.UnloadResponse()

    async def ListModels(  # noqa: N802
        self, _request: pb.ListModelsRequest, _context: ServicerContext
    ) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[hosted.describe() for hosted in self._registry.all()])

    async def Tokenize(  # noqa: N802
        self, request: pb.TokenizeRequest, context: ServicerContext
    ) -> pb.TokenizeResponse:
        async with answered(context):
            hosted, _ = self._registry.called(request.model)
            with hosted.preparing():
                if request.WhichOneof("prompt") == "chat":
                    chat = await asyncio.to_thread(encode_chat, hosted.chat, request.chat)
                    ids = chat.ids
                else:
                    assert hosted.model is not None
                    ids = await asyncio.to_thread(hosted.model.tokenizer.encode_text, request.text)
            return pb.TokenizeResponse(ids=ids)

    async def Detokenize(  # noqa: N802
        self, request: pb.DetokenizeRequest, context: ServicerContext
    ) -> pb.DetokenizeResponse:
        async with answered(context):
            hosted, _ = self._registry.called(request.model)
            assert hosted.model is not None
            with hosted.preparing():
                text = await asyncio.to_thread(hosted.model.tokenizer.decode, request.tokens.ids)
            return pb.DetokenizeResponse(text=text)

    async def Stats(  # noqa: N802
        self, _request: pb.StatsRequest, _context: ServicerContext
    ) -> pb.StatsResponse:
        return stats.summed(self._registry.all())

    async def _generate(
        self,
        request: pb.GenerateRequest,
        context: ServicerContext,
        hosted: HostedModel,
        adapter: HostedModel | None,
    ) -> None:
        """Run the call on `hosted`, with an adapter if it was called by that one's name."""
        deadline = deadline_of(request, context)
        called = hosted if adapter is None else adapter
        # The model may be gone before its last events are read.
        tokenizer = hosted.chat.tokenizer
        call = self._ledger.open(request.request_id, wire.sequence_count(request))
        queueing = Queueing(lambda generation: hosted.generate(call, generation))

        def prepare() -> tuple[Generation, Turn]:
            """The generation, queued unless a grammar has to be made first. In a thread."""
            generation, asked = generation_of(
                hosted.chat, call.number, request, deadline, queueing.ended
            )
            if adapter is not None:
                generation = dataclasses.replace(generation, adapter=adapter.bundle.digest)
            if not asked.constrains:
                queueing.queue(generation)
            return generation, asked

        try:
            with hosted.preparing(), queueing:
                generation, asked = await asyncio.to_thread(prepare)
                if asked.constrains:
                    generation = await held_to(asked, generation, hosted.chat)
                    queueing.queue(generation)
        except BaseException:
            if queueing.done:
                hosted.cancel(call.number)
                self._ledger.close(call)
            else:
                self._ledger.forget(call)
            raise
        accepted = pb.Accepted(
            prompt_tokens=len(generation.prompt), bundle_digest=called.bundle.digest
        )
        try:
            await hosted.taken_up()
            await self._stream(call, accepted, tokenizer, context)
        finally:
            hosted.cancel(call.number)
            self._ledger.close(call)

    async def _stream(
        self, call: Call, accepted: pb.Accepted, tokenizer: Tokenizer, context: ServicerContext
    ) -> None:
        await context.write(pb.GenerateEvent(accepted=accepted))
        async for events in call.events():
            await context.write(wire.generate_event(events, tokenizer))
        if any(end.reason is FinishReason.DEADLINE for end in call.finished):
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the call's time is up")


def _embed_input(given: pb.EmbedInput) -> str | list[int]:
    if given.WhichOneof("input") == "tokens":
        return list(given.tokens.ids)
    return given.text

"""The gRPC service of engine_v1.proto, one method a call."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar

import grpc
import msgspec

from appliance.engine.chat_model import ChatModel
from appliance.engine.encoder_runner import Vectors
from appliance.engine.generation import Generation
from appliance.engine.grammar.constraint import CompiledGrammar
from appliance.engine.grammar.turn import Turn
from appliance.engine.guessing.drafting import Prediction
from appliance.engine.llm_engine import LLMEngine
from appliance.engine.output import FinishReason
from appliance.engine.reranker import Ranking
from appliance.engine.tokenizer import Tokenizer
from appliance.engine.vision.eyes import Shown
from appliance.engine_daemon import wire
from appliance.engine_daemon.calls import Call, CallLedger, EmbedCall
from appliance.engine_daemon.faults import ServicerContext, answered
from appliance.engine_daemon.hosted import HostedModel
from appliance.engine_daemon.queueing import Queueing
from appliance.engine_daemon.registry import ModelRegistry
from appliance.engine_daemon.turns import turn
from appliance.errors import RequestError
from appliance.pb import engine_v1_pb2 as pb
from appliance.pb import engine_v1_pb2_grpc as pb_grpc
from appliance.prompting import Conversation, Tool

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
                    chat = await asyncio.to_thread(_encode_chat, hosted.chat, request.chat)
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
        merged: dict[str, pb.ModelStats] = {}
        for hosted in self._registry.all():
            if hosted.base is not None:
                continue  # an adapter: its base has the sequences
            _add_stats(merged.setdefault(hosted.bundle.name, pb.ModelStats()), hosted)
        return pb.StatsResponse(models=merged.values())

    async def _generate(
        self,
        request: pb.GenerateRequest,
        context: ServicerContext,
        hosted: HostedModel,
        adapter: HostedModel | None,
    ) -> None:
        """Run the call on `hosted`, with an adapter if it was called by that one's name."""
        deadline = _deadline(request, context)
        called = hosted if adapter is None else adapter
        # The model may be gone before its last events are read.
        tokenizer = hosted.chat.tokenizer
        call = self._ledger.open(request.request_id, wire.sequence_count(request))
        queueing = Queueing(lambda generation: hosted.generate(call, generation))

        def prepare() -> tuple[Generation, Turn]:
            """The generation, queued unless a grammar has to be made first. In a thread."""
            generation, asked = _generation(hosted.chat, call, request, deadline, queueing.ended)
            if adapter is not None:
                generation = dataclasses.replace(generation, adapter=adapter.bundle.digest)
            if not asked.constrains:
                queueing.queue(generation)
            return generation, asked

        try:
            with hosted.preparing(), queueing:
                generation, asked = await asyncio.to_thread(prepare)
                if asked.constrains:
                    generation = await _held_to(asked, generation, hosted.chat)
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


def _deadline(request: pb.GenerateRequest, context: ServicerContext) -> float | None:
    """The earlier one of the request's and of the call's own, by the monotonic clock."""
    remaining: float | None = context.time_remaining()
    seconds = [] if remaining is None else [remaining]
    if request.deadline_ms:
        seconds.append(request.deadline_ms / 1000)
    return time.monotonic() + min(seconds) if seconds else None


def _generation(
    model: ChatModel,
    call: Call,
    request: pb.GenerateRequest,
    deadline: float | None,
    gone: Callable[[], bool],
) -> tuple[Generation, Turn]:
    """What the request asks of the engine. Blocks on the template, and while images are seen.

    Raises RequestError, CapacityError.
    """
    params = wire.sampling_params(request.sampling, model.generation)
    kind = request.WhichOneof("prompt")
    thinking, opened, param, shown = False, False, "prompt", None
    functions: tuple[Tool, ...] = ()
    opening = 0
    if kind == "chat":
        chat = _encode_chat(model, request.chat)
        prompt, opened, shown = chat.ids, chat.opened, chat.shown
        thinking, functions = chat.conversation.thinking, chat.conversation.tools
        param = "messages"
        if request.cache_namespace:
            opening = model.opening(chat.conversation, prompt)
    elif kind == "text":
        prompt = model.tokenizer.encode_text(request.text)
    elif kind == "tokens":
        prompt = list(request.tokens.ids)
    elif kind == "fill_in":
        prompt = model.encode_fill_in(request.fill_in.prefix, request.fill_in.suffix)
        if not request.sampling.ignore_eos:
            params = dataclasses.replace(params, end_ids=params.end_ids | {*model.fill_in_ids})
    else:
        raise RequestError("there is no prompt", param="prompt")
    asked = turn(request, model.prompting, thinking=thinking, reasoning_opened=opened)
    prediction = None
    if request.prediction:
        prediction = Prediction(model.tokenizer.encode_text(request.prediction))
    sight = None
    if shown is not None:
        assert model.eyes is not None
        model.engine.check_length(prompt, param)
        sight = model.eyes.see(shown, gone, request.cache_namespace)
    generation = Generation(
        call.number,
        prompt,
        params,
        wire.sequence_count(request),
        chat=kind == "chat",
        tools=kind == "chat" and asked.calls != "none",
        functions=functions,
        continued=kind == "chat" and request.chat.continue_final_message,
        reasoning_opened=opened,
        cache_namespace=request.cache_namespace,
        caller=request.caller,
        priority=request.priority,
        share=wire.share(request),
        deadline=deadline,
        prediction=prediction,
        opening=opening,
        sight=sight,
        prompt_param=param,
    )
    return generation, asked


async def _held_to(asked: Turn, generation: Generation, model: ChatModel) -> Generation:
    """`generation` with the grammar of its turn. Raises RequestError, CapacityError."""
    compiled: CompiledGrammar = await asyncio.wrap_future(model.grammars.compiled(asked))
    return dataclasses.replace(
        generation,
        grammar=compiled,
        calls_first=asked.calls == "required" or asked.structured is not None,
        reasoning=asked.reasoning != "none",
    )


@dataclass(frozen=True, slots=True)
class _Chat:
    """A chat prompt, encoded.

    Attributes:
        conversation: what was asked for.
        ids: its tokens, those of images included.
        opened: it ends with the opening tag of reasoning.
        shown: its images, decoded.
    """

    conversation: Conversation
    ids: list[int]
    opened: bool
    shown: Shown | None


def _encode_chat(model: ChatModel, prompt: pb.ChatPrompt) -> _Chat:
    """Blocks on the template, and while images are decoded. Raises RequestError."""
    if prompt.tools and not model.prompting.tool_format:
        raise RequestError("this model cannot call tools", param="tools", hint="leave them out")
    conversation = wire.conversation(
        prompt, thinking=model.generation.thinking, sees=model.eyes is not None
    )
    if not conversation.thinking and model.prompting.reasoning is not msgspec.UNSET:
        raise RequestError(
            "this model always reasons before it answers",
            param="thinking",
            hint="leave the parameter out, or ask for little reasoning",
        )
    ids, opened = model.encode_chat(conversation)
    shown = model.show(ids, wire.images(prompt))
    return _Chat(conversation, ids if shown is None else shown.ids, opened, shown)


def _embed_input(given: pb.EmbedInput) -> str | list[int]:
    if given.WhichOneof("input") == "tokens":
        return list(given.tokens.ids)
    return given.text


def _add_stats(stats: pb.ModelStats, hosted: HostedModel) -> None:
    stats.model = hosted.bundle.name
    model = hosted.model
    if model is None:
        return
    for engine in model.engines:
        stats.sequences_waiting += engine.waiting
        stats.steps += engine.counters.steps
        stats.prompt_tokens += engine.counters.prompt_tokens
        stats.sequences_finished += engine.counters.finished
        stats.sequences_cancelled += engine.counters.cancelled
    if isinstance(model, ChatModel):
        for engine in model.engines:
            _add_chat(stats, engine)
            _add_classes(stats, engine)
        stats.cache_bytes_total += model.cache_bytes
        stats.cache_bytes_used += model.cache_bytes_used


def _add_chat(stats: pb.ModelStats, engine: LLMEngine) -> None:
    stats.sequences_running += engine.running
    stats.generated_tokens += engine.counters.generated_tokens
    stats.prefix_cache_queries += engine.counters.prefix_queries
    stats.cached_tokens += engine.counters.cached_tokens
    stats.recomputed_tokens += engine.counters.recomputed_tokens
    stats.preemptions += engine.counters.preemptions
    stats.sequences_expired += engine.counters.expired
    stats.drafted_tokens += engine.counters.drafted_tokens
    stats.accepted_tokens += engine.counters.accepted_tokens


def _add_classes(stats: pb.ModelStats, engine: LLMEngine) -> None:
    """The figures of shared and dedicated capacity, added to those of other versions."""
    if not stats.classes:
        stats.classes.extend(pb.ClassStats(name=name) for name in ("shared", "dedicated"))
    now, sums = engine.classes, (engine.counters.shared, engine.counters.dedicated)
    shared, dedicated = stats.classes
    dedicated.slots_reserved += now.reserved
    figures = zip((shared, dedicated), now.running, now.waiting, sums, strict=True)
    for shown, running, waiting, counters in figures:
        shown.sequences_running += running
        shown.sequences_waiting += waiting
        shown.prompt_tokens += counters.prompt_tokens
        shown.generated_tokens += counters.generated_tokens
        shown.preemptions += counters.preemptions

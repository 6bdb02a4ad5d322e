"""One bundle that the daemon hosts, from loading to drained.

    LOADING ──> SERVING ──> DRAINING ──> (gone)
       └──────> FAILED

Owns the loaded model, a stepping thread for each of its engines, and the calls that wait for their
outputs. Lives on the event loop; only `Stepper`'s threads are elsewhere.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

from appliance.bundle.specs import RerankSpec, VisionSpec
from appliance.compiler import Artifact
from appliance.engine.chat_model import ChatModel
from appliance.engine.embedding_engine import EmbeddingOutput
from appliance.engine.embedding_model import EmbeddingModel
from appliance.engine.encoder_runner import Pair
from appliance.engine.generation import Generation, Output
from appliance.engine.loaded import LoadedModel
from appliance.engine.replicas import least_waiting, place
from appliance.engine.reranker import RerankModel
from appliance.engine.session import PROVIDERS
from appliance.engine_daemon.calls import Call, EmbedCall
from appliance.engine_daemon.stepper import Engine, Stepper
from appliance.errors import ApplianceError, RequestError, UnavailableError
from appliance.model_store import StoredBundle
from appliance.pb import engine_v1_pb2 as pb

HEAD_START_SECONDS = 0.001
"""How long the first token of a call that is alone has the machine to itself on its way out. Beside
the next step, which takes all processors and all of the memory's speed, it would be on its way
twice as long; the token behind it is as much later."""


class State(enum.Enum):
    LOADING = pb.MODEL_STATE_LOADING
    SERVING = pb.MODEL_STATE_SERVING
    DRAINING = pb.MODEL_STATE_DRAINING
    FAILED = pb.MODEL_STATE_FAILED


class _Receiver(Protocol):
    @property
    def ended(self) -> bool: ...
    def deliver(self, event: Any, /) -> None: ...  # noqa: ANN401 - the kind is the engine's


class HostedModel:
    """Made while loading; `serve` or `fail` settles what becomes of it."""

    def __init__(self, bundle: StoredBundle) -> None:
        self.bundle = bundle
        self.state = State.LOADING
        self.error = self.hint = ""
        self.model: LoadedModel | None = None
        self.base: HostedModel | None = None
        """Of an adapter: the model that computes it, which has the calls."""
        self._artifact: Artifact | None = None
        self._steppers: tuple[Stepper, ...] = ()
        self._calls: dict[int, _Receiver] = {}
        self._preparing = 0
        self._refusing = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._awake = asyncio.Event()
        self._delivered = 0
        """Whose outputs a stepping thread handed on last; no call has number 0."""

    def serve(self, model: LoadedModel, artifact: Artifact) -> None:
        """The model is loaded: take calls."""
        loop = asyncio.get_running_loop()

        def deliver(outputs: Sequence[Output | EmbeddingOutput], engine: Engine) -> None:
            loop.call_soon_threadsafe(self._deliver, outputs)
            if self._begins_alone(outputs) and engine.has_work:
                time.sleep(HEAD_START_SECONDS)

        def awake() -> None:
            loop.call_soon_threadsafe(self._awake.set)

        self.model = model
        self._artifact = artifact
        engines: tuple[Engine, ...] = model.engines
        self._steppers = tuple(
            Stepper(engine, partial(deliver, engine=engine), awake, name=self.bundle.name)
            for engine in engines
        )
        self.state = State.SERVING

    def serve_with(self, base: HostedModel) -> None:
        """The adapter is loaded into `base`, in place of an earlier version of it: take calls."""
        self.base = base
        self.state = State.SERVING

    def fail(self, error: ApplianceError) -> None:
        self.error, self.hint = error.message, error.hint
        self.state = State.FAILED

    def drain(self) -> None:
        """Take no new calls; those under way go on."""
        self.state = State.DRAINING

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """A call that will be queued is being prepared, or computed with this adapter: the model
        stays until then."""
        self._preparing += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._preparing -= 1
            self._note_idle()

    async def wait_idle(self) -> None:
        """Until no call is under way."""
        await self._idle.wait()

    async def close(self) -> None:
        """Free the memory. Calls that are still under way never hear more."""
        steppers, self._steppers = self._steppers, ()
        model, self.model = self.model, None
        for stepper in steppers:
            await asyncio.to_thread(stepper.stop)
        if model is not None:
            await asyncio.to_thread(model.close)

    @property
    def chat(self) -> ChatModel:
        """Raises RequestError if this is not a chat model."""
        if not isinstance(self.model, ChatModel):
            raise RequestError(
                f"{self.bundle.name} does not generate text",
                param="model",
                hint="name a chat model, or ask for embeddings",
            )
        return self.model

    @property
    def embedding(self) -> EmbeddingModel:
        """Raises RequestError if this is not an embedding model."""
        if not isinstance(self.model, EmbeddingModel):
            raise RequestError(
                f"{self.bundle.name} does not make embeddings",
                param="model",
                hint="name an embedding model, or ask for text",
            )
        return self.model

    @property
    def reranker(self) -> RerankModel:
        """Raises RequestError if this is not a reranker."""
        if not isinstance(self.model, RerankModel):
            raise RequestError(
                f"{self.bundle.name} does not rank texts",
                param="model",
                hint="name a rerank model",
            )
        return self.model

    def generate(self, call: Call, generation: Generation) -> None:
        """Queue a call's sequences, from any thread. Raises RequestError, CapacityError,
        UnavailableError."""
        self._queue(call, lambda: place(self.chat.engines, generation).add(generation))

    async def taken_up(self) -> None:
        """Until the stepping thread is awake, if there is something for it to do.

        Of one interpreter's threads one runs at a time: whoever goes on after `generate` without
        this keeps an engine that slept from beginning.
        """
        self._awake.clear()
        # With work a thread that sleeps was woken already; that it is awake is told behind this.
        if any(stepper.sleeping and stepper.has_work for stepper in self._steppers):
            await self._awake.wait()

    def embed(self, call: EmbedCall, texts: Sequence[Sequence[int]]) -> None:
        """Queue a call's texts. Raises CapacityError, UnavailableError."""
        self._queue(call, lambda: least_waiting(self.embedding.engines).add(call.number, texts))

    def score(self, call: EmbedCall, pairs: Sequence[Pair]) -> None:
        """Queue a call's pairs. Raises CapacityError, UnavailableError."""
        self._queue(call, lambda: least_waiting(self.reranker.engines).add(call.number, pairs))

    def cancel(self, number: int) -> None:
        """Drop a call before the next step; unknown and ended ones are left alone."""
        if self.model is not None:
            for engine in self.model.engines:
                engine.cancel(number)
            self._wake()

    def cancel_all(self) -> None:
        """Drop every call, also one that is still being prepared."""
        self._refusing = True
        for number in list(self._calls):
            self.cancel(number)

    @property
    def step_seconds(self) -> float:
        """How long the step under way has lasted; 0 if there is none."""
        return max((stepper.step_seconds for stepper in self._steppers), default=0.0)

    def describe(self) -> pb.Model:
        """This model as ListModels shows it."""
        if self.bundle.manifest.as_adapter is not None:
            return self._describe_adapter()
        manifest = self.bundle.manifest
        shown = pb.Model(
            name=self.bundle.name,
            version=self.bundle.version,
            kind=manifest.kind,
            bundle_digest=self.bundle.digest,
            artifact=self._artifact.key if self._artifact is not None else "",
            provider=PROVIDERS[self._artifact.provider] if self._artifact is not None else "",
            memory_bytes=self.model.memory_bytes if self.model is not None else 0,
            state=self.state.value,
            created=manifest.created,
            error=self.error,
            hint=self.hint,
        )
        if self.model is not None and self._artifact is not None:
            fit = self._artifact.record.fit
            shown.gpus = 0 if fit is None else len(self.model.engines) * fit.gpus
        if manifest.encoder is not None:
            shown.dimensions = manifest.encoder.dimensions
            shown.context_length = manifest.encoder.max_length
        if isinstance(manifest.reranker, RerankSpec):
            shown.context_length = manifest.reranker.max_length
        if isinstance(self.model, RerankModel):
            shown.pair_tokens = self.model.pair_tokens
        if manifest.prompting is not None:
            shown.supports_tools = bool(manifest.prompting.tool_format)
            shown.supports_thinking = bool(manifest.prompting.reasoning_start)
        shown.supports_images = isinstance(manifest.vision, VisionSpec)
        if isinstance(self.model, ChatModel):
            shown.context_length = self.model.cache_shape.capacity
            shown.max_sequences = self.model.max_sequences
        return shown

    def _describe_adapter(self) -> pb.Model:
        """A chat model to whoever calls it: its base's, but for what it is and takes itself."""
        spec = self.bundle.manifest.as_adapter
        assert spec is not None
        base = self.base.describe() if self.base is not None else pb.Model(kind="chat")
        return pb.Model(
            name=self.bundle.name,
            version=self.bundle.version,
            kind=base.kind,
            bundle_digest=self.bundle.digest,
            artifact=base.artifact,
            provider=base.provider,
            gpus=base.gpus,
            context_length=base.context_length,
            max_sequences=base.max_sequences,
            memory_bytes=spec.layers * spec.file_size if self.state is State.SERVING else 0,
            state=self.state.value,
            created=self.bundle.manifest.created,
            error=self.error,
            hint=self.hint,
            supports_tools=base.supports_tools,
            supports_thinking=base.supports_thinking,
            supports_images=base.supports_images,
            base_model=spec.base.name,
        )

    def _admit(self) -> None:
        if self._refusing:
            raise UnavailableError("the engine is stopping", hint="try again in a moment")

    def _queue(self, call: Call | EmbedCall, add: Callable[[], None]) -> None:
        """Let `call` have what comes of `add`. Within `preparing`."""
        self._admit()
        assert self._steppers, "it serves"
        # Before there can be anything to deliver.
        self._calls[call.number] = call
        try:
            add()
        except BaseException:
            del self._calls[call.number]
            raise
        self._wake()
        if self._refusing:  # since it was looked at above
            self.cancel(call.number)

    def _wake(self) -> None:
        """Whoever has something to do. From any thread."""
        for stepper in self._steppers:
            if stepper.has_work:
                stepper.wake()

    def _begins_alone(self, outputs: Sequence[Output | EmbeddingOutput]) -> bool:
        """Whether these are the first of the only call. On the stepping thread."""
        if not outputs:
            return False
        before, self._delivered = self._delivered, outputs[-1].call
        return before != self._delivered and len(self._calls) == 1

    def _deliver(self, outputs: Sequence[Output | EmbeddingOutput]) -> None:
        for output in outputs:
            receiver = self._calls.get(output.call)
            if receiver is None:
                continue
            receiver.deliver(output.event)
            if receiver.ended:
                del self._calls[output.call]
        self._note_idle()

    def _note_idle(self) -> None:
        if not self._calls and not self._preparing:
            self._idle.set()

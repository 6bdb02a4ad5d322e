"""A compiled decoder opened on what it was compiled for: its runner, and the cache it runs over.

Owns the choice between the processor's way of running a model and the GPU's, which the
artifact's record makes. Refuses a session that took another provider.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

import onnxruntime as ort

from appliance.bundle.specs import DecoderSpec, HeadSpec
from appliance.compiler import Artifact
from appliance.config import EngineSettings
from appliance.engine.adapters.adapters import AdaptedDecoder, Prepare, Ready
from appliance.engine.adapters.bank import AdapterBank
from appliance.engine.adapters.graphs import AdaptedGraphs
from appliance.engine.cache_budget import CacheBudget, CacheShape, token_bytes
from appliance.engine.device.device import cuda_devices
from appliance.engine.device.opened import on_cuda, on_tensorrt
from appliance.engine.device.spread import on_each
from appliance.engine.guessing.draft_model import DraftModel
from appliance.engine.guessing.guesser import Guesser
from appliance.engine.guessing.head import Head
from appliance.engine.guessing.head_runner import HeadRunner
from appliance.engine.model_runner import ModelRunner
from appliance.engine.native_pool import NativePool, whole_blocks
from appliance.engine.native_runner import NativeRunner
from appliance.engine.opened_decoder import OpenedDecoder
from appliance.engine.session import (
    ADAPTED_NAME,
    ADAPTED_PREFILL_NAME,
    DRAFT_PREFIX,
    GRAPH_NAME,
    NATIVE_ADAPTED_NAME,
    NATIVE_HEAD_NAME,
    NATIVE_NAME,
    PREFILL_NAME,
    open_session,
)
from appliance.engine.slot_pool import SlotPool
from appliance.engine.vision.runner import VisionRunner


def open_decoders(
    artifact: Artifact,
    decoder: DecoderSpec,
    settings: EngineSettings,
    budget: CacheBudget,
    *,
    sees: bool = False,
    draft: DecoderSpec | None = None,
    head: HeadSpec | None = None,
) -> list[OpenedDecoder]:
    """Open the artifact on its provider: once, or on each GPU that has room for it.

    Raises UnsupportedError, CapacityError.

    `sees`: the decoder reads images, for which the processor has a runner of its own.
    `draft`, `head`: of the small model or the head that the bundle has to guess for it. It is
    opened on the processor, unless the settings forbid guesses; a head, where it was compiled.
    """
    if artifact.provider == "cpu":
        settings = settings.sized(gpu=False)
        if not settings.draft_tokens:
            draft = head = None
        if not (artifact.directory / NATIVE_HEAD_NAME).exists():
            head = None
        return [
            _on_processor(artifact, decoder, settings, budget, sees=sees, draft=draft, head=head)
        ]
    open_on = on_cuda if artifact.provider == "cuda" else on_tensorrt
    assert artifact.record.fit is not None, "what is compiled for a GPU was found to fit"
    return on_each(
        partial(open_on, artifact, decoder, settings.sized(gpu=True), budget),
        artifact.record.fit,
        cuda_devices(),
    )


def _on_processor(
    artifact: Artifact,
    decoder: DecoderSpec,
    settings: EngineSettings,
    budget: CacheBudget,
    *,
    sees: bool,
    draft: DecoderSpec | None,
    head: HeadSpec | None,
) -> OpenedDecoder:
    shape = budget.take(decoder, settings, draft if head is None else head.decoder)
    guessing: Guesser | None = None
    try:
        own = replace(shape, token_bytes=token_bytes(decoder))
        if sees:
            runner, used, adapted = _with_images(artifact, decoder, settings, own)
        else:
            hidden = 0 if head is None else head.hidden
            runner, used, adapted = _opened(artifact, decoder, settings, own, hidden=hidden)
        if draft is not None:
            guessing = _draft_model(artifact, decoder, draft, settings, used)
        elif head is not None:
            assert isinstance(runner, NativeRunner), "a head is compiled with the native graph"
            guessing = _head(artifact, head, settings, used, runner)
    except BaseException:
        budget.give_back(shape)
        raise
    return OpenedDecoder(
        runner,
        replace(used, token_bytes=shape.token_bytes),
        settings,
        False,
        partial(budget.give_back, shape),
        adapted,
        gathered=not isinstance(runner, NativeRunner),
        draft=guessing,
    )


_Graphs = TypeVar("_Graphs")
_Opened = tuple[ModelRunner | NativeRunner | VisionRunner, CacheShape, AdaptedDecoder | None]


def _draft_model(
    artifact: Artifact,
    decoder: DecoderSpec,
    draft: DecoderSpec,
    settings: EngineSettings,
    shape: CacheShape,
) -> DraftModel:
    """The draft model over as many slots as the cache of `shape` has, as long as those."""
    own = replace(shape, token_bytes=token_bytes(draft))
    runner, used, _ = _opened(artifact, draft, settings, own, DRAFT_PREFIX)
    return DraftModel(
        runner,
        slots=used.slots,
        capacity=min(used.capacity, draft.context_length),
        vocab_size=min(decoder.vocab_size, draft.vocab_size),
        gathered=not isinstance(runner, NativeRunner),
    )


def _head(
    artifact: Artifact,
    head: HeadSpec,
    settings: EngineSettings,
    shape: CacheShape,
    runner: NativeRunner,
) -> Head:
    """The head over as many slots as the cache of `shape` has, as long as those."""
    pool = NativePool(head.decoder, replace(shape, token_bytes=token_bytes(head.decoder)))
    session = open_session(artifact.directory, settings.threads, NATIVE_HEAD_NAME, spinning=True)
    own = HeadRunner(session, pool, head.decoder.vocab_size, head.hidden)
    return Head(own, lambda: runner.states, slots=shape.slots, capacity=shape.capacity)


def _opened(
    artifact: Artifact,
    decoder: DecoderSpec,
    settings: EngineSettings,
    shape: CacheShape,
    prefix: str = "",
    *,
    hidden: int = 0,
) -> _Opened:
    """The graphs whose names begin with `prefix`, by native operators where they are compiled.

    `hidden`: of the states that these give out for a head.
    """
    if (artifact.directory / (prefix + NATIVE_NAME)).exists():
        return _on_native_operators(artifact, decoder, settings, shape, prefix, hidden)
    return _on_graphs(artifact, decoder, settings, shape, prefix)


def _on_native_operators(
    artifact: Artifact,
    decoder: DecoderSpec,
    settings: EngineSettings,
    shape: CacheShape,
    prefix: str,
    hidden: int,
) -> _Opened:
    def session(name: str) -> ort.InferenceSession:
        return open_session(artifact.directory, settings.threads, prefix + name, spinning=True)

    used = whole_blocks(shape)
    pool = NativePool(decoder, used)
    runner = NativeRunner(session(NATIVE_NAME), pool, decoder.vocab_size, hidden)
    adapted = AdaptedDecoder(lambda: _later(runner.adopt, session(NATIVE_ADAPTED_NAME)))
    return runner, used, adapted


def _with_images(
    artifact: Artifact, decoder: DecoderSpec, settings: EngineSettings, shape: CacheShape
) -> _Opened:
    session = open_session(artifact.directory, settings.threads)
    pool = SlotPool(decoder, shape)
    runner = VisionRunner(session, pool, decoder.vocab_size, settings.token_budget)
    return runner, shape, None


def _on_graphs(
    artifact: Artifact,
    decoder: DecoderSpec,
    settings: EngineSettings,
    shape: CacheShape,
    prefix: str,
) -> _Opened:
    session = open_session(artifact.directory, settings.threads, prefix + GRAPH_NAME)
    prompts = None
    if decoder.cache == "int8":
        prompts = open_session(artifact.directory, settings.threads, prefix + PREFILL_NAME)
    pool = SlotPool(decoder, shape)
    runner = ModelRunner(session, pool, decoder.vocab_size, settings.token_budget, prompts)
    adapted = AdaptedDecoder(
        lambda: _later(runner.adopt, _open_adapted(artifact, decoder, settings, pool))
    )
    return runner, shape, adapted


def _later(adopt: Callable[[_Graphs, AdapterBank], None], graphs: _Graphs) -> Prepare:
    """In this machine's own memory there is nothing to prepare."""
    return lambda bank: Ready(partial(adopt, graphs, bank))


def _open_adapted(
    artifact: Artifact, decoder: DecoderSpec, settings: EngineSettings, pool: SlotPool
) -> AdaptedGraphs:
    """The graphs with adapters, over the same weights and slots. Raises UnsupportedError."""
    session = open_session(artifact.directory, settings.threads, ADAPTED_NAME)
    prompts = None
    if decoder.cache == "int8":
        prompts = open_session(artifact.directory, settings.threads, ADAPTED_PREFILL_NAME)
    return AdaptedGraphs(session, pool, settings.token_budget, prompts)

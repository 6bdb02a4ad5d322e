"""A compiled decoder opened on what it was compiled for: its runner, and the cache it runs over.

Owns the choice between the processor's way of running a model and the GPU's, which the
artifact's record makes. Refuses a session that took another provider.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

import onnxruntime as ort

from appliance.bundle.manifest import DecoderSpec
from appliance.compiler import Artifact
from appliance.compiler.profiles import Profile, plan, sizes_for
from appliance.config import EngineSettings
from appliance.engine.adapted_graphs import AdaptedGraphs
from appliance.engine.adapters import AdaptedDecoder
from appliance.engine.cache_budget import CacheBudget, CacheShape, fit, token_bytes
from appliance.engine.device import CudaDevice, Device
from appliance.engine.device_pool import ITEM_BYTES, DevicePool
from appliance.engine.device_runner import DeviceRunner
from appliance.engine.llm_engine import Runner
from appliance.engine.model_runner import ModelRunner
from appliance.engine.native_pool import NativePool, whole_blocks
from appliance.engine.native_runner import NativeRunner
from appliance.engine.session import (
    ADAPTED_NAME,
    ADAPTED_PREFILL_NAME,
    NATIVE_ADAPTED_NAME,
    NATIVE_NAME,
    PREFILL_NAME,
    open_cuda_session,
    open_session,
    open_tensorrt_session,
)
from appliance.engine.slot_pool import SlotPool
from appliance.engine.static_pool import StaticPool
from appliance.engine.static_runner import StaticRunner
from appliance.engine.vision.runner import VisionRunner
from appliance.errors import CapacityError

_SPARE_BYTES = 1 << 30
"""Left for what the graph computes in between, and for kernels that CUDA loads."""


@dataclass(frozen=True, slots=True)
class OpenedDecoder:
    """A decoder ready to run.

    Attributes:
        runner: computes plans.
        shape: of the cache.
        settings: the engine's, with the numbers that suit what computes.
        recorded: steps are replayed, not started kernel by kernel; False on the processor.
        close: gives back what the cache took.
        adapted: what it can do with adapters; None on a GPU.
        gathered: it wants the decoding sequences in the first slots.
    """

    runner: Runner
    shape: CacheShape
    settings: EngineSettings
    recorded: bool
    close: Callable[[], None]
    adapted: AdaptedDecoder | None = None
    gathered: bool = True


def open_decoder(
    artifact: Artifact,
    decoder: DecoderSpec,
    settings: EngineSettings,
    budget: CacheBudget,
    *,
    sees: bool = False,
) -> OpenedDecoder:
    """Open the artifact on its provider. Raises UnsupportedError, CapacityError.

    `sees`: the decoder reads images, which only the processor's graphs do.
    """
    if artifact.provider == "cpu":
        return _on_processor(artifact, decoder, settings.sized(gpu=False), budget, sees=sees)
    if artifact.provider == "cuda":
        return _on_cuda(artifact, decoder, settings.sized(gpu=True))
    return _on_tensorrt(artifact, decoder, settings.sized(gpu=True))


def device_shape(
    decoder: DecoderSpec, settings: EngineSettings, device: Device, spare: int
) -> CacheShape:
    """The cache that fits on `device` beside what is there, as `fit` cuts it.

    Half of what is free but for `spare` bytes, so that the model's next version finds room, or
    `engine.cache_bytes` if that is less. Raises CapacityError.
    """
    results = 8 * settings.max_sequences * decoder.vocab_size
    available = max(0, device.free_bytes() - spare - results) // 2
    if settings.cache_bytes:
        available = min(available, settings.cache_bytes)
    return fit(decoder, settings, available, token_bytes(decoder, ITEM_BYTES))


def static_shape(
    decoder: DecoderSpec,
    settings: EngineSettings,
    device: Device,
    spare: int,
    profiles: Iterable[Profile],
) -> CacheShape:
    """As `device_shape`, with a capacity that there are engines for: the longest that fits.

    Raises CapacityError.
    """
    for capacity in sorted({profile.capacity for profile in profiles}, reverse=True):
        limited = replace(settings, max_context=capacity)
        shape = device_shape(decoder, limited, device, spare)
        if shape.capacity == capacity:
            return shape
    raise CapacityError(
        f"the shortest cache that TensorRT was compiled for, {capacity} tokens, does not fit",
        hint="unload a model, or raise engine.cache_bytes",
        code="cache_full",
    )


def _on_processor(
    artifact: Artifact,
    decoder: DecoderSpec,
    settings: EngineSettings,
    budget: CacheBudget,
    *,
    sees: bool,
) -> OpenedDecoder:
    shape = budget.take(decoder, settings)
    try:
        opened = _on_graphs
        if sees:
            opened = _with_images
        elif (artifact.directory / NATIVE_NAME).exists():
            opened = _on_native_operators
        runner, used, adapted = opened(artifact, decoder, settings, shape)
    except BaseException:
        budget.give_back(shape)
        raise
    return OpenedDecoder(
        runner,
        used,
        settings,
        False,
        lambda: budget.give_back(shape),
        adapted,
        gathered=not isinstance(runner, NativeRunner),
    )


_Opened = tuple[Runner, CacheShape, AdaptedDecoder | None]


def _on_native_operators(
    artifact: Artifact, decoder: DecoderSpec, settings: EngineSettings, shape: CacheShape
) -> _Opened:
    def session(name: str) -> ort.InferenceSession:
        return open_session(artifact.directory, settings.threads, name, spinning=True)

    used = whole_blocks(shape)
    pool = NativePool(decoder, used)
    runner = NativeRunner(session(NATIVE_NAME), pool, decoder.vocab_size)
    adapted = AdaptedDecoder(lambda: partial(runner.adopt, session(NATIVE_ADAPTED_NAME)))
    return runner, used, adapted


def _with_images(
    artifact: Artifact, decoder: DecoderSpec, settings: EngineSettings, shape: CacheShape
) -> _Opened:
    session = open_session(artifact.directory, settings.threads)
    return VisionRunner(session, SlotPool(decoder, shape), decoder.vocab_size), shape, None


def _on_graphs(
    artifact: Artifact, decoder: DecoderSpec, settings: EngineSettings, shape: CacheShape
) -> _Opened:
    session = open_session(artifact.directory, settings.threads)
    prompts = None
    if decoder.cache == "int8":
        prompts = open_session(artifact.directory, settings.threads, PREFILL_NAME)
    pool = SlotPool(decoder, shape)
    runner = ModelRunner(session, pool, decoder.vocab_size, settings.token_budget, prompts)
    adapted = AdaptedDecoder(
        lambda: partial(runner.adopt, _open_adapted(artifact, decoder, settings, pool))
    )
    return runner, shape, adapted


def _open_adapted(
    artifact: Artifact, decoder: DecoderSpec, settings: EngineSettings, pool: SlotPool
) -> AdaptedGraphs:
    """The graphs with adapters, over the same weights and slots. Raises UnsupportedError."""
    session = open_session(artifact.directory, settings.threads, ADAPTED_NAME)
    prompts = None
    if decoder.cache == "int8":
        prompts = open_session(artifact.directory, settings.threads, ADAPTED_PREFILL_NAME)
    return AdaptedGraphs(session, pool, settings.token_budget, prompts)


def _on_cuda(artifact: Artifact, decoder: DecoderSpec, settings: EngineSettings) -> OpenedDecoder:
    session, recorded = open_cuda_session(artifact.directory)
    device = CudaDevice()
    shape = device_shape(decoder, settings, device, _SPARE_BYTES)
    pool = DevicePool(decoder, shape, device)
    try:
        runner = DeviceRunner(session, pool, decoder, settings.token_budget, record=recorded)
    except BaseException:
        pool.close()
        raise
    return OpenedDecoder(runner, shape, settings, recorded, runner.close)


def _on_tensorrt(
    artifact: Artifact, decoder: DecoderSpec, settings: EngineSettings
) -> OpenedDecoder:
    assert artifact.record.fit is not None, "what is compiled for a GPU was found to fit"
    profiles = plan(sizes_for(decoder, settings, artifact.record.fit))
    sessions = {
        profile: open_tensorrt_session(artifact.directory, profile.graph) for profile in profiles
    }
    device = CudaDevice()
    shape = static_shape(decoder, settings, device, _SPARE_BYTES, profiles)
    capacities = {p.capacity for p in profiles if p.capacity <= shape.capacity}
    pool = StaticPool(decoder, shape, device, capacities)
    try:
        runner = StaticRunner(sessions, pool, decoder, settings.token_budget)
    except BaseException:
        pool.close()
        raise
    return OpenedDecoder(runner, shape, settings, False, runner.close)

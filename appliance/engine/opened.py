"""A compiled decoder opened on what it was compiled for: its runner, and the cache it runs over.

Owns the choice between the processor's way of running a model and the GPU's, which the
artifact's record makes. Refuses a session that took another provider.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from appliance.bundle.manifest import DecoderSpec
from appliance.compiler import Artifact
from appliance.compiler.profiles import Profile, plan, sizes_for
from appliance.config import EngineSettings
from appliance.engine.cache_budget import CacheBudget, CacheShape, fit, token_bytes
from appliance.engine.device import CudaDevice, Device
from appliance.engine.device_pool import ITEM_BYTES, DevicePool
from appliance.engine.device_runner import DeviceRunner
from appliance.engine.llm_engine import Runner
from appliance.engine.model_runner import ModelRunner
from appliance.engine.session import (
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
    """

    runner: Runner
    shape: CacheShape
    settings: EngineSettings
    recorded: bool
    close: Callable[[], None]


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
        session = open_session(artifact.directory, settings.threads)
        prompts = None
        if decoder.cache == "int8":
            prompts = open_session(artifact.directory, settings.threads, PREFILL_NAME)
        pool = SlotPool(decoder, shape)
        runner: Runner
        if sees:
            runner = VisionRunner(session, pool, decoder.vocab_size)
        else:
            runner = ModelRunner(session, pool, decoder.vocab_size, settings.token_budget, prompts)
    except BaseException:
        budget.give_back(shape)
        raise
    return OpenedDecoder(runner, shape, settings, False, lambda: budget.give_back(shape))


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

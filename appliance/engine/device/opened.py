"""A compiled decoder opened on a GPU, or in stages on several: its runner, and the cache there.

Gives back what it took where it cannot be opened whole. Refuses a GPU that would give it a shorter
context than the first one does.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

from appliance.bundle.specs import DecoderSpec
from appliance.compiler import Artifact
from appliance.compiler.artifact import GRAPH_NAME, of_stage
from appliance.compiler.memory import table_bytes
from appliance.compiler.profiles import plan, sizes_for
from appliance.config import EngineSettings
from appliance.engine.adapters.adapters import AdaptedDecoder
from appliance.engine.cache_budget import CacheBudget, CacheShape
from appliance.engine.device.budget import shape_over, static_shape
from appliance.engine.device.device import Device
from appliance.engine.device.draw import DeviceDraw
from appliance.engine.device.pool import DevicePool
from appliance.engine.device.runner import DeviceRunner
from appliance.engine.device.stages import Stage, layers_of, share_of
from appliance.engine.device.static_pool import StaticPool
from appliance.engine.device.static_runner import StaticRunner
from appliance.engine.opened_decoder import OpenedDecoder
from appliance.engine.session import (
    open_cuda_session,
    open_small_session,
    open_tensorrt_session,
)
from appliance.errors import CapacityError, UnsupportedError

_log = logging.getLogger(__name__)

_SPARE_BYTES = 1 << 30
"""Left for what the graph computes in between, and for kernels that CUDA loads."""


def on_cuda(
    artifact: Artifact,
    decoder: DecoderSpec,
    settings: EngineSettings,
    budget: CacheBudget,
    devices: Sequence[Device],
    first: OpenedDecoder | None,
) -> OpenedDecoder:
    """By the CUDA provider, a stage on each device. Raises UnsupportedError, CapacityError.

    first: the same on other GPUs.
    """
    record = artifact.record
    sessions = [
        open_cuda_session(
            artifact.directory,
            of_stage(GRAPH_NAME, number),
            record=record.replays,
            gpu=device.number,
            head_dim=decoder.head_dim,
        )
        for number, device in enumerate(devices)
    ]
    layers = [layers_of(session) for session in sessions]
    shares = [(device, share_of(own, decoder)) for device, own in zip(devices, layers, strict=True)]
    spare = _SPARE_BYTES + table_bytes(decoder)
    shape = shape_over(shares, decoder, settings, spare, budget.share(settings))
    refuse_shorter(shape, first)
    with ExitStack() as opened:
        opened.callback(budget.book(shape, settings))
        stages: list[Stage] = []
        for session, device, own in zip(sessions, devices, layers, strict=True):
            stages.append(Stage(session, DevicePool(decoder, shape, device, own)))
            opened.callback(stages[-1].pool.close)
        draws = _draws(devices[-1], decoder, opened)
        runner = DeviceRunner(
            *(stages, decoder, settings.token_budget, draws),
            record=record.replays,
            record_drafts=record.replays_drafts,
        )
        opened.callback(runner.close)
        runner.warm_up()
        kept = opened.pop_all()
    adapted = AdaptedDecoder(lambda: runner.prepare) if runner.takes_adapters else None
    return OpenedDecoder(runner, shape, settings, record.replays, kept.close, adapted)


def on_tensorrt(
    artifact: Artifact,
    decoder: DecoderSpec,
    settings: EngineSettings,
    budget: CacheBudget,
    devices: Sequence[Device],
    first: OpenedDecoder | None,
) -> OpenedDecoder:
    """By TensorRT's engines. Raises UnsupportedError, CapacityError."""
    (device,) = devices
    assert artifact.record.fit is not None, "what is compiled for a GPU was found to fit"
    profiles = plan(sizes_for(decoder, settings, artifact.record.fit))
    sessions = {
        profile: open_tensorrt_session(artifact.directory, profile.graph, gpu=device.number)
        for profile in profiles
    }
    limit = budget.share(settings)
    shape = static_shape(decoder, settings, device, _SPARE_BYTES, profiles, limit)
    refuse_shorter(shape, first)
    capacities = {p.capacity for p in profiles if p.capacity <= shape.capacity}
    with ExitStack() as opened:
        opened.callback(budget.book(shape, settings))
        pool = StaticPool(decoder, shape, device, capacities)
        opened.callback(pool.close)
        draws = _draws(device, decoder, opened)
        runner = StaticRunner(sessions, pool, decoder, settings.token_budget, draws)
        opened.callback(runner.close)
        kept = opened.pop_all()
    return OpenedDecoder(runner, shape, settings, False, kept.close)


def refuse_shorter(shape: CacheShape, first: OpenedDecoder | None) -> None:
    """Raise CapacityError if the context would be shorter than the first one's."""
    if first is not None and shape.capacity < first.shape.capacity:
        raise CapacityError(
            f"it has room for {shape.capacity} tokens, the first one for {first.shape.capacity}",
            hint="unload a model, or lower engine.max_context",
            code="cache_full",
        )


def _draws(device: Device, decoder: DecoderSpec, opened: ExitStack) -> DeviceDraw | None:
    """Draws on the device, closed with `opened`; None where its provider does not compute them."""
    try:
        open_graph = partial(open_small_session, provider="cuda", gpu=device.number)
        draws = DeviceDraw(device, decoder.vocab_size, open_graph)
    except UnsupportedError as error:
        _log.warning("sampled tokens are drawn by the processor: %s", error.message)
        return None
    opened.callback(draws.close)
    return draws

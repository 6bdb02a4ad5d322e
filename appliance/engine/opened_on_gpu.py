"""A compiled decoder opened on GPUs: on each a runner, and a cache in that GPU's memory.

Owns on how many. Gives back what it took where it cannot be opened whole.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial

from appliance.bundle.manifest import DecoderSpec
from appliance.compiler import Artifact
from appliance.compiler.memory import needed
from appliance.compiler.profiles import plan, sizes_for
from appliance.compiler.record import Fit
from appliance.config import EngineSettings
from appliance.engine.cache_budget import CacheBudget
from appliance.engine.device import Device
from appliance.engine.device_budget import device_shape, static_shape
from appliance.engine.device_draw import DeviceDraw
from appliance.engine.device_pool import DevicePool
from appliance.engine.device_runner import DeviceRunner
from appliance.engine.opened_decoder import OpenedDecoder
from appliance.engine.session import (
    open_cuda_session,
    open_small_session,
    open_tensorrt_session,
)
from appliance.engine.static_pool import StaticPool
from appliance.engine.static_runner import StaticRunner
from appliance.errors import CapacityError, UnsupportedError

_log = logging.getLogger(__name__)

_SPARE_BYTES = 1 << 30
"""Left for what the graph computes in between, and for kernels that CUDA loads."""


def on_each(
    open_on: Callable[[Device], OpenedDecoder], fit: Fit, devices: Iterable[Device]
) -> list[OpenedDecoder]:
    """The decoder on the first of `devices`, and on each other of whose free memory it takes less
    than half: the rest is for models that are loaded later.

    fit: what it takes. Raises UnsupportedError, CapacityError if the first cannot be opened. A GPU
    that gives it a shorter context than the first is left out.
    """
    first, *others = devices
    with ExitStack() as made:
        opened = [open_on(first)]
        made.callback(opened[0].close)
        for device in others:
            another = _on_another(open_on, fit, device)
            if another is None:
                continue
            if another.shape.capacity < opened[0].shape.capacity:
                another.close()
                continue
            opened.append(another)
            made.callback(another.close)
        made.pop_all()
    return opened


def _on_another(
    open_on: Callable[[Device], OpenedDecoder], fit: Fit, device: Device
) -> OpenedDecoder | None:
    if 2 * needed(fit) > device.free_bytes():
        return None
    try:
        return open_on(device)
    except (CapacityError, UnsupportedError) as error:
        _log.warning("GPU %d is left out: %s", device.number, error.message)
        return None


def on_cuda(
    artifact: Artifact,
    decoder: DecoderSpec,
    settings: EngineSettings,
    budget: CacheBudget,
    device: Device,
) -> OpenedDecoder:
    """By the CUDA provider. Raises UnsupportedError, CapacityError."""
    recorded = artifact.record.unrecorded is None
    session = open_cuda_session(artifact.directory, record=recorded, gpu=device.number)
    shape = device_shape(decoder, settings, device, _SPARE_BYTES, budget.share(settings))
    with ExitStack() as opened:
        opened.callback(budget.book(shape, settings))
        pool = DevicePool(decoder, shape, device)
        opened.callback(pool.close)
        draws = _draws(device, decoder, opened)
        runner = DeviceRunner(session, pool, decoder, settings.token_budget, draws, record=recorded)
        opened.callback(runner.close)
        runner.warm_up()
        kept = opened.pop_all()
    return OpenedDecoder(runner, shape, settings, recorded, kept.close)


def on_tensorrt(
    artifact: Artifact,
    decoder: DecoderSpec,
    settings: EngineSettings,
    budget: CacheBudget,
    device: Device,
) -> OpenedDecoder:
    """By TensorRT's engines. Raises UnsupportedError, CapacityError."""
    assert artifact.record.fit is not None, "what is compiled for a GPU was found to fit"
    profiles = plan(sizes_for(decoder, settings, artifact.record.fit))
    sessions = {
        profile: open_tensorrt_session(artifact.directory, profile.graph, gpu=device.number)
        for profile in profiles
    }
    limit = budget.share(settings)
    shape = static_shape(decoder, settings, device, _SPARE_BYTES, profiles, limit)
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

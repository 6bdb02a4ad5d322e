"""How much key-value cache a model gets on a GPU: what fits beside all that is there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction

from appliance.bundle.specs import DecoderSpec
from appliance.compiler.profiles import Profile
from appliance.config import EngineSettings
from appliance.engine.cache_budget import CacheShape, fit, token_bytes
from appliance.engine.device.device import Device
from appliance.engine.device.pool import ITEM_BYTES
from appliance.errors import CapacityError


def device_shape(
    decoder: DecoderSpec,
    settings: EngineSettings,
    device: Device,
    spare: int,
    limit: int | None = None,
) -> CacheShape:
    """The cache that fits on `device` beside what is there, as `fit` cuts it.

    Half of what is free but for `spare` bytes, so that the model's next version finds room, or
    `limit` bytes if that is less. Raises CapacityError.
    """
    return shape_over([(device, Fraction(1))], decoder, settings, spare, limit)


def shape_over(
    shares: Iterable[tuple[Device, Fraction]],
    decoder: DecoderSpec,
    settings: EngineSettings,
    spare: int,
    limit: int | None = None,
) -> CacheShape:
    """As `device_shape`, of a model on several devices, each of which has a share of the cache.

    Raises CapacityError.
    """
    results = 8 * settings.max_sequences * decoder.vocab_size
    available = min(
        int(max(0, device.free_bytes() - spare - results) // 2 / share)
        for device, share in shares
        if share
    )
    if limit is not None:
        available = min(available, limit)
    return fit(decoder, settings, available, token_bytes(decoder, ITEM_BYTES))


def static_shape(
    decoder: DecoderSpec,
    settings: EngineSettings,
    device: Device,
    spare: int,
    profiles: Iterable[Profile],
    limit: int | None = None,
) -> CacheShape:
    """As `device_shape`, with a capacity that there are engines for: the longest that fits.

    Raises CapacityError.
    """
    for capacity in sorted({profile.capacity for profile in profiles}, reverse=True):
        limited = replace(settings, max_context=capacity)
        shape = device_shape(decoder, limited, device, spare, limit)
        if shape.capacity == capacity:
            return shape
    raise CapacityError(
        f"the shortest cache that TensorRT was compiled for, {capacity} tokens, does not fit",
        hint="unload a model, or raise engine.cache_bytes",
        code="cache_full",
    )

"""The cache's size, to the byte, and its moves."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from appliance.bundle.specs import DecoderSpec
from appliance.config import EngineSettings
from appliance.engine import machine
from appliance.engine.cache_budget import CacheBudget, CacheShape, fit, token_bytes
from appliance.engine.device.budget import device_shape
from appliance.engine.device.device import HostDevice
from appliance.engine.slot_pool import SlotPool
from appliance.errors import CapacityError
from appliance.scheduler import Move

QWEN3_06B = DecoderSpec(
    layers=28, kv_heads=8, head_dim=128, vocab_size=151_936, context_length=40_960
)
QWEN3_06B_BYTES = replace(QWEN3_06B, cache="int8")
TINY = DecoderSpec(layers=2, kv_heads=2, head_dim=16, vocab_size=512, context_length=512)


def test_a_token_of_the_known_shape_takes_the_known_bytes() -> None:
    assert token_bytes(QWEN3_06B) == 229_376
    assert token_bytes(QWEN3_06B_BYTES) == 57_344


@pytest.mark.parametrize(
    ("gigabytes", "slots", "capacity"),
    [(1000, 16, 40_960), (16, 16, 4681), (6, 6, 4681), (1, 1, 4681), (0.5, 1, 2340)],
)
def test_memory_becomes_full_context_then_sequences_then_less_context(
    gigabytes: float, slots: int, capacity: int
) -> None:
    shape = fit(QWEN3_06B, EngineSettings().sized(gpu=False), int(gigabytes * 2**30))
    assert (shape.slots, shape.capacity) == (slots, capacity)


def test_the_setting_bounds_the_context() -> None:
    assert fit(TINY, EngineSettings(max_context=100, max_sequences=4), 1 << 30).capacity == 100
    assert fit(TINY, EngineSettings(max_context=10_000, max_sequences=4), 1 << 30).capacity == 512


def test_too_little_memory_is_refused_with_the_numbers() -> None:
    with pytest.raises(CapacityError, match="229376") as refused:
        fit(QWEN3_06B, EngineSettings().sized(gpu=False), 1_000_000)
    assert refused.value.code == "cache_full"


@given(st.integers(0, 1 << 34), st.integers(1, 64), st.integers(0, 5000))
def test_a_cache_never_exceeds_what_is_there(available: int, sequences: int, context: int) -> None:
    settings = EngineSettings(max_sequences=sequences, max_context=context)
    try:
        shape = fit(QWEN3_06B, settings, available)
    except CapacityError:
        return
    assert shape.total_bytes <= available
    assert 1 <= shape.slots <= sequences


def test_a_budget_leaves_room_for_the_next_version_and_takes_all_back() -> None:
    budget = CacheBudget(10_000_000)
    settings = EngineSettings().sized(gpu=False)
    shapes = [budget.take(TINY, settings) for _ in range(4)]
    assert sum(shape.total_bytes for shape in shapes) == budget.total - budget.free
    assert shapes[0].total_bytes <= 5_000_000
    for shape in shapes:
        budget.give_back(shape)
    assert budget.free == budget.total


def test_caches_on_a_gpu_count_in_the_budget_where_the_operator_has_set_it() -> None:
    budget = CacheBudget(10_000_000)
    chosen = EngineSettings(max_sequences=4, max_context=64, cache_bytes=10_000_000)
    first = device_shape(TINY, chosen, HostDevice(1 << 30), 0, budget.share(chosen))
    assert first.total_bytes <= 5_000_000
    end = budget.book(first, chosen)
    assert budget.free == budget.total - first.total_bytes
    assert budget.share(chosen) == budget.free // 2
    with pytest.raises(CapacityError, match="bytes left"):
        budget.book(CacheShape(1, 1, budget.free + 1), chosen)
    end()
    assert budget.free == budget.total

    unset = dataclasses.replace(chosen, cache_bytes=0)
    assert budget.share(unset) is None
    budget.book(CacheShape(1, 1, budget.total + 1), unset)()
    assert budget.free == budget.total


@pytest.mark.parametrize("decoder", [TINY, replace(TINY, cache="int8")])
def test_the_pool_is_exactly_as_large_as_its_shape_says(decoder: DecoderSpec) -> None:
    shape = CacheShape(slots=3, capacity=20, token_bytes=token_bytes(decoder))
    pool = SlotPool(decoder, shape)
    assert sum(array.nbytes for array in pool.keys + pool.values) == shape.total_bytes


@pytest.mark.parametrize("decoder", [TINY, replace(TINY, cache="int8")])
@pytest.mark.parametrize("exchange", [False, True])
def test_moves_copy_or_exchange_the_positions_named(exchange: bool, decoder: DecoderSpec) -> None:
    pool = SlotPool(decoder, CacheShape(3, 20, token_bytes(decoder)))
    for array in pool.keys + pool.values:
        array[:] = np.random.default_rng(0).integers(-128, 128, array.shape)
    before = [array.copy() for array in pool.keys + pool.values]
    pool.move(Move(2, 0, 7, exchange=exchange))
    for array, old in zip(pool.keys + pool.values, before, strict=True):
        assert (array[0, :, :7] == old[2, :, :7]).all()
        assert (array[0, :, 7:] == old[0, :, 7:]).all()
        assert (array[2, :, :7] == old[0 if exchange else 2, :, :7]).all()
        assert (array[1] == old[1]).all()


def test_the_machine_is_measured() -> None:
    assert 1 << 26 < machine.memory_bytes() < 1 << 50
    assert 1 <= machine.physical_cores() <= 4096
    budget = CacheBudget.from_settings(EngineSettings())
    assert budget.total == machine.memory_bytes() // 4
    assert CacheBudget.from_settings(EngineSettings(cache_bytes=12_345)).total == 12_345

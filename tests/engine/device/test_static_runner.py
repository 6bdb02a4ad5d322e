"""The runner for TensorRT's engines, with the CPU provider in TensorRT's place.

Each planned profile gets a session of its own whose capacity is fixed, as TensorRT's is, and that
refuses shapes that its engine would not have been built for.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from appliance.bundle.specs import DecoderSpec
from appliance.compiler.profiles import Sizes, plan
from appliance.config import EngineSettings
from appliance.engine.cache_budget import CacheShape, token_bytes
from appliance.engine.device.budget import static_shape
from appliance.engine.device.device import HostDevice
from appliance.engine.device.draw import DeviceDraw
from appliance.engine.device.pool import ITEM_BYTES
from appliance.engine.device.static_pool import StaticPool
from appliance.engine.device.static_runner import StaticRunner
from appliance.engine.generation import Generation
from appliance.engine.sampling import SamplingParams
from appliance.errors import CapacityError, UnsupportedError
from appliance.model_store import StoredBundle
from appliance.scheduler import Move
from tests.engine.device.conftest import CONTEXT, OpenStatic
from tests.engine.device.on_host import (
    MEMORY,
    assert_the_references,
    decoder_of,
    open_engine,
)
from tests.engine.device.processor import on_processor
from tests.engine.results import run


def test_greedy_sequences_that_outgrow_their_slots_are_the_references(
    open_static: OpenStatic, node_root: Path
) -> None:
    engine, pool = open_static()
    chance = random.Random(3)
    lengths = (5, 20, 90, 3, 150, 7, 40, 60, 2)
    requests = [
        Generation(
            number,
            [chance.randrange(300) for _ in range(length)],
            SamplingParams(temperature=0, max_tokens=chance.randint(4, 24)),
        )
        for number, length in enumerate(lengths)
    ]
    assert pool.capacity == 32
    results = run(engine, *requests)
    assert pool.capacity == CONTEXT
    assert_the_references(results, requests, node_root / "chat")


def test_a_cached_prefix_survives_another_layout(open_static: OpenStatic) -> None:
    engine, pool = open_static()
    prompt = [random.Random(4).randrange(300) for _ in range(100)]
    params = SamplingParams(temperature=0, max_tokens=2)
    first = run(engine, Generation(1, prompt, params, cache_namespace="a"))
    assert pool.capacity == 128
    run(engine, Generation(2, [9] * 140, params))
    assert pool.capacity == CONTEXT
    again = run(engine, Generation(3, prompt, params, cache_namespace="a"))
    assert again.ends[3, 0].cached_tokens >= 64
    assert again.tokens(3) == first.tokens(1)


@settings(max_examples=60)
@given(
    moves=st.lists(
        st.one_of(
            st.tuples(st.integers(0, 3), st.integers(1, 100)),
            st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()),
        ),
        min_size=3,
        max_size=20,
    )
)
@example(moves=[(0, 80), (2, 30), (3, 30), (0, 5)])
def test_what_a_slot_holds_is_never_lost(moves: list[tuple[int, ...]]) -> None:
    device = HostDevice(MEMORY)
    decoder = DecoderSpec(layers=1, kv_heads=2, head_dim=8, vocab_size=9, context_length=100)
    pool = StaticPool(decoder, CacheShape(4, 100, 64), device, (40, 60, 80, 100))
    expected = dict.fromkeys(range(4), (0, 0))
    stamp = 0
    for move in moves:
        if len(move) == 2:
            slot, end = move
            pool.hold([(slot, end)])
            stamp += 1
            _write(pool, device, slot, end, stamp)
            expected[slot] = (stamp, end)
        elif move[0] != move[1]:
            source, target, exchange = move[0], move[1], bool(move[2])
            most = max(expected[source][1], expected[target][1])
            tokens = most if exchange else expected[source][1]
            pool.move(Move(source, target, tokens, exchange))
            before = expected[target]
            expected[target] = expected[source]
            if exchange:
                expected[source] = before
        assert max(end for _, end in expected.values()) <= pool.capacity
        for slot, (value, end) in expected.items():
            assert (_read(pool, device, slot)[:, :, :end] == value).all()
    pool.close()
    assert device.free_bytes() == MEMORY


def test_short_sequences_are_not_computed_over_a_long_cache_for_ever(device: HostDevice) -> None:
    decoder = DecoderSpec(layers=1, kv_heads=1, head_dim=8, vocab_size=9, context_length=100)
    pool = StaticPool(decoder, CacheShape(2, 100, 32), device, (10, 40, 100))
    pool.hold([(0, 90)])
    assert pool.capacity == 100
    pool.hold([(0, 21)])
    assert pool.capacity == 100, "it would soon grow again"
    pool.hold([(0, 20)])
    assert pool.capacity == 40
    pool.hold([(0, 5)])
    assert pool.capacity == 10
    pool.close()


def test_the_cache_has_a_length_that_there_are_engines_for(
    bundle: StoredBundle, device: HostDevice, short_caches: None
) -> None:
    decoder = decoder_of(bundle)
    limits = EngineSettings(max_sequences=2, max_context=CONTEXT)
    profiles = plan(Sizes(slots=2, chunk=16, context=CONTEXT, engines=20))
    each = 4 * decoder.layers * decoder.kv_heads * decoder.head_dim
    results = 16 * decoder.vocab_size
    for tokens, expected in ((600, (2, 256)), (255, (1, 128)), (130, (1, 128)), (40, None)):
        memory = HostDevice(2 * tokens * each + results)
        if expected is None:
            with pytest.raises(CapacityError, match="cache"):
                static_shape(decoder, limits, memory, 0, profiles)
        else:
            shape = static_shape(decoder, limits, memory, 0, profiles)
            assert (shape.slots, shape.capacity) == expected


def test_a_shape_that_no_engine_was_built_for_is_refused(
    bundle: StoredBundle, device: HostDevice, short_caches: None
) -> None:
    decoder = decoder_of(bundle)
    profiles = plan(Sizes(slots=1, chunk=8, context=32, engines=2))
    pool = StaticPool(decoder, CacheShape(1, 32, token_bytes(decoder, ITEM_BYTES)), device, {32})
    sessions = {p: open_engine(bundle, p) for p in profiles}
    draws = DeviceDraw(device, decoder.vocab_size, on_processor)
    runner = StaticRunner(sessions, pool, decoder, 16, draws)
    with pytest.raises(UnsupportedError, match="0 engines are for prefill"):
        runner.prefill(0, 0, [1] * 9, 0)
    runner.close()


def _write(pool: StaticPool, device: HostDevice, slot: int, end: int, value: int) -> None:
    for _, sizes, address in pool.addresses(slot):
        contents = np.zeros(sizes, np.float16)
        device.read(address, contents)
        contents[:, :end] = value
        device.write(address, contents)


def _read(pool: StaticPool, device: HostDevice, slot: int) -> np.ndarray:
    contents = []
    for _, sizes, address in pool.addresses(slot):
        block = np.zeros(sizes, np.float16)
        device.read(address, block)
        contents.append(block)
    return np.stack(contents)

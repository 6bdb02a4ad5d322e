"""Models whose layers differ in heads on a device: what they say, and where it lies."""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.bundle.specs import DecoderSpec, LayerHeads
from appliance.compiler.libraries import CUDA_OPTIONS, cuda_options
from appliance.compiler.memory import TABLE_BYTES, divided, least_bytes, table_bytes
from appliance.compiler.record import Fit
from appliance.config import Layout
from appliance.engine.cache_budget import CacheShape, token_bytes
from appliance.engine.device.device import HostDevice
from appliance.engine.device.pool import ITEM_BYTES, DevicePool, Layers
from appliance.engine.device.stages import share_of
from appliance.engine.device.wide_heads import WideHeads
from appliance.model_store import ModelStore, StoredBundle
from appliance.scheduler import Move
from tests.engine.device.conftest import OpenHalf
from tests.engine.device.on_host import assert_the_references, beginning_alike
from tests.engine.device.recording import Recording
from tests.engine.results import churn, run

NEAR, FAR = LayerHeads(kv_heads=4, head_dim=8), LayerHeads(kv_heads=1, head_dim=16)
SPEC = DecoderSpec(
    layers=3, kv_heads=4, head_dim=16, vocab_size=9, context_length=64,
    heads=(NEAR, FAR, NEAR), query_heads=8,
)  # fmt: skip
OF_31B = DecoderSpec(
    layers=60, kv_heads=16, head_dim=512, vocab_size=9, context_length=262_144,
    heads=(
        *(LayerHeads(kv_heads=16, head_dim=256),) * 50,
        *(LayerHeads(kv_heads=4, head_dim=512),) * 10,
    ),
    query_heads=32,
)  # fmt: skip


@pytest.fixture
def bundle(node_root: Path) -> StoredBundle:
    return ModelStore(Layout(node_root).models).get("uneven")


@pytest.fixture(params=["narrow", "wide"])
def heads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once as they are, and once too wide for kernels, with room for few products."""
    if request.param == "wide":
        monkeypatch.setattr("appliance.compiler.memory.WIDEST_HEAD", 32)
        monkeypatch.setattr("appliance.compiler.memory.TABLE_BYTES", 8 * 4 * 300 * 7)


def test_sequences_that_join_and_leave_and_share_prefixes_are_the_references(
    open_half: OpenHalf, node_root: Path, heads: None
) -> None:
    engine, chance = open_half(token_budget=48), random.Random(3)
    asked = beginning_alike(14, chance)
    results = churn(engine, asked, chance)
    said = [request for request in asked if results.deltas.get((request.call, 0))]
    assert_the_references(results, said, node_root / "uneven")
    assert engine.counters.cached_tokens > 0


def test_recorded_steps_say_what_steps_that_are_run_say(open_half: OpenHalf, heads: None) -> None:
    recording, asked = Recording(), beginning_alike(8, random.Random(6))
    plain = run(open_half(token_budget=96), *asked)
    replayed = run(open_half(token_budget=96, recording=recording), *asked)
    assert recording.replays > 20
    for request in asked:
        assert replayed.tokens(request.call) == plain.tokens(request.call)


_MOVES = st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 6), st.booleans())


@given(st.lists(_MOVES, max_size=12))
def test_positions_go_where_they_are_told_in_every_layer(
    moves: list[tuple[int, int, int, bool]],
) -> None:
    """Against a list of numbers: each position of a slot is full of one."""
    each = token_bytes(SPEC, ITEM_BYTES)
    device = HostDevice(4 * 6 * each + 6 * 64)
    pool = DevicePool(SPEC, CacheShape(4, 6, each), device)
    assert pool.nbytes == 4 * 6 * each
    held = [[10 * slot + at for at in range(6)] for slot in range(4)]
    for slot, numbers in enumerate(held):
        for _, sizes, address in pool.addresses(slot):
            block = np.zeros(sizes, np.float16)
            block[:] = np.array(numbers)[None, :, None]
            device.write(address, block)
    for source, target, count, exchange in moves:
        pool.move(Move(source, target, count, exchange=exchange))
        kept = held[target][:count]
        held[target][:count] = held[source][:count]
        if exchange:
            held[source][:count] = kept
    for slot, numbers in enumerate(held):
        for name, sizes, address in pool.addresses(slot):
            own = SPEC.layer_heads[int(name[-1])]
            assert sizes == (own.kv_heads, 6, own.head_dim)
            block = np.zeros(sizes, np.float16)
            device.read(address, block)
            assert (block == np.array(numbers)[None, :, None]).all()
    pool.close()
    assert device.free_bytes() == 4 * 6 * each + 6 * 64


def test_a_stages_share_is_of_the_bytes_of_its_layers() -> None:
    nothing = range(0)
    assert share_of(Layers(range(1), nothing), SPEC) == Fraction(32, 80)
    assert share_of(Layers(range(1, 2), nothing), SPEC) == Fraction(16, 80)
    whole = Fit(precision="fp16", weights=900, slot=8000, memory=0)
    assert divided(whole, SPEC, 2).slot == 4000 + 3200


@given(
    st.integers(1, 4096),
    st.integers(1, 262_144),
    st.lists(st.integers(1, 300_000), min_size=2, max_size=9),
)
def test_no_run_stores_more_products_than_there_is_room_for(
    most: int, capacity: int, bounds: list[int]
) -> None:
    wide = WideHeads(OF_31B, capacity, most)

    def taken(start: int, count: int) -> int:
        products = 8 * 32 * count * (start + count)
        return products + 2 * 2 * 32 * count * 512

    largest = taken(*wide.longest)
    assert largest <= TABLE_BYTES
    assert sum(wide.longest) == capacity
    ends = sorted({min(bound, capacity) for bound in bounds})
    for start, end in pairwise(ends):
        runs = [
            run
            for piece in range(start, end, most)
            for run in wide.pieces(piece, min(most, end - piece))
        ]
        assert [start, *(at + count for at, count in runs)] == [*(at for at, _ in runs), end]
        if len(runs) < 300:
            assert all(count == 1 or taken(at, count) <= largest for at, count in runs)


def test_products_are_reckoned_with_where_heads_are_wide() -> None:
    narrow = DecoderSpec(
        layers=2, kv_heads=16, head_dim=256, vocab_size=9, context_length=262_144
    )  # fmt: skip
    assert table_bytes(narrow) == table_bytes(SPEC) == 0
    assert least_bytes(OF_31B) - TABLE_BYTES == 4096 * token_bytes(OF_31B, ITEM_BYTES)


def test_of_wide_heads_keys_are_not_widened_to_all_that_read_them() -> None:
    assert cuda_options(256) == CUDA_OPTIONS
    flash, efficient, unfused = 1, 2, 16
    assert CUDA_OPTIONS["sdpa_kernel"] == str(flash + efficient + unfused)
    assert cuda_options(512) == {**CUDA_OPTIONS, "sdpa_kernel": str(flash + unfused)}

"""The runner for graphics processors, over the device that every machine has: its own memory.

The graph, the bindings and the copies are those of a GPU; only the provider and the addresses are
others. `scripts/gpu-check` runs the same on a real one.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.config import EngineSettings
from appliance.engine.cache_budget import token_bytes
from appliance.engine.choosing import TokenLogprob
from appliance.engine.device.budget import device_shape
from appliance.engine.device.device import HostDevice
from appliance.engine.device.pool import ITEM_BYTES, DevicePool
from appliance.engine.device.prompt_groups import MOST_TOGETHER, groups
from appliance.engine.generation import Generation
from appliance.engine.grammar.turn import Structured, Turn
from appliance.engine.sampling import SamplingParams
from appliance.errors import CapacityError
from appliance.model_store import StoredBundle
from appliance.scheduler import Move, PrefillChunk, Sequence
from tests.engine.conftest import OpenChat
from tests.engine.device.conftest import OpenHalf
from tests.engine.device.on_host import (
    MEMORY,
    assert_the_references,
    decoder_of,
)
from tests.engine.results import Results, run


def test_greedy_sequences_that_join_and_leave_are_the_references(
    open_half: OpenHalf, node_root: Path
) -> None:
    engine = open_half(token_budget=48)
    chance = random.Random(3)
    requests = [
        Generation(
            number,
            [chance.randrange(300) for _ in range(chance.randint(1, 60))],
            SamplingParams(temperature=0, max_tokens=chance.randint(1, 24)),
        )
        for number in range(14)
    ]
    assert_the_references(run(engine, *requests), requests, node_root / "chat")


def test_a_cached_prefix_is_copied_and_gives_the_same_answer(open_half: OpenHalf) -> None:
    engine = open_half()
    prompt = [random.Random(4).randrange(300) for _ in range(100)]
    params = SamplingParams(temperature=0, max_tokens=8)
    first = run(engine, Generation(1, prompt, params, cache_namespace="a"))
    both = run(
        engine,
        Generation(2, prompt, params, cache_namespace="a"),
        Generation(3, prompt, params, cache_namespace="a"),
    )
    assert both.ends[2, 0].cached_tokens >= 64
    assert both.tokens(2) == both.tokens(3) == first.tokens(1)


def test_what_is_not_the_likeliest_token_is_chosen_as_it_was_asked(open_half: OpenHalf) -> None:
    engine = open_half()
    prompt = [5, 6, 7]
    wanted = run(engine, Generation(0, prompt, SamplingParams(temperature=0, max_tokens=1)))
    (likeliest,) = wanted.tokens(0)
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=3)
    biased = SamplingParams(temperature=0, max_tokens=1, logit_bias={likeliest: -100.0})
    drawn = SamplingParams(temperature=1, top_k=1, seed=1, max_tokens=1)
    results = run(
        engine,
        Generation(1, prompt, params),
        Generation(2, prompt, biased),
        Generation(3, prompt, drawn),
    )
    assert results.tokens(1) == results.tokens(3) == [likeliest]
    assert results.tokens(2) != [likeliest]
    delta = results.deltas[1, 0][0]
    assert delta.logprobs[0].top[0][0] == likeliest


def test_what_is_chosen_on_the_device_is_what_is_chosen_from_the_rows(
    open_half: OpenHalf, open_chat: OpenChat
) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    grammar = open_chat().grammars.compiled(Turn(Structured("json_schema", json.dumps(schema))))
    asked = [
        SamplingParams(seed=1, max_tokens=12),
        SamplingParams(seed=2, max_tokens=12, temperature=0.6, top_p=0.9),
        SamplingParams(seed=3, max_tokens=12, top_k=9),
        SamplingParams(seed=4, max_tokens=12, min_p=0.02),
        SamplingParams(temperature=0, max_tokens=12),
        SamplingParams(temperature=0, max_tokens=12, logprobs=4),
        SamplingParams(seed=5, max_tokens=12, logprobs=0, logit_bias={9: 5.0, 11: -100.0}),
        SamplingParams(temperature=0, max_tokens=12, repetition_penalty=1.3, logprobs=1),
        SamplingParams(seed=6, max_tokens=12, presence_penalty=1, frequency_penalty=0.5),
    ]
    restricted = [
        SamplingParams(temperature=0, max_tokens=12),
        SamplingParams(seed=7, max_tokens=12, logprobs=2),
        SamplingParams(seed=8, max_tokens=12, top_p=0.8, repetition_penalty=1.2),
    ]
    requests = [Generation(n, [5, 6, 7 + n], params) for n, params in enumerate(asked)]
    requests += [
        Generation(n, [5, 6, 7], params, grammar=grammar.result())
        for n, params in enumerate(restricted, len(requests))
    ]
    there, here = (run(open_half(draws=draws), *requests) for draws in (True, False))
    for number in range(len(requests)):
        assert there.tokens(number) == here.tokens(number)
        assert len(there.tokens(number)) > 1
        for one, other in zip(_logprobs(there, number), _logprobs(here, number), strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert [token for token, _ in one.top] == [token for token, _ in other.top]


def _logprobs(results: Results, call: int) -> list[TokenLogprob]:
    return [logprob for delta in results.deltas[call, 0] for logprob in delta.logprobs]


def test_a_step_that_fails_leaves_an_engine_that_serves(open_half: OpenHalf) -> None:
    engine = open_half(slots=1)
    engine.add(Generation(1, [1, 2, 3], SamplingParams(temperature=0, max_tokens=9)))
    Results().step(engine)
    engine.fail_all()
    assert run(engine, Generation(2, [4], SamplingParams(temperature=0, max_tokens=2))).tokens(2)


def test_slots_are_copied_and_exchanged_position_by_position(
    bundle: StoredBundle, device: HostDevice
) -> None:
    decoder = decoder_of(bundle)
    settings = EngineSettings(max_sequences=3, max_context=16)
    shape = device_shape(decoder, settings, device, 0)
    pool = DevicePool(decoder, shape, device)
    ((_, sizes, _), *_) = pool.addresses(0)
    slot = np.zeros(sizes, np.float16)
    for number in range(3):
        slot[:] = number
        for _, _, address in pool.addresses(number):
            device.write(address, slot)
    pool.move(Move(0, 1, 5))
    pool.move(Move(0, 2, 7, exchange=True))
    pool.move(Move(0, 2, 0))
    contents = []
    for number in range(3):
        for _, _, address in pool.addresses(number):
            device.read(address, slot)
            assert (slot == slot[0, :, :1]).all(), "heads and channels alike"
        contents.append(slot[0, :, 0].tolist())
    assert contents == [[2] * 7 + [0] * 9, [0] * 5 + [1] * 11, [0] * 7 + [2] * 9]
    pool.close()
    assert device.free_bytes() == MEMORY


def test_a_cache_that_does_not_fit_is_refused_and_leaves_nothing_behind(
    bundle: StoredBundle,
) -> None:
    decoder = decoder_of(bundle)
    settings = EngineSettings(max_sequences=2, max_context=64)
    each = token_bytes(decoder, ITEM_BYTES)
    small = HostDevice(2 * 2 * 64 * each)
    shape = device_shape(decoder, settings.sized(gpu=True), HostDevice(MEMORY), 0)
    with pytest.raises(CapacityError, match="bytes left"):
        DevicePool(decoder, shape, HostDevice(shape.total_bytes - 1))
    with pytest.raises(CapacityError, match="cache has"):
        device_shape(decoder, settings, small, 2 * 2 * 64 * each)


def chunk(slot: int, count: int, *, start: int = 0, rest: int = 0) -> PrefillChunk:
    return PrefillChunk(Sequence([7] * (start + count + rest)), slot, start, count)


@given(
    lengths=st.lists(st.tuples(st.integers(1, 90), st.booleans(), st.booleans()), max_size=40),
    slots=st.data(),
)
def test_prompts_go_together_in_their_order_within_what_a_run_computes(
    lengths: list[tuple[int, bool, bool]], slots: st.DataObject
) -> None:
    order = slots.draw(st.permutations(range(len(lengths))))
    chunks = [
        chunk(slot, count, start=32 * cached, rest=9 * goes_on)
        for slot, (count, cached, goes_on) in zip(
            sorted(order, key=lambda s: s // 3), lengths, strict=True
        )
    ]
    found = list(groups(chunks, 128))
    assert [each for group in found for each in group] == chunks
    for group in found:
        assert len(group) <= MOST_TOGETHER
        if len(group) > 1:
            assert all(each.start == 0 and each.completes for each in group)
            assert len(group) * max(each.count for each in group) <= 128
            assert [each.slot for each in group] == [group[0].slot + i for i in range(len(group))]


def test_prompts_that_begin_together_are_computed_together() -> None:
    alike = [chunk(slot, count) for slot, count in enumerate((30, 28, 33, 25))]
    assert list(groups(alike, 512)) == [alike]
    assert len(list(groups(alike, 66))) == 2
    assert len(list(groups([chunk(0, 100), chunk(1, 10)], 512))) == 2, "mostly padding"
    assert len(list(groups([chunk(0, 9), chunk(2, 9)], 512))) == 2, "not side by side"

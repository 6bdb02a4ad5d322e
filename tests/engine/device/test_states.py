"""Models with running states on a device: what they say, what is copied, and what is recorded."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.bundle.specs import RecurrentSpec
from appliance.compiler.memory import STATES
from appliance.config import Layout
from appliance.engine.cache_budget import CacheShape
from appliance.engine.device.device import HostDevice
from appliance.engine.device.states import DeviceStates
from appliance.engine.generation import Generation
from appliance.engine.sampling import SamplingParams
from appliance.errors import CapacityError
from appliance.model_store import ModelStore, StoredBundle
from appliance.scheduler import Move
from tests.engine.device.conftest import OpenHalf
from tests.engine.device.on_host import assert_the_references, beginning_alike
from tests.engine.device.recording import Recording
from tests.engine.results import churn, run

SPEC = RecurrentSpec(layers=3, heads=2, key_dim=3, value_dim=5, channels=7, tail=3)
TAILS = RecurrentSpec(layers=3, heads=0, key_dim=0, value_dim=0, channels=7, tail=3)
"""Without a state behind the convolution."""
SHAPE = CacheShape(slots=4, capacity=8, token_bytes=0, state_bytes=SPEC.nbytes)
_SLOTS = st.integers(0, SHAPE.slots - 1)
_SNAPSHOTS = st.integers(0, SHAPE.states - SHAPE.slots - 2)


@pytest.fixture
def bundle(node_root: Path) -> StoredBundle:
    return ModelStore(Layout(node_root).models).get("states")


def test_sequences_that_join_and_leave_and_share_prefixes_are_the_references(
    open_half: OpenHalf, node_root: Path
) -> None:
    engine, chance = open_half(token_budget=48), random.Random(3)
    asked = beginning_alike(20, chance)
    results = churn(engine, asked, chance)
    said = [request for request in asked if results.deltas.get((request.call, 0))]
    assert_the_references(results, said, node_root / "states")
    assert engine.counters.cached_tokens > 0


def test_a_turn_that_goes_on_finds_the_state_behind_the_last_one(
    open_half: OpenHalf, node_root: Path
) -> None:
    engine = open_half()
    prompt = [random.Random(4).randrange(300) for _ in range(150)]
    params = SamplingParams(temperature=0, max_tokens=8)
    first = Generation(1, prompt, params, cache_namespace="a")
    answer = run(engine, first).tokens(1)
    turn = Generation(2, [*prompt, *answer, 5, 6, 7], params, cache_namespace="a")
    told_otherwise = Generation(3, [*prompt[:-2], 9, 8, 7], params, cache_namespace="a")
    for request, cached in ((turn, len(prompt) + len(answer) - 1), (told_otherwise, 128)):
        results = run(engine, request)
        assert results.ends[request.call, 0].cached_tokens == cached
        assert_the_references(results, [request], node_root / "states")


def test_what_is_recorded_has_read_each_token_once(open_half: OpenHalf) -> None:
    recording = Recording()
    asked = beginning_alike(12, random.Random(6))
    plain = run(open_half(token_budget=96), *asked)
    replayed = run(open_half(token_budget=96, recording=recording), *asked)
    assert len(recording.recorded) > 2
    assert recording.replays > 20
    for request in asked:
        assert replayed.tokens(request.call) == plain.tokens(request.call)


def test_without_room_for_the_states_nothing_is_recorded(
    open_half: OpenHalf, device: HostDevice
) -> None:
    recording, asked = Recording(), beginning_alike(3, random.Random(7))
    plain, engine = open_half(slots=1), open_half(slots=1, recording=recording)
    taken = device.allocate(device.free_bytes())
    for request in asked:
        wanted = run(plain, request).tokens(request.call)
        assert run(engine, request).tokens(request.call) == wanted
    device.release(taken)
    assert not recording.recorded


def test_nothing_is_guessed(open_half: OpenHalf) -> None:
    engine = open_half(draft_tokens=8)
    params = SamplingParams(temperature=0, max_tokens=40)
    run(engine, Generation(0, [7, 8, 9] * 20, params))
    assert engine.counters.drafted_tokens == 0


_ACTIONS = st.one_of(
    st.tuples(st.just("begin"), _SLOTS, st.just(0)),
    st.tuples(st.just("keep"), _SLOTS, _SNAPSHOTS),
    st.tuples(st.just("copy"), _SLOTS, _SLOTS),
    st.tuples(st.just("exchange"), _SLOTS, _SLOTS),
    st.tuples(st.just("bring"), _SLOTS, _SNAPSHOTS),
    st.tuples(st.just("read"), _SLOTS, st.integers(1, 99)),
    st.tuples(st.just("restored"), st.integers(1, SHAPE.slots), st.integers(1, 99)),
)


@given(st.sampled_from([SPEC, TAILS]), st.lists(_ACTIONS, max_size=30))
def test_states_go_where_they_are_told_whole_and_alone(
    spec: RecurrentSpec, actions: list[tuple[str, int, int]]
) -> None:
    """Against a list of numbers: each state is full of one."""
    device = HostDevice(1 << 20)
    states = DeviceStates(spec, SHAPE, device)
    assert states.nbytes == SHAPE.states * spec.nbytes
    slots = [0] * SHAPE.slots
    kept = [0] * (SHAPE.states - SHAPE.slots - 1)
    for action, slot, other in actions:
        match action:
            case "begin":
                states.begin(slot)
                slots[slot] = 0
            case "keep":
                states.keep(slot, other)
                kept[other] = slots[slot]
            case "copy":
                states.move(Move(slot, other, 0))
                slots[other] = slots[slot]
            case "exchange":
                states.move(Move(slot, other, 0, exchange=True))
                slots[slot], slots[other] = slots[other], slots[slot]
            case "bring":
                states.move(Move(slot, slot, 0, snapshot=other))
                slots[slot] = kept[other]
            case "read":
                _fill(states, device, slot, other)
                slots[slot] = other
            case "restored":
                with states.restored(slot):
                    for each in range(slot):
                        _fill(states, device, each, other)
        assert [_number(states, device, slot) for slot in range(SHAPE.slots)] == slots
    states.close()
    assert device.free_bytes() == 1 << 20


def test_states_that_do_not_fit_leave_nothing_behind() -> None:
    device = HostDevice(SHAPE.states * SPEC.nbytes - 1)
    with pytest.raises(CapacityError):
        DeviceStates(SPEC, SHAPE, device)
    assert device.free_bytes() == SHAPE.states * SPEC.nbytes - 1


def test_what_the_compiler_reckons_with_is_what_one_sequence_takes() -> None:
    assert CacheShape(1, 8, 0, SPEC.nbytes).states == STATES


def _arrays(states: DeviceStates, slot: int) -> list[tuple[int, npt.NDArray[Any]]]:
    found = list(states.addresses(slot))
    assert len(found) in (SPEC.layers, 2 * SPEC.layers)
    return [(address, np.zeros(sizes, np.float32)) for _, sizes, address in found]


def _fill(states: DeviceStates, device: HostDevice, slot: int, number: int) -> None:
    for address, array in _arrays(states, slot):
        device.write(address, np.full_like(array, number))


def _number(states: DeviceStates, device: HostDevice, slot: int) -> int:
    numbers = set()
    for address, array in _arrays(states, slot):
        device.read(address, array)
        numbers |= set(array.ravel().tolist())
    (number,) = numbers
    return int(number)

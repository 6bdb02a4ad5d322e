"""A model whose layers lie on several devices says what it says whole."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import pytest

from appliance.bundle.specs import DecoderSpec, RecurrentSpec
from appliance.config import EngineSettings, Layout
from appliance.engine.cache_budget import SNAPSHOTS, token_bytes
from appliance.engine.device.budget import device_shape, shape_over
from appliance.engine.device.device import HostDevice
from appliance.engine.device.draw import DeviceDraw
from appliance.engine.device.pool import ITEM_BYTES, Layers
from appliance.engine.device.runner import DeviceRunner
from appliance.engine.device.stages import Stages, layers_of, share_of
from appliance.engine.generation import Generation
from appliance.engine.llm_engine import LLMEngine
from appliance.engine.sampling import SamplingParams
from appliance.model_store import ModelStore
from tests.engine.conftest import OpenChat
from tests.engine.device.on_host import (
    MEMORY,
    assert_the_references,
    beginning_alike,
    cut_for,
    decoder_of,
    engine_over,
    placed,
)
from tests.engine.device.processor import on_processor
from tests.engine.device.recording import Recording
from tests.engine.results import churn, run

OpenStaged = Callable[..., LLMEngine]
STATES = DecoderSpec(
    layers=2, kv_heads=1, head_dim=8, vocab_size=9, context_length=64,
    recurrent=RecurrentSpec(layers=6, heads=1, key_dim=4, value_dim=4, channels=8, tail=3),
)  # fmt: skip


@pytest.fixture
def devices() -> list[HostDevice]:
    return [HostDevice(MEMORY), HostDevice(MEMORY)]


@pytest.fixture
def open_staged(
    node_root: Path, devices: list[HostDevice], open_chat: OpenChat, tmp_path: Path
) -> Iterator[OpenStaged]:
    """Opens an engine over two stages of a model's `cuda` graph; all memory is back at the end."""
    runners: list[DeviceRunner] = []

    def open_it(
        name: str = "chat",
        slots: int = 4,
        *,
        draft_tokens: int = 0,
        recordings: list[Recording] | None = None,
    ) -> LLMEngine:
        bundle = ModelStore(Layout(node_root).models).get(name)
        decoder, graph = decoder_of(bundle), bundle.manifest.variant("cuda")
        assert graph is not None
        weights = bundle.directory / graph.weights_folder
        into = tmp_path / str(len(runners))
        sessions = cut_for(len(devices), decoder, bundle.directory / graph.path, weights, into)
        for recording, session in zip(recordings or (), sessions, strict=bool(recordings)):
            recording.over(session)
        settings = EngineSettings(max_sequences=slots, max_context=256, token_budget=48)
        stages = placed(recordings or sessions, decoder, settings, devices)
        draws = DeviceDraw(devices[-1], decoder.vocab_size, on_processor)
        runners.append(DeviceRunner([*stages], decoder, 48, draws, record=bool(recordings)))
        runners[-1].warm_up()
        return engine_over(
            runners[-1], open_chat(), decoder.vocab_size, slots=slots, capacity=256,
            token_budget=48, draft_tokens=draft_tokens,
            snapshots=SNAPSHOTS if stages.running else 0,
        )  # fmt: skip

    yield open_it
    for runner in runners:
        runner.close()
    assert [device.free_bytes() for device in devices] == [MEMORY] * len(devices)


@pytest.mark.parametrize("name", ["chat", "states"])
def test_sequences_that_join_and_leave_and_share_prefixes_are_the_references(
    open_staged: OpenStaged, node_root: Path, name: str
) -> None:
    engine, chance = open_staged(name), random.Random(3)
    asked = beginning_alike(14, chance)
    results = churn(engine, asked, chance)
    said = [request for request in asked if results.deltas.get((request.call, 0))]
    assert_the_references(results, said, node_root / name)
    assert engine.counters.cached_tokens > 0


def test_each_stage_records_its_steps_and_reads_each_token_once(open_staged: OpenStaged) -> None:
    recordings = [Recording(), Recording()]
    asked = beginning_alike(10, random.Random(6))
    plain = run(open_staged("states"), *asked)
    replayed = run(open_staged("states", recordings=recordings), *asked)
    assert recordings[0].recorded == recordings[1].recorded
    assert len(recordings[0].recorded) > 2
    assert all(recording.replays > 20 for recording in recordings)
    for request in asked:
        assert replayed.tokens(request.call) == plain.tokens(request.call)


def test_drafts_and_draws_are_as_without_them(open_staged: OpenStaged) -> None:
    prompt = [7, 8, 9] * 20
    for params in (
        SamplingParams(temperature=0, max_tokens=60),
        SamplingParams(seed=5, top_p=0.9, max_tokens=20, logprobs=2),
    ):
        plain, guessing = open_staged(), open_staged(draft_tokens=8)
        wanted = run(plain, Generation(0, prompt, params)).tokens(0)
        assert run(guessing, Generation(0, prompt, params)).tokens(0) == wanted
    assert guessing.counters.steps > 0


def test_the_cache_lies_with_its_layers_and_the_tightest_device_bounds_it(
    open_staged: OpenStaged, devices: list[HostDevice], node_root: Path, tmp_path: Path
) -> None:
    engine = open_staged()
    bundle = ModelStore(Layout(node_root).models).get("chat")
    stages: Stages = engine._runner._stages  # type: ignore[attr-defined]
    layers = [layers_of(stage.session).cached for stage in stages]
    assert [layer for own in layers for layer in own] == [*range(decoder_of(bundle).layers)]
    each = token_bytes(decoder_of(bundle), ITEM_BYTES)
    for stage, own in zip(stages, layers, strict=True):
        share = 4 * 256 * each * len(own) // decoder_of(bundle).layers
        assert stage.pool.nbytes == share
        assert {name for name, _, _ in stage.pool.addresses(0)} == {
            f"{part}_{layer}" for part in ("key", "value") for layer in own
        }
    settings = EngineSettings(max_sequences=4, max_context=256)
    of_one = [(devices[0], Fraction(1, 4)), (HostDevice(1 << 20), Fraction(3, 4))]
    shape = shape_over(of_one, decoder_of(bundle), settings, 0)
    alone = device_shape(decoder_of(bundle), settings, HostDevice((1 << 20) * 4 // 3), 0)
    assert shape.total_bytes <= (1 << 20) * 2 // 3
    assert (shape.slots, shape.capacity) == (alone.slots, alone.capacity)


def test_a_stages_share_is_of_whatever_of_the_cache_it_has_more_of() -> None:
    assert share_of(Layers(range(1), range(2)), STATES) == 1 / 2
    assert share_of(Layers(range(1, 2), range(2, 6)), STATES) == Fraction(2, 3)
    assert share_of(Layers(range(0), range(0)), STATES) == 0

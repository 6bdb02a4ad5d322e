"""What the tests of the runners for graphics processors run on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.compiler.profiles import Sizes, plan
from appliance.config import EngineSettings, Layout
from appliance.engine.cache_budget import SNAPSHOTS
from appliance.engine.device.budget import device_shape, static_shape
from appliance.engine.device.device import HostDevice
from appliance.engine.device.draw import DeviceDraw
from appliance.engine.device.pool import DevicePool
from appliance.engine.device.runner import DeviceRunner
from appliance.engine.device.stages import Stage
from appliance.engine.device.static_pool import StaticPool
from appliance.engine.device.static_runner import StaticRunner
from appliance.engine.llm_engine import LLMEngine
from appliance.model_store import ModelStore, StoredBundle
from tests.engine.conftest import OpenChat
from tests.engine.device.on_host import (
    MEMORY,
    decoder_of,
    engine_over,
    open_engine,
    open_graph,
)
from tests.engine.device.processor import on_processor
from tests.engine.device.recording import Recording

CONTEXT = 256
OpenHalf = Callable[..., LLMEngine]
OpenStatic = Callable[..., tuple[LLMEngine, StaticPool]]


@pytest.fixture
def device() -> HostDevice:
    return HostDevice(MEMORY)


@pytest.fixture
def bundle(node_root: Path) -> StoredBundle:
    return ModelStore(Layout(node_root).models).get("chat")


@pytest.fixture
def open_half(bundle: StoredBundle, device: HostDevice, open_chat: OpenChat) -> Iterator[OpenHalf]:
    """Opens an engine on the `cuda` graph of the model `chat`; all memory is back at the end."""
    runners: list[DeviceRunner] = []

    def open_it(
        slots: int = 4,
        capacity: int = 256,
        token_budget: int = 512,
        *,
        draft_tokens: int = 0,
        draws: bool = True,
        recording: Recording | None = None,
    ) -> LLMEngine:
        decoder, session = decoder_of(bundle), open_graph(bundle, "cuda")
        if recording is not None:
            recording.over(session)
        settings = EngineSettings(
            max_sequences=slots, max_context=capacity, token_budget=token_budget
        )
        shape = device_shape(decoder, settings, device, 1 << 20)
        assert (shape.slots, shape.capacity) == (slots, capacity)
        pool = DevicePool(decoder, shape, device)
        chooser = DeviceDraw(device, decoder.vocab_size, on_processor) if draws else None
        runner = DeviceRunner(
            [Stage(session if recording is None else recording, pool)],
            *(decoder, token_budget, chooser),
            record=recording is not None,
        )
        runners.append(runner)
        runner.warm_up()
        return engine_over(
            runner, open_chat(), decoder.vocab_size, slots=slots, capacity=capacity,
            token_budget=token_budget, draft_tokens=draft_tokens,
            snapshots=SNAPSHOTS if shape.state_bytes else 0,
        )  # fmt: skip

    yield open_it
    for runner in runners:
        runner.close()
    assert device.free_bytes() == MEMORY


@pytest.fixture
def short_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Capacities of 32, 128 and the context, so that a tiny model meets them all."""
    monkeypatch.setattr("appliance.compiler.profiles._SHORTEST", 32)


@pytest.fixture
def open_static(
    bundle: StoredBundle, device: HostDevice, open_chat: OpenChat, short_caches: None
) -> Iterator[OpenStatic]:
    """Opens an engine on the `trt` graph of the model `chat`; all memory is back at the end."""
    runners: list[StaticRunner] = []

    def open_it(
        slots: int = 3, token_budget: int = 48, draft_tokens: int = 0
    ) -> tuple[LLMEngine, StaticPool]:
        decoder = decoder_of(bundle)
        profiles = plan(Sizes(slots=slots, chunk=token_budget, context=CONTEXT, engines=8))
        limits = EngineSettings(max_sequences=slots, max_context=CONTEXT)
        shape = static_shape(decoder, limits, device, 1 << 20, profiles)
        assert (shape.slots, shape.capacity) == (slots, CONTEXT)
        pool = StaticPool(decoder, shape, device, {profile.capacity for profile in profiles})
        sessions = {profile: open_engine(bundle, profile) for profile in profiles}
        draws = DeviceDraw(device, decoder.vocab_size, on_processor)
        runner = StaticRunner(sessions, pool, decoder, token_budget, draws)
        runners.append(runner)
        engine = engine_over(
            runner, open_chat(), decoder.vocab_size, slots=slots, capacity=shape.capacity,
            token_budget=token_budget, draft_tokens=draft_tokens,
        )  # fmt: skip
        return engine, pool

    yield open_it
    for runner in runners:
        runner.close()
    assert device.free_bytes() == MEMORY

"""A model that is loaded several times, as on several GPUs, is one model to whoever calls it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from appliance.engine import chat_model, embedding_model, loaded
from appliance.engine.chat_model import ChatModel
from appliance.engine.loaded import LoadedModel
from appliance.engine.opened import open_decoders
from appliance.engine.opened_reader import open_readers
from appliance.pb import engine_v1_pb2 as pb
from tests.engine_daemon.conftest import Node, RunNode, chat, eventually, run

COPIES = 3


@pytest.fixture(autouse=True)
def opened_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model is opened three times, on this machine's processor."""
    for module, once in (
        (chat_model, open_decoders),
        (embedding_model, open_readers),
        (loaded, open_readers),
    ):
        monkeypatch.setattr(module, once.__name__, often(once))


def often(once: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    def opened(*arguments: Any, **named: Any) -> list[Any]:
        return [one for _ in range(COPIES) for one in once(*arguments, **named)]

    return opened


def test_calls_are_shared_out_and_answered_as_by_one(make_node: RunNode) -> None:
    async def scenario() -> None:
        node = make_node(max_sequences=4, max_waiting=100, cache_bytes=256 << 20)
        async with node.run() as client:
            requests = [chat(f"call {n}", max_tokens=5 + n) for n in range(12)]
            with node.slow():
                together = await asyncio.gather(*(client.generate(r) for r in requests))
            steps = [engine.counters.finished for engine in model_of(node).engines]
            assert sum(steps) == 12
            assert all(steps)
            for request, events in zip(requests, together, strict=True):
                assert tokens(events) == tokens(await client.generate(request))

    run(scenario())


def test_texts_are_shared_out_and_read_as_by_one(make_node: RunNode) -> None:
    async def scenario() -> None:
        node = make_node()
        async with node.run() as client:
            requests = [
                pb.EmbedRequest(
                    model="words",
                    inputs=[pb.EmbedInput(text=f"text {n} {i}" * 20) for i in range(50)],
                )
                for n in range(6)
            ]
            with node.slow("words"):
                together = await asyncio.gather(*(client.engine.Embed(r) for r in requests))
            read = [e.counters.finished for e in model_of(node, "words").engines]
            assert sum(read) == 6
            assert all(read)
            for request, answer in zip(requests, together, strict=True):
                assert answer == await client.engine.Embed(request)

    run(scenario())


def test_its_figures_are_sums(make_node: RunNode) -> None:
    async def scenario() -> None:
        node = make_node(max_sequences=4, cache_bytes=256 << 20)
        async with node.run() as client:
            await asyncio.gather(*(client.generate(chat(f"{n}", max_tokens=9)) for n in range(6)))
            (stats,) = (
                stats
                for stats in (await client.engine.Stats(pb.StatsRequest())).models
                if stats.model == "chat"
            )
            assert stats.sequences_finished == 6
            assert stats.generated_tokens == 54
            assert stats.classes[0].generated_tokens == 54
            (model,) = (
                model
                for model in (await client.engine.ListModels(pb.ListModelsRequest())).models
                if model.name == "chat"
            )
            assert model.max_sequences == sum(e.slots for e in chat_of(node).engines)
            assert model.gpus == 0
            assert stats.cache_bytes_total == chat_of(node).cache_bytes

    run(scenario())


def test_a_call_that_is_cancelled_ends_wherever_it_runs(make_node: RunNode) -> None:
    async def scenario() -> None:
        node = make_node(max_sequences=2, max_context=512, cache_bytes=256 << 20)
        async with node.run() as client:

            async def all_begun() -> bool:
                return all(engine.has_work for engine in model_of(node).engines)

            async def all_ended() -> bool:
                return not any(engine.has_work for engine in model_of(node).engines)

            with node.slow():
                streams = [client.engine.Generate(chat(f"{n}", max_tokens=400)) for n in range(6)]
                for stream in streams:
                    await stream.read()
                await eventually(all_begun)
                for stream in streams:
                    stream.cancel()
                await eventually(all_ended)
            cancelled = [engine.counters.cancelled for engine in chat_of(node).engines]
            assert sum(cancelled) == 6

    run(scenario())


def test_unloading_it_gives_back_what_every_copy_took(make_node: RunNode) -> None:
    async def scenario() -> None:
        node = make_node(cache_bytes=256 << 20)
        async with node.run() as client:
            budget = node.server._registry.cache_budget
            assert budget.free == budget.total - chat_of(node).cache_bytes
            await client.engine.Unload(pb.UnloadRequest(model="chat"))
            assert budget.free == budget.total
            with pytest.raises(grpc.aio.AioRpcError):
                await client.generate(chat("anybody?", max_tokens=1))

    run(scenario())


def model_of(node: Node, name: str = "chat") -> LoadedModel:
    model = node.server._registry.serving(name).model
    assert model is not None
    return model


def chat_of(node: Node) -> ChatModel:
    return node.server._registry.serving("chat").chat


def tokens(events: list[pb.GenerateEvent]) -> list[int]:
    return [i for event in events for i in event.delta.token_ids]

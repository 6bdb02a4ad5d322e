"""Loading, replacing and unloading models while others are served."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckResponse

from appliance.engine_daemon.registry import ModelRegistry
from appliance.errors import UnavailableError
from appliance.pb import engine_v1_pb2 as pb
from tests.engine_daemon.conftest import Node, RunNode, chat, eventually, rest, run
from tests.engine_daemon.test_service import refused, tokens
from tests.prompting.test_child import workers

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING


def test_health_has_a_name_for_each_model(make_node: RunNode) -> None:
    async def scenario() -> None:
        async with make_node().run() as client:
            assert await client.health("") == SERVING
            assert await client.health("chat") == SERVING
            assert await client.health("words") == SERVING
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client.health("other")
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND

    run(scenario())


def test_a_second_model_loads_while_the_first_streams(make_node: RunNode) -> None:
    async def scenario() -> None:
        node = make_node()
        async with node.run() as client:
            alone = tokens(await client.generate(chat("user", max_tokens=400)))
            streaming = asyncio.create_task(client.generate(chat("user", max_tokens=400)))
            node.store.activate("other", "1.0")
            loaded = await client.engine.Load(pb.LoadRequest(model="other"))
            assert loaded.model.state == pb.MODEL_STATE_SERVING
            assert await client.health("other") == SERVING
            assert tokens(await streaming) == alone
            assert len(tokens(await client.generate(chat("user", "other", max_tokens=5)))) == 5

    run(scenario())


def test_a_new_version_takes_over_and_the_old_one_drains(make_node: RunNode) -> None:
    async def scenario() -> None:
        node = make_node()
        async with node.run() as client:
            old, new = node.store.get("chat", "1.0"), node.store.get("chat", "2.0")
            request = chat("user", max_tokens=480)
            expected = tokens(await client.generate(request))
            stream = client.engine.Generate(request)
            first = await stream.read()
            assert first.accepted.bundle_digest == old.digest
            node.store.activate("chat", "2.0")
            await client.engine.Load(pb.LoadRequest(model="chat"))
            states = await client.states()
            assert states["chat", "2.0"] == pb.MODEL_STATE_SERVING
            assert states.get(("chat", "1.0")) in {pb.MODEL_STATE_DRAINING, None}
            events = await client.generate(chat("user", max_tokens=5))
            assert events[0].accepted.bundle_digest == new.digest
            left = await rest(stream)
            assert tokens(left) == expected, "the old version finished what it had begun"

            async def gone() -> bool:
                return ("chat", "1.0") not in await client.states()

            await eventually(gone)

    run(scenario())


def test_loading_what_is_served_changes_nothing(make_node: RunNode) -> None:
    async def scenario() -> None:
        async with make_node().run() as client:
            before = await client.states()
            calls = [client.engine.Load(pb.LoadRequest(model="chat")) for _ in range(3)]
            await asyncio.gather(*calls)
            assert await client.states() == before

    run(scenario())


def test_a_model_that_cannot_be_loaded_is_shown_and_stops_nobody(make_node: RunNode) -> None:
    async def scenario() -> None:
        node = make_node()
        node.store.activate("uncompiled", "1.0")
        async with node.run() as client:
            listed = (await client.engine.ListModels(pb.ListModelsRequest())).models
            failed = next(model for model in listed if model.name == "uncompiled")
            assert failed.state == pb.MODEL_STATE_FAILED
            assert "compiled" in failed.error
            assert failed.hint == "`appliance models compile` compiles it again"
            code, _, text = await refused(client.generate(chat("x", "uncompiled")))
            assert code is grpc.StatusCode.NOT_FOUND
            assert "compiled" in text
            assert len(tokens(await client.generate(chat("user", max_tokens=3)))) == 3

    run(scenario())


def test_what_is_still_to_be_loaded_is_not_unknown(make_node: RunNode) -> None:
    async def scenario() -> None:
        async def changed(name: str, serving: bool) -> None:
            told.append((name, serving))

        told: list[tuple[str, bool]] = []
        registry = ModelRegistry(make_node().config, changed)
        await registry.expect_active()
        expected = [hosted.bundle.name for hosted in registry.all()]
        assert len(expected) > 1
        for name in expected:
            with pytest.raises(UnavailableError) as refusal:
                registry.serving(name)
            assert refusal.value.code == "model_loading"
        await registry.load_active()
        assert sorted(told) == [(name, True) for name in expected]
        assert [hosted.bundle.name for hosted in registry.all()] == expected
        assert all(registry.serving(name) for name in expected)
        await registry.close()

    run(scenario())


def test_an_altered_artifact_is_refused_before_it_runs(make_node: RunNode) -> None:
    async def scenario() -> None:
        node = make_node()
        node.store.activate("other", "1.0")
        async with node.run() as client:
            artifact = next(
                model.artifact
                for model in (await client.engine.ListModels(pb.ListModelsRequest())).models
                if model.name == "other"
            )
            await client.engine.Unload(pb.UnloadRequest(model="other"))
            weights = node.config.layout.artifacts / artifact / "weights.bin"
            weights.chmod(0o644)
            data = bytearray(weights.read_bytes())
            data[1000] ^= 1
            weights.write_bytes(data)
            code, trailing, text = await refused(client.engine.Load(pb.LoadRequest(model="other")))
            assert code is grpc.StatusCode.FAILED_PRECONDITION
            assert trailing["appliance-code"] == "digest_mismatch"
            assert "weights.bin" in text

    run(scenario())


def test_an_altered_tokenizer_is_refused(make_node: RunNode) -> None:
    async def scenario() -> None:
        node = make_node()
        bundle = node.store.get("chat")
        tokenizer = bundle.directory / bundle.manifest.tokenizer
        data = tokenizer.read_bytes()
        tokenizer.unlink()
        tokenizer.write_bytes(data.replace(b"<think>", b"<thank>"))
        async with node.run() as client:
            states = await client.states()
            assert states["chat", "1.0"] == pb.MODEL_STATE_FAILED
            assert states["words", "1.0"] == pb.MODEL_STATE_SERVING

    run(scenario())


def test_too_little_cache_fails_the_one_model_with_the_reason(make_node: RunNode) -> None:
    async def scenario() -> None:
        node = make_node(cache_bytes=1000)
        async with node.run() as client:
            code, trailing, _ = await refused(client.engine.Load(pb.LoadRequest(model="chat")))
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert trailing["appliance-code"] == "cache_full"
            assert (await client.states())["words", "1.0"] == pb.MODEL_STATE_SERVING

    run(scenario())


def test_unloading_waits_for_what_runs_and_frees_the_rest(make_node: RunNode) -> None:
    async def scenario() -> None:
        node = make_node()

        async def draining() -> bool:
            return (await client.states())["chat", "1.0"] == pb.MODEL_STATE_DRAINING

        async with node.run() as client:
            with node.slow():
                stream = client.engine.Generate(chat("user", max_tokens=300))
                await stream.read()
                call = client.engine.Unload(pb.UnloadRequest(model="chat"))
                unloading = asyncio.create_task(_wait(call))
                await eventually(draining)
                code, _, _ = await refused(client.generate(chat("x")))
                assert code is grpc.StatusCode.NOT_FOUND
            assert len(tokens(await rest(stream))) == 300
            await unloading
            assert ("chat", "1.0") not in await client.states()
            assert await client.health("chat") == NOT_SERVING

    run(scenario())


def test_what_a_stop_finds_half_loaded_leaves_no_process(make_node: RunNode) -> None:
    """Again until it is found half loaded: a load may be over before the stop begins."""

    async def scenario() -> None:
        before = workers()
        node = make_node()
        for _ in range(20):
            cut = await stopped_while_loading(node)
            assert workers() == before
            if cut:
                return
            node.store.deactivate("other")
        raise AssertionError("every load was over")

    run(scenario())


async def stopped_while_loading(node: Node) -> bool:
    """Stop as soon as a load has begun; whether the load was cut off."""
    async with node.run() as client:
        node.store.activate("other", "1.0")
        loading = asyncio.create_task(_wait(client.engine.Load(pb.LoadRequest(model="other"))))

        async def begun() -> bool:
            return ("other", "1.0") in await client.states()

        await eventually(begun)
    await asyncio.wait([loading])
    return loading.cancelled() or isinstance(loading.exception(), grpc.aio.AioRpcError)


def test_a_load_survives_its_caller(make_node: RunNode) -> None:
    async def scenario() -> None:
        node = make_node()
        async with node.run() as client:
            node.store.activate("other", "1.0")
            call = client.engine.Load(pb.LoadRequest(model="other"))
            loading = asyncio.create_task(_wait(call))

            async def begun() -> bool:
                return ("other", "1.0") in await client.states()

            await eventually(begun)
            call.cancel()
            await asyncio.gather(loading, return_exceptions=True)

            async def serving() -> bool:
                return (await client.states()).get(("other", "1.0")) == pb.MODEL_STATE_SERVING

            await eventually(serving)

    run(scenario())


async def _wait(call: Awaitable[object]) -> None:
    await call

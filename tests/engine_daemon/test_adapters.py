"""Adapters behind the daemon: called by name, through changes of adapter and base."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from transformers import AutoModelForCausalLM

from appliance.pb import engine_v1_pb2 as pb
from tests.conftest import BuildOnce
from tests.engine_daemon.conftest import Client, Node, rest, run
from tests.engine_daemon.test_service import tokens
from tests.fakes.adapter_node import BASE, NAME, build_adapter_node

PROMPT = (5, 77, 301, 12, 450, 9)


@pytest.fixture
def node(build_once: BuildOnce) -> Iterator[Node]:
    built = build_once(NAME, build_adapter_node)
    with tempfile.TemporaryDirectory(prefix="node") as directory:
        root = Path(directory) / "n"
        shutil.copytree(built, root, symlinks=True)
        yield Node(root)


def ask(model: str, **sampling: Any) -> pb.GenerateRequest:
    params = {"temperature": 0.0, "ignore_eos": True, "max_tokens": 16} | sampling
    return pb.GenerateRequest(
        model=model, tokens=pb.TokenIds(ids=PROMPT), sampling=pb.SamplingParams(**params)
    )


def merged(node: Node, name: str) -> list[int]:
    """Greedy tokens of a checkpoint, by transformers."""
    directory = node.config.layout.root / name
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    generated = model.generate(
        torch.tensor([PROMPT]), max_new_tokens=16, do_sample=False, eos_token_id=None,
        pad_token_id=0, temperature=None, top_p=None, top_k=None,
    )  # fmt: skip
    found: list[int] = generated[0, len(PROMPT) :].tolist()
    return found


async def code(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    metadata: Any = caught.value.trailing_metadata()
    return str(dict(metadata)["appliance-code"])


async def shown(client: Client) -> dict[str, pb.Model]:
    models: Sequence[pb.Model] = (await client.engine.ListModels(pb.ListModelsRequest())).models
    return {model.name: model for model in models if model.state == pb.MODEL_STATE_SERVING}


def test_each_name_is_its_merged_model_at_the_same_time(node: Node) -> None:
    async def scenario() -> None:
        wanted = [merged(node, name) for name in ("checkpoint", "merged-all", "merged-half")]
        async with node.run() as client:
            names = (BASE, "all", "half")
            answers = await asyncio.gather(*(client.generate(ask(name)) for name in names))
            assert [tokens(answer) for answer in answers] == wanted
            accepted = [answer[0].accepted.bundle_digest for answer in answers]
            assert accepted == [node.store.get(name).digest for name in names]

    run(scenario())


def test_an_adapter_is_listed_as_a_model_with_a_base(node: Node) -> None:
    async def scenario() -> None:
        async with node.run() as client:
            models = await shown(client)
            assert {name: model.base_model for name, model in models.items()} == {
                BASE: "", "all": BASE, "half": BASE,
            }  # fmt: skip
            assert models["all"].kind == "chat"
            assert models["all"].context_length == models[BASE].context_length
            assert 0 < models["half"].memory_bytes < models[BASE].memory_bytes
            ids = await client.engine.Tokenize(pb.TokenizeRequest(model="all", text="user"))
            assert ids == await client.engine.Tokenize(pb.TokenizeRequest(model=BASE, text="user"))
            stats = await client.engine.Stats(pb.StatsRequest())
            assert [model.model for model in stats.models] == [BASE]

    run(scenario())


def test_adapters_stay_when_their_base_gets_a_new_version(node: Node) -> None:
    async def scenario() -> None:
        async with node.run() as client:
            before = tokens(await client.generate(ask("all", max_tokens=200)))
            stream = client.engine.Generate(ask("all", max_tokens=200))
            await stream.read()
            node.store.activate(BASE, "2.0")
            await client.engine.Load(pb.LoadRequest(model=BASE))
            after = tokens(await client.generate(ask("half")))
            assert after != tokens(await client.generate(ask(BASE)))
            assert tokens(await rest(stream)) == before, "it ended on the base it had begun on"
            assert (await shown(client))["all"].base_model == BASE

    run(scenario())


def test_an_unloaded_adapter_is_refused_and_the_others_go_on(node: Node) -> None:
    async def scenario() -> None:
        async with node.run() as client:
            wanted = tokens(await client.generate(ask("half")))
            stream = client.engine.Generate(ask("all", max_tokens=300))
            await stream.read()
            await client.engine.Unload(pb.UnloadRequest(model="all"))
            assert len(tokens(await rest(stream))) == 300, "it ended before its adapter left"
            assert await code(client.generate(ask("all"))) == "model_not_found"
            assert tokens(await client.generate(ask("half"))) == wanted
            await client.engine.Load(pb.LoadRequest(model="all"))
            assert len(tokens(await client.generate(ask("all")))) == 16

    run(scenario())


def test_an_adapter_too_many_is_shown_as_failed_with_the_reason(node: Node) -> None:
    async def scenario() -> None:
        crowded = Node(node.config.layout.root, max_adapters=2)
        node.store.activate("stable", "1.0")
        async with crowded.run() as client:
            assert set(await shown(client)) == {BASE, "all", "half"}
            assert await code(client.engine.Load(pb.LoadRequest(model="stable"))) == "adapters_full"
            models = (await client.engine.ListModels(pb.ListModelsRequest())).models
            (failed,) = (m for m in models if m.state == pb.MODEL_STATE_FAILED)
            assert (failed.name, failed.memory_bytes) == ("stable", 0)
            assert "2 adapters loaded" in failed.error

    run(scenario())


def test_an_adapter_makes_no_embeddings(node: Node) -> None:
    async def scenario() -> None:
        async with node.run() as client:
            request = pb.EmbedRequest(model="all", inputs=[pb.EmbedInput(text="user")])
            assert await code(client.engine.Embed(request)) == "invalid_request"

    run(scenario())

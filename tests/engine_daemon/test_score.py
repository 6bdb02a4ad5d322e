"""Scores over a real socket, and the exact counts of calls that have one answer."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from appliance.pb import engine_v1_pb2 as pb
from tests.engine_daemon.conftest import Client, RunNode, eventually, run
from tests.engine_daemon.test_service import refused

QUERY = "which model is active?"
DOCUMENTS = ["the guide", "the audit log " * 5, "b c", "a model is active"]


@pytest.fixture
def ranking(make_node: RunNode) -> RunNode:
    """Nodes that serve the reranker too."""

    def made(**settings: int) -> Any:
        node = make_node(**settings)
        node.store.activate("pairs", "1.0")
        return node

    return made


async def stats_of(client: Client, model: str) -> pb.ModelStats:
    every = (await client.engine.Stats(pb.StatsRequest())).models
    found: pb.ModelStats = next(stats for stats in every if stats.model == model)
    return found


def test_scores_keep_their_order(ranking: RunNode) -> None:
    async def scenario() -> None:
        node = ranking()
        async with node.run() as client:
            request = pb.ScoreRequest(model="pairs", queries=[QUERY], documents=DOCUMENTS)
            answer = await client.engine.Score(request)
            assert answer.bundle_digest == node.store.get("pairs").digest
            assert len(set(answer.scores)) == len(DOCUMENTS)
            counted = 0
            for document, score in zip(DOCUMENTS, answer.scores, strict=True):
                one = pb.ScoreRequest(model="pairs", queries=[QUERY], documents=[document])
                alone = await client.engine.Score(one)
                assert alone.scores[0] == pytest.approx(score, rel=1e-4)
                counted += alone.prompt_tokens
            assert answer.prompt_tokens == counted
            stats = await stats_of(client, "pairs")
            assert stats.prompt_tokens == 2 * counted

    run(scenario())


def test_a_listed_reranker_says_what_it_reads(ranking: RunNode) -> None:
    async def scenario() -> None:
        async with ranking().run() as client:
            listed = (await client.engine.ListModels(pb.ListModelsRequest())).models
            (model,) = (model for model in listed if model.name == "pairs")
            assert (model.kind, model.context_length, model.dimensions) == ("rerank", 128, 0)
            assert 3 <= model.pair_tokens <= 4

    run(scenario())


def test_what_cannot_be_scored_names_its_parameter(ranking: RunNode) -> None:
    bad = [
        (pb.ScoreRequest(model="words", queries=["a"], documents=["a"]), "model"),
        (pb.ScoreRequest(model="chat", queries=["a"], documents=["a"]), "model"),
        (pb.ScoreRequest(model="pairs", documents=["a"]), "queries"),
        (pb.ScoreRequest(model="pairs", queries=["a"]), "documents"),
        (
            pb.ScoreRequest(model="pairs", queries=["a"], documents=["b", "c " * 900]),
            "documents[1]",
        ),
        (pb.EmbedRequest(model="pairs", inputs=[pb.EmbedInput(text="a")]), "model"),
        (pb.GenerateRequest(model="pairs", text="a"), "model"),
    ]

    async def scenario() -> None:
        async with ranking().run() as client:
            for request, param in bad:
                if isinstance(request, pb.GenerateRequest):
                    call: Any = client.generate(request)
                elif isinstance(request, pb.EmbedRequest):
                    call = client.engine.Embed(request)
                else:
                    call = client.engine.Score(request)
                code, trailing, _ = await refused(call)
                assert code is grpc.StatusCode.INVALID_ARGUMENT
                assert trailing["appliance-param"] == param
            tokens = pb.TokenizeRequest(model="pairs", text="which model")
            assert (await client.engine.Tokenize(tokens)).ids

    run(scenario())


@pytest.mark.parametrize("kind", ["score", "embed"])
def test_a_cancelled_call_settles_to_what_was_computed(ranking: RunNode, kind: str) -> None:
    async def scenario() -> None:
        async with ranking(token_budget=64).run() as client:
            texts, model = ["the audit log " * 4] * 2000, "pairs" if kind == "score" else "words"
            if kind == "score":
                asked: Any = pb.ScoreRequest(
                    request_id="gone", model=model, queries=["log"], documents=texts
                )
                call = client.engine.Score(asked)
            else:
                inputs = [pb.EmbedInput(text=text) for text in texts]
                call = client.engine.Embed(
                    pb.EmbedRequest(request_id="gone", model=model, inputs=inputs)
                )

            async def begun() -> bool:
                return (await stats_of(client, model)).steps > 0

            running = asyncio.ensure_future(call)
            await eventually(begun)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            (usage,) = (await client.engine.Settle(pb.SettleRequest(request_id="gone"))).sequences
            stats = await stats_of(client, model)
            assert usage.prompt_tokens == stats.prompt_tokens > 0
            assert stats.sequences_cancelled + stats.sequences_finished == 1

    run(scenario())

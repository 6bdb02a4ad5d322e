"""Attention by an index: a model says the same in any company and from any cached prefix."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from appliance.config import EngineSettings
from appliance.engine.chat_model import ChatModel
from appliance.engine.generation import Generation
from appliance.engine.output import FinishReason
from appliance.engine.sampling import SamplingParams
from tests.checkpoint.families import find_models
from tests.checkpoint.reference import ReferenceDecoder
from tests.conftest import BuildOnce
from tests.engine.conftest import open_model_of
from tests.engine.results import churn, run
from tests.fakes.engine_node import EngineNode

TEXT = np.random.default_rng(44).integers(20, 480, 400).tolist()
COUNT = 12
Open = Callable[[str], ChatModel]


def build_node(root: Path) -> None:
    node, models = EngineNode(root), find_models()
    node.add(models["deepseek-v32"].write(root / "tokens"), name="tokens")
    node.add(models["minimax-m3"].write(root / "blocks"), name="blocks", precision="w8a8")
    node.add(models["mistral-large4"].write(root / "shared"), name="shared")


@pytest.fixture(scope="module")
def root(build_once: BuildOnce) -> Path:
    return build_once("indexed-node", build_node)


@pytest.fixture
def opened(root: Path) -> Iterator[Open]:
    """`tokens` in fp32, whose index finds 24 of them; `blocks` in w8a8, three of 8; `shared` in
    fp32, whose layers read each other's latents."""
    with ExitStack() as stack:

        def open_it(name: str) -> ChatModel:
            settings = EngineSettings(
                threads=1, cache_bytes=8 << 20, max_sequences=4, token_budget=40
            )
            model = open_model_of(root, name, settings)
            assert isinstance(model, ChatModel)
            stack.callback(model.close)
            return model

        yield open_it


def greedy(count: int = COUNT) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=count)


@pytest.mark.parametrize("name", ["tokens", "shared"])
def test_greedy_output_equals_the_reference(root: Path, opened: Open, name: str) -> None:
    engine, reference = opened(name).engine, ReferenceDecoder(root / name)
    for number, length in enumerate((5, 60, 150)):
        prompt = TEXT[number : number + length]
        found = run(engine, Generation(number, prompt, greedy())).tokens(number)
        assert found == reference.greedy(prompt, COUNT)


@pytest.mark.parametrize("name", ["tokens", "blocks", "shared"])
def test_a_churning_batch_says_what_each_says_alone(opened: Open, name: str) -> None:
    engine, chance = opened(name).engine, random.Random(6)
    requests = [
        Generation(
            number,
            [
                *TEXT[: chance.choice((0, 70))],
                *TEXT[200 + number : 200 + number + chance.randint(1, 50)],
            ],
            greedy(chance.randint(1, COUNT)),
            cache_namespace=chance.choice(["", "a"]),
        )
        for number in range(16)
    ]
    together = churn(engine, requests, chance)
    assert engine.counters.cached_tokens > 0
    for request in requests:
        alone = run(engine, Generation(request.call, request.prompt, request.params))
        tokens = together.tokens(request.call)
        cut_off = together.ends[request.call, 0].reason is FinishReason.CANCELLED
        assert tokens == alone.tokens(request.call)[: len(tokens)]
        assert cut_off or len(tokens) == len(alone.tokens(request.call))

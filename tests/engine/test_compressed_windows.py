"""A model whose slots hold what windows add up to says what the reference says: alone, in company
and from a cached prefix, which may end anywhere in a window."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.config import EngineSettings
from appliance.engine.chat_model import ChatModel
from appliance.engine.generation import Generation
from appliance.engine.sampling import SamplingParams
from tests.checkpoint.families.deepseek_v4 import MODELS
from tests.checkpoint.reference import ReferenceDecoder
from tests.conftest import BuildOnce
from tests.engine.conftest import open_model_of
from tests.engine.results import churn, run
from tests.engine.test_generation import PROMPTS, ids
from tests.fakes.engine_node import EngineNode

GREEDY = SamplingParams(temperature=0, max_tokens=16)
SYSTEM = "Every request is written to the audit log before its first word is sent. " * 9


@pytest.fixture
def root(build_once: BuildOnce) -> Path:
    def build_node(root: Path) -> None:
        checkpoint = MODELS["deepseek-v4"].write(root / "checkpoint")
        EngineNode(root).add(checkpoint, name="windows", precision="fp32")

    return build_once("compressed-windows", build_node)


@pytest.fixture
def model(root: Path) -> Iterator[ChatModel]:
    settings = EngineSettings(threads=1, cache_bytes=64 << 20, token_budget=32, max_sequences=5)
    opened = open_model_of(root, "windows", settings)
    assert isinstance(opened, ChatModel)
    yield opened
    opened.close()


def test_what_is_said_is_the_references_in_company_and_from_a_cached_prefix(
    root: Path, model: ChatModel
) -> None:
    chance = random.Random(3)
    prompts = [ids(model, text) for text in [*PROMPTS[:4], *(SYSTEM + text for text in PROMPTS)]]
    alone = [run(model.engine, Generation(0, prompt, GREEDY)).tokens(0) for prompt in prompts]
    reference = ReferenceDecoder(root / "checkpoint")
    assert alone == [reference.greedy(prompt, 16) for prompt in prompts]
    requests = [
        Generation(number, prompt, GREEDY, cache_namespace=chance.choice(["a", "b"]))
        for number, prompt in enumerate(prompts * 2)
    ]
    together = churn(model.engine, requests, chance)
    assert model.engine.counters.cached_tokens > 0
    for asked in requests:
        tokens = together.tokens(asked.call)
        assert tokens == alone[asked.call % len(prompts)][: len(tokens)]

"""A model whose layers keep several things, states of channels and latents, windows and the last
inputs of convolutions, or tokens for n-grams and keys of an index, says what the reference says:
alone, in company and from a cached prefix."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.config import EngineSettings
from appliance.engine.chat_model import ChatModel
from appliance.engine.generation import Generation
from appliance.engine.sampling import SamplingParams
from installer.checkpoint.quantize import Precision
from tests.checkpoint.families import kimi_linear, lfm2, olmo, qwen4_exp
from tests.checkpoint.reference import ReferenceDecoder
from tests.conftest import BuildOnce
from tests.engine.conftest import open_model_of
from tests.engine.results import churn, run
from tests.engine.test_generation import PROMPTS, ids
from tests.fakes.engine_node import EngineNode

GREEDY = SamplingParams(temperature=0, max_tokens=16)
SYSTEM = "Every request is written to the audit log before its first word is sent. " * 9


MODELS = kimi_linear.MODELS | qwen4_exp.MODELS | lfm2.MODELS | olmo.MODELS
GRADES = [
    *((name, "fp32") for name in ("kimi-linear", "qwen4-exp", "lfm3", "olmo-hybrid")),
    *(
        pytest.param((name, "w8a8"), marks=pytest.mark.slow)
        for name in ("kimi-linear", "lfm3", "olmo-hybrid")
    ),
]
"""Of Qwen4-Exp in w8a8 a rounding falls the other way too often for that (decision 0306)."""


@pytest.fixture(params=GRADES, ids="-".join)
def root(request: pytest.FixtureRequest, build_once: BuildOnce) -> Path:
    name: str
    precision: Precision
    name, precision = request.param

    def build_node(root: Path) -> None:
        checkpoint = MODELS[name].write(root / "checkpoint")
        EngineNode(root).add(checkpoint, name="latents", precision=precision)

    return build_once(f"several-states-{name}-{precision}", build_node)


@pytest.fixture
def model(root: Path) -> Iterator[ChatModel]:
    settings = EngineSettings(threads=1, cache_bytes=64 << 20, token_budget=32, max_sequences=5)
    opened = open_model_of(root, "latents", settings)
    assert isinstance(opened, ChatModel)
    yield opened
    opened.close()


def test_what_is_said_is_the_references_in_company_and_from_a_cached_prefix(
    root: Path, model: ChatModel, request: pytest.FixtureRequest
) -> None:
    chance = random.Random(3)
    prompts = [ids(model, text) for text in [*PROMPTS[:4], *(SYSTEM + text for text in PROMPTS)]]
    alone = [run(model.engine, Generation(0, prompt, GREEDY)).tokens(0) for prompt in prompts]
    if "fp32" in request.node.name:
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

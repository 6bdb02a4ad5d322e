"""Models whose layers differ in heads, share keys or see chunks say what they say alone."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from appliance.engine.generation import Generation
from appliance.engine.output import FinishReason
from appliance.engine.sampling import SamplingParams
from tests.engine.conftest import OpenChat
from tests.engine.results import churn, run
from tests.engine.test_generation import PROMPTS, ids

GREEDY = SamplingParams(temperature=0, max_tokens=24)
SYSTEM = "Every request is written to the audit log before its first word is sent. " * 3


@pytest.mark.parametrize("name", ["uneven", "chunks"])
def test_greedy_output_equals_the_reference(
    open_chat: OpenChat, node_root: Path, name: str
) -> None:
    torch.set_num_threads(1)
    reference: Any = AutoModelForCausalLM.from_pretrained(node_root / name, dtype=torch.float32)
    model = open_chat(name, token_budget=32)
    for number, text in enumerate([*PROMPTS[:3], SYSTEM]):
        prompt = ids(model, text)
        generated = reference.generate(
            torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=None,
            pad_token_id=0,
        )  # fmt: skip
        found = run(model.engine, Generation(number, prompt, GREEDY)).tokens(number)
        assert found == generated[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", ["uneven", "uneven-bytes", "chunks"])
def test_a_churning_batch_says_what_each_says_alone(open_chat: OpenChat, name: str) -> None:
    model = open_chat(name, max_sequences=4, token_budget=40)
    chance = random.Random(6)
    requests = [
        Generation(
            number,
            ids(model, SYSTEM * chance.randint(0, 1) + chance.choice(PROMPTS)),
            SamplingParams(temperature=0, max_tokens=chance.randint(1, 16)),
            cache_namespace=chance.choice(["", "a"]),
            priority=chance.choice([0, 0, 1]),
        )
        for number in range(16)
    ]
    together = churn(model.engine, requests, chance)
    assert model.engine.counters.cached_tokens > 0
    for request in requests:
        alone = run(model.engine, Generation(request.call, request.prompt, request.params))
        tokens = together.tokens(request.call)
        cut_off = together.ends[request.call, 0].reason is FinishReason.CANCELLED
        assert tokens == alone.tokens(request.call)[: len(tokens)]
        assert cut_off or len(tokens) == len(alone.tokens(request.call))

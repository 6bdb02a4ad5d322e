"""Adapters on real models: mixed in one batch, each says what its merged model says."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from appliance.config import EngineSettings, Layout
from appliance.engine.llm_engine import Generation
from appliance.engine.loaded import ChatModel
from appliance.engine.sampling import SamplingParams
from appliance.errors import CapacityError, ConflictError
from appliance.model_store import ModelStore, StoredBundle
from tests.conftest import BuildOnce
from tests.engine.conftest import open_model_of
from tests.engine.results import Results, run
from tests.fakes.adapters import write_adapter, write_merged
from tests.fakes.checkpoints import write_qwen3
from tests.fakes.engine_node import EngineNode

GRADES = ("fp32", "w8a8")
ADAPTERS: dict[str, dict[str, Any]] = {
    "all": {"rank": 4},
    "attention": {"rank": 8, "targets": ("q", "v"), "alpha": 16.0},
    "stable": {"rank": 3, "rslora": True, "targets": ("k", "o", "down")},
    "half": {"rank": 5, "dtype": "bfloat16", "targets": ("gate", "up", "o")},
}
GREEDY = SamplingParams(temperature=0, max_tokens=24)
PROMPTS = [
    "How do I add a model?",
    "The sum of 17 and 25 is",
    "Every request is written to the audit log before its first word is sent. " * 3,
    "?",
    "def first(items):",
]


def build_node(root: Path) -> None:
    node = EngineNode(root)
    base = write_qwen3(root / "base")
    for grade in GRADES:
        stored = node.add(base, name=grade, precision=grade, adapters=True)
        for number, (name, numbers) in enumerate(ADAPTERS.items()):
            checkpoint = root / f"lora-{name}"
            if grade == GRADES[0]:
                write_adapter(checkpoint, base, seed=number, **numbers)
                write_merged(root / f"merged-{name}", base, checkpoint)
            node.add_adapter(checkpoint, stored, name=f"{grade}-{name}", activate=False)
        node.add(root / "merged-all", name=f"{grade}-merged", precision=grade)


@pytest.fixture(scope="module")
def root(build_once: BuildOnce) -> Path:
    return build_once("adapters-node", build_node)


@pytest.fixture
def open_base(root: Path) -> Iterator[Callable[..., ChatModel]]:
    """Opens a grade's base, without adapters."""
    with ExitStack() as stack:

        def open_it(grade: str = "fp32", **settings: int) -> ChatModel:
            given = {"cache_bytes": 64 << 20, "threads": 1} | settings
            model = open_model_of(root, grade, EngineSettings(**given))
            assert isinstance(model, ChatModel)
            stack.callback(model.close)
            return model

        yield open_it


@pytest.fixture(scope="module")
def reference(root: Path) -> Callable[[str, Sequence[int]], list[int]]:
    """Greedy continuation by 24 tokens of a merged checkpoint, by transformers in float32."""
    torch.set_num_threads(1)

    @cache
    def model(name: str) -> Any:  # noqa: ANN401
        directory = root / ("base" if not name else f"merged-{name}")
        return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)

    @cache
    def continuation(name: str, prompt: tuple[int, ...]) -> list[int]:
        generated = model(name).generate(
            torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=None,
            pad_token_id=0, temperature=None, top_p=None, top_k=None,
        )  # fmt: skip
        tokens: list[int] = generated[0, len(prompt) :].tolist()
        return tokens

    return lambda name, prompt: continuation(name, tuple(prompt))


def adapter(root: Path, grade: str, name: str) -> StoredBundle:
    return ModelStore(Layout(root).models).get(f"{grade}-{name}")


def test_four_adapters_and_the_base_in_one_churning_batch_are_each_their_merged_model(
    root: Path,
    open_base: Callable[..., ChatModel],
    reference: Callable[[str, Sequence[int]], list[int]],
) -> None:
    model = open_base(max_sequences=5, token_budget=24)
    digests = {"": ""}
    for name in ADAPTERS:
        bundle = adapter(root, "fp32", name)
        model.adapters.add(bundle)
        digests[name] = bundle.digest
    chance = random.Random(7)
    asked = {
        number: (chance.choice(list(digests)), model.tokenizer.encode_text(chance.choice(PROMPTS)))
        for number in range(40)
    }
    waiting, results, mixed = list(asked), Results(), 0
    while waiting or model.engine.has_work:
        for _ in range(min(len(waiting), chance.randint(0, 3))):
            call = waiting.pop()
            name, prompt = asked[call]
            namespace = chance.choice(["", "a"])
            model.engine.add(
                Generation(call, prompt, GREEDY, adapter=digests[name], cache_namespace=namespace)
            )
        results.step(model.engine)
        mixed += model.engine.running == 5
    assert mixed > 10
    for call, (name, prompt) in asked.items():
        assert results.tokens(call) == reference(name, prompt), (call, name)

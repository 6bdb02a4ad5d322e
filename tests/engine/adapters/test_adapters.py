"""Adapters on real models: mixed in one batch, each says what its merged model says."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from appliance.bundle.specs import FileEntry
from appliance.compiler import open_artifact
from appliance.config import EngineSettings, Layout
from appliance.engine.cache_budget import CacheBudget
from appliance.engine.chat_model import ChatModel
from appliance.engine.generation import Generation
from appliance.engine.loaded import open_model
from appliance.engine.sampling import SamplingParams
from appliance.errors import (
    CapacityError,
    DigestError,
    VerificationError,
)
from appliance.model_store import ModelStore, StoredBundle
from appliance.trust.node_key import NodePublicKey
from tests.conftest import BuildOnce
from tests.engine.results import Results, run
from tests.fakes.adapter_node import ADAPTERS, BASE, NAME, build_adapter_node

GREEDY = SamplingParams(temperature=0, max_tokens=24)
PROMPTS = [
    "How do I add a model?",
    "The sum of 17 and 25 is",
    "Every request is written to the audit log before its first word is sent. " * 3,
    "?",
    "def first(items):",
]


@pytest.fixture(scope="module")
def root(build_once: BuildOnce) -> Path:
    return build_once(NAME, build_adapter_node)


@pytest.fixture
def open_base(root: Path) -> Iterator[Callable[..., ChatModel]]:
    """Opens a version of the base, without adapters: 1.0 is in fp32, 2.0 in w8a8."""
    with ExitStack() as stack:

        def open_it(version: str = "1.0", **settings: int) -> ChatModel:
            given = EngineSettings(**({"cache_bytes": 64 << 20, "threads": 1} | settings))
            layout = Layout(root)
            bundle = ModelStore(layout.models).get(BASE, version)
            key = NodePublicKey.load(layout.node / "node.pub")
            artifact = open_artifact(layout.artifacts, bundle.digest, key)
            model = open_model(bundle, artifact, given, CacheBudget.from_settings(given))
            assert isinstance(model, ChatModel)
            stack.callback(model.close)
            return model

        yield open_it


@pytest.fixture(scope="module")
def reference(root: Path) -> Callable[[str, Sequence[int]], list[int]]:
    """Greedy continuation by 24 tokens of a merged checkpoint, by transformers in float32."""
    torch.set_num_threads(1)

    @cache
    def model(name: str) -> Any:
        directory = root / ("checkpoint" if not name else f"merged-{name}")
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


def adapter(root: Path, name: str) -> StoredBundle:
    return ModelStore(Layout(root).models).get(name)


def test_four_adapters_and_the_base_in_one_churning_batch_are_each_their_merged_model(
    root: Path,
    open_base: Callable[..., ChatModel],
    reference: Callable[[str, Sequence[int]], list[int]],
) -> None:
    model = open_base(max_sequences=5, token_budget=24)
    digests = {"": ""}
    for name in ADAPTERS:
        bundle = adapter(root, name)
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


def test_greedy_tokens_in_eight_bits_do_not_depend_on_who_is_beside(
    root: Path, open_base: Callable[..., ChatModel]
) -> None:
    model = open_base("2.0")
    prompts = [model.tokenizer.encode_text(text) for text in PROMPTS]
    alone = [run(model.engine, Generation(0, prompt, GREEDY)).tokens(0) for prompt in prompts]
    digests = []
    for name in ADAPTERS:
        bundle = adapter(root, name)
        model.adapters.add(bundle)
        digests.append(bundle.digest)
    among = [
        Generation(n, prompts[n % len(prompts)], GREEDY, adapter="" if n < 5 else digests[n % 4])
        for n in range(15)
    ]
    mixed = run(model.engine, *among)
    assert [mixed.tokens(n) for n in range(5)] == alone
    assert mixed.tokens(5) != alone[0]


def test_adapters_share_no_prefix_with_each_other_or_the_base(
    root: Path, open_base: Callable[..., ChatModel]
) -> None:
    model = open_base()
    digests = [adapter(root, name).digest for name in ("all", "half")]
    for name in ("all", "half"):
        model.adapters.add(adapter(root, name))
    prompt = model.tokenizer.encode_text(PROMPTS[2])
    cached = []
    for digest in ("", digests[0], digests[1], digests[0], ""):
        end = run(
            model.engine, Generation(0, prompt, GREEDY, cache_namespace="a", adapter=digest)
        ).ends[0, 0]
        cached.append(end.cached_tokens)
    whole = len(prompt) - 1
    assert whole > 0
    assert cached == [0, 0, 0, whole, whole]


def test_an_adapter_leaves_while_others_run(
    root: Path,
    open_base: Callable[..., ChatModel],
    reference: Callable[[str, Sequence[int]], list[int]],
) -> None:
    model = open_base(max_adapters=2)
    first, second, third = (adapter(root, n) for n in ("all", "half", "stable"))
    model.adapters.add(first)
    model.adapters.add(second)
    with pytest.raises(CapacityError) as refusal:
        model.adapters.add(third)
    assert refusal.value.code == "adapters_full"
    prompt = model.tokenizer.encode_text(PROMPTS[0])
    results = Results()
    model.engine.add(Generation(1, prompt, GREEDY, adapter=second.digest))
    for _ in range(5):
        results.step(model.engine)
    model.adapters.remove(first.digest)
    model.adapters.add(third)
    model.engine.add(Generation(2, prompt, GREEDY, adapter=third.digest))
    while model.engine.has_work:
        results.step(model.engine)
    assert model.adapters.digests == {second.digest, third.digest}
    assert results.tokens(1) == reference("half", prompt)
    assert results.tokens(2) == reference("stable", prompt)


@pytest.mark.parametrize("number", [np.nan, np.inf, 1e6])
def test_numbers_that_could_spoil_other_rows_are_refused(
    root: Path, open_base: Callable[..., ChatModel], tmp_path: Path, number: float
) -> None:
    bundle = adapter(root, "all")
    copy = shutil.copytree(bundle.directory, tmp_path / "it")
    path = copy / "adapter/00001.bin"
    numbers = np.fromfile(path, np.float32)
    numbers[77] = number
    path.unlink()
    path.write_bytes(numbers.tobytes())
    with pytest.raises(DigestError):
        open_base().adapters.add(replace(bundle, directory=copy))
    signed = tuple(
        FileEntry(path=e.path, size=e.size, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
        if e.path == "adapter/00001.bin"
        else e
        for e in bundle.manifest.files
    )
    manifest = msgspec.structs.replace(bundle.manifest, files=signed)
    with pytest.raises(VerificationError) as refusal:
        open_base().adapters.add(replace(bundle, directory=copy, manifest=manifest))
    assert refusal.value.code == "adapter_weights"

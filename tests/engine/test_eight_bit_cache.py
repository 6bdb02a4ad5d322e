"""With an 8-bit cache a sequence is what it is alone; where prompts are cut otherwise, nearly."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from appliance.compiler import open_artifact
from appliance.config import EngineSettings, Layout
from appliance.engine.cache_budget import CacheBudget
from appliance.engine.generation import Generation
from appliance.engine.loaded import open_model
from appliance.engine.model_runner import ModelRunner
from appliance.engine.native_runner import NativeRunner
from appliance.engine.sampling import SamplingParams
from appliance.engine.slot_pool import Array
from appliance.model_store import ModelStore
from appliance.native import library
from appliance.trust.node_key import NodePublicKey
from tests.engine.conftest import OpenChat
from tests.engine.results import churn, run
from tests.engine.test_generation import PROMPTS, ids

NEAR_TIE = 0.05
"""Of the logits' Euclidean norm per entry: what a cut elsewhere can move a logit by, and more."""


@pytest.mark.parametrize("name", ["bytes", "pair"])
def test_uncut_prompts_give_the_same_tokens_in_a_churning_batch(
    open_chat: OpenChat, name: str
) -> None:
    model = open_chat(name, max_sequences=5, token_budget=512)
    chance = random.Random(2)
    requests = [
        Generation(
            number,
            ids(model, chance.choice(PROMPTS)),
            SamplingParams(
                temperature=chance.choice([0, 0, 1.2]),
                seed=number,
                max_tokens=chance.randint(1, 40),
            ),
        )
        for number in range(30)
    ]
    assert max(len(request.prompt) for request in requests) < 100, "five fit into one step"
    together = churn(model.engine, requests, random.Random(1))
    for request in requests:
        alone = run(model.engine, request).tokens(request.call)
        tokens = together.tokens(request.call)
        assert tokens == alone[: len(tokens)]


@pytest.mark.skipif(not library.supported(), reason="this processor lacks the native operators")
@pytest.mark.parametrize("name", ["bytes", "halves"])
def test_with_native_operators_prompts_cut_anywhere_give_the_same_tokens(
    open_chat: OpenChat, name: str
) -> None:
    model = open_chat(name, max_sequences=5, token_budget=24)
    assert isinstance(model.engine._runner, NativeRunner)
    chance = random.Random(3)
    requests = [
        Generation(
            number,
            ids(model, chance.choice(PROMPTS) * chance.randint(1, 4)),
            SamplingParams(temperature=chance.choice([0, 1.2]), seed=number, max_tokens=30),
            cache_namespace="everyone",
        )
        for number in range(20)
    ]
    whole = open_chat(name, max_sequences=5, token_budget=2048)
    together = churn(model.engine, requests, random.Random(1))
    for request in requests:
        alone = run(whole.engine, request).tokens(request.call)
        tokens = together.tokens(request.call)
        assert tokens == alone[: len(tokens)]


def test_prompts_cut_elsewhere_differ_at_near_ties_only(open_chat: OpenChat) -> None:
    model = open_chat("pair", max_sequences=5, token_budget=24)
    chance = random.Random(3)
    requests = [
        Generation(
            number,
            ids(model, chance.choice(PROMPTS) * chance.randint(1, 4)),
            SamplingParams(temperature=0, max_tokens=30),
        )
        for number in range(20)
    ]
    together = churn(model.engine, requests, random.Random(1))
    same = 0
    for request in requests:
        alone, tokens = (
            run(model.engine, request).tokens(request.call),
            together.tokens(request.call),
        )
        at = next((i for i, (a, b) in enumerate(zip(alone, tokens, strict=False)) if a != b), None)
        if at is None:
            same += 1
            continue
        row = _logits(open_chat, [*request.prompt, *alone[:at]])
        gap = row[alone[at]] - row[tokens[at]]
        assert abs(gap) <= NEAR_TIE * np.linalg.norm(row) / len(row) ** 0.5
    assert same >= len(requests) // 2


def test_the_first_token_is_that_of_a_prompt_continued_from_its_slot(open_chat: OpenChat) -> None:
    # Half a prompt, a token that nobody needs, the rest: as after a lost or shared beginning.
    model = open_chat("pair")
    prompt = ids(model, PROMPTS[3])
    whole, rest = _logits(open_chat, prompt), _logits(open_chat, prompt, cut=len(prompt) // 2)
    assert np.linalg.norm(whole - rest) <= NEAR_TIE * np.linalg.norm(whole)
    assert whole.argmax() == rest.argmax()


def test_a_token_of_the_cache_takes_a_quarter(open_chat: OpenChat) -> None:
    bytes_, floats = open_chat("bytes"), open_chat("chat")
    assert 4 * bytes_.cache_shape.token_bytes == floats.cache_shape.token_bytes


def test_both_graphs_are_verified_before_they_are_loaded(node_root: Path) -> None:
    layout = Layout(node_root)
    bundle = ModelStore(layout.models).get("pair")
    key = NodePublicKey.load(layout.node / "node.pub")
    artifact = open_artifact(layout.artifacts, bundle.digest, key)
    names = [entry.path for entry in artifact.record.files]
    assert names == ["model.onnx", "prefill.onnx", "weights.bin"]
    weights = (artifact.directory / "weights.bin").stat().st_size
    assert (artifact.directory / "prefill.onnx").stat().st_size < weights
    settings = EngineSettings(cache_bytes=64 << 20, threads=1)
    open_model(bundle, artifact, settings, CacheBudget.from_settings(settings)).close()


def _logits(open_chat: OpenChat, tokens: list[int], cut: int = 0) -> Array:
    """Logits after `tokens`, computed in one piece or in two."""
    model = open_chat("pair", max_sequences=1)
    runner, decoder = model.engine._runner, model.bundle.manifest.decoder
    assert isinstance(runner, ModelRunner)
    assert decoder is not None
    row: Array = np.zeros((1, decoder.vocab_size), np.float32)
    if cut:
        runner.prefill(0, 0, tokens[:cut], row[:0])
    runner.prefill(0, cut, tokens[cut:], row)
    logits: Array = row[0]
    return logits

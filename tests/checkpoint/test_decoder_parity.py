"""Decoder graphs compute what the reference implementation computes, in every way they are run."""

from __future__ import annotations

import numpy as np
import pytest

from tests.checkpoint.conftest import DECODERS, BuildBundle
from tests.checkpoint.reference import ReferenceDecoder
from tests.checkpoint.runner import SlotRunner, relative_error

TOLERANCE = 1e-4
TOKENS = np.random.default_rng(7).integers(0, 480, 200).tolist()


@pytest.mark.parametrize("name", DECODERS)
def test_prefill_in_one_go_and_in_chunks_equals_the_reference(
    built: BuildBundle, name: str
) -> None:
    model = built(name, "fp32")
    reference = ReferenceDecoder(model.checkpoint).logits(TOKENS)
    whole = SlotRunner(model.graph, model.spec, capacity=256)
    assert relative_error(whole.prefill(0, TOKENS), reference[-1]) <= TOLERANCE
    chunked = SlotRunner(model.graph, model.spec, capacity=256)
    start = 0
    for size in (1, 64, 7, 100, 28):
        logits = chunked.prefill(0, TOKENS[start : start + size])
        start += size
        assert relative_error(logits, reference[start - 1]) <= TOLERANCE


@pytest.mark.parametrize("name", DECODERS)
def test_ragged_batched_decode_equals_the_reference(built: BuildBundle, name: str) -> None:
    model = built(name, "fp32")
    reference = ReferenceDecoder(model.checkpoint)
    runner = SlotRunner(model.graph, model.spec, slots=4, capacity=128)
    prompts = [TOKENS[:5], TOKENS[5:70], TOKENS[70:71], TOKENS[80:110]]
    for slot, prompt in enumerate(prompts):
        runner.prefill(slot, prompt)
    for step in range(3):
        appended = [TOKENS[150 + 10 * step + slot] for slot in range(4)]
        prompts = [[*prompt, token] for prompt, token in zip(prompts, appended, strict=True)]
        logits = runner.decode(appended)
        for got, prompt in zip(logits, prompts, strict=True):
            assert relative_error(got, reference.logits(prompt)[-1]) <= TOLERANCE


@pytest.mark.parametrize("name", ["qwen3", "qwen3-untied-bf16-sharded", "qwen2", "llama-3.1-rope"])
def test_greedy_tokens_equal_the_reference(built: BuildBundle, name: str) -> None:
    model = built(name, "fp32")
    wanted = ReferenceDecoder(model.checkpoint).greedy(TOKENS[:20], 64)
    runner = SlotRunner(model.graph, model.spec, capacity=128)
    logits = runner.prefill(0, TOKENS[:20])
    got = []
    for _ in range(64):
        got.append(int(logits.argmax()))
        logits = runner.decode(got[-1:])[0]
    assert got == wanted


def test_logits_are_those_of_the_row_that_last_index_names(built: BuildBundle) -> None:
    # Right-padded first prompts in one batch: each row's own last token counts.
    model = built("qwen3", "fp32")
    reference = ReferenceDecoder(model.checkpoint)
    prompts = [TOKENS[:9], TOKENS[9:13]]
    runner = SlotRunner(model.graph, model.spec, slots=2, capacity=32)
    runner.lengths = [9, 4]
    padded = [prompts[0], [*prompts[1], 0, 0, 0, 0, 0]]
    logits = runner.run(0, padded, last_index=[8, 3])
    for got, prompt in zip(logits, prompts, strict=True):
        assert relative_error(got, reference.logits(prompt)[-1]) <= TOLERANCE

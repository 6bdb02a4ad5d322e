"""Decoder graphs compute what the reference implementation computes.

In every way they are run, measured: test_parity_table.py.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.checkpoint.conftest import BuildBundle
from tests.checkpoint.reference import ReferenceDecoder
from tests.checkpoint.runner import SlotRunner, relative_error

TOLERANCE = 1e-4
TOKENS = np.random.default_rng(7).integers(0, 480, 200).tolist()


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

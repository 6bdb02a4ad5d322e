"""Quantized graphs compute what the reference computes on the rounded weights.

Two errors are kept apart. With plain activations (accuracy level 0) a quantized graph equals the
reference on the dequantized weights to rounding: layout, zero points, blocks and shared tables are
right (test_parity_table.py). With the 8-bit activations that bundles use, it must stay near.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from installer.checkpoint.quantize import Precision
from tests.checkpoint.conftest import BuildBundle, Built
from tests.checkpoint.reference import ReferenceDecoder, with_rounded_weights
from tests.checkpoint.runner import SlotRunner, relative_error

TOKENS = np.random.default_rng(11).integers(0, 480, 60).tolist()
NAMES = ["qwen3", "qwen3-odd-widths", "qwen2", "llama"]
PRECISIONS: list[Precision] = ["int4", "int8"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("precision", "most"), [("int4", 0.04), ("int8", 0.04)])
def test_eight_bit_activations_stay_near_the_rounded_reference(
    built: BuildBundle, tmp_path: Path, name: str, precision: Precision, most: float
) -> None:
    model = built(name, precision)
    rounded = with_rounded_weights(model.checkpoint, tmp_path / "rounded", precision)
    assert _error(model, ReferenceDecoder(rounded).logits(TOKENS)) <= most


@pytest.mark.parametrize("precision", PRECISIONS)
def test_decoding_step_by_step_agrees_with_prefill(
    built: BuildBundle, precision: Precision
) -> None:
    model = built("qwen3", precision)
    whole = SlotRunner(model.graph, model.spec, capacity=64)
    stepwise = SlotRunner(model.graph, model.spec, capacity=64)
    wanted = whole.prefill(0, TOKENS)
    stepwise.prefill(0, TOKENS[:40])
    for token in TOKENS[40:]:
        got = stepwise.decode([token])[0]
    assert relative_error(got, wanted) <= 0.02


def _error(model: Built, reference: npt.NDArray[np.float32]) -> float:
    runner = SlotRunner(model.graph, model.spec, capacity=64)
    return relative_error(runner.prefill(0, TOKENS), reference[-1])

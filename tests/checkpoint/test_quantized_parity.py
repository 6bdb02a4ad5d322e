"""Quantized graphs compute what the reference computes on the rounded weights.

Two errors are kept apart. With plain activations (accuracy level 0) a quantized graph must equal
the reference on the dequantized weights to rounding: layout, zero points, blocks and shared
tables are right. With the 8-bit activations that bundles use, it must stay near.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file

from installer.checkpoint.graph import builder
from installer.checkpoint.graph.table import table_block
from installer.checkpoint.quantize import SCHEMES, Precision, block_size, dequantize, quantize
from tests.checkpoint.conftest import BuildBundle, Built, build_unsigned
from tests.checkpoint.reference import ReferenceDecoder
from tests.checkpoint.runner import SlotRunner, relative_error

TOKENS = np.random.default_rng(11).integers(0, 480, 60).tolist()
NAMES = ["qwen3", "qwen3-odd-widths", "qwen2", "llama"]
PRECISIONS: list[Precision] = ["int4", "int8"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_rounded_weights_give_the_reference_logits(
    built: BuildBundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    precision: Precision,
) -> None:
    checkpoint = built(name, "fp32").checkpoint
    rounded = _with_rounded_weights(checkpoint, tmp_path / "rounded", precision)
    reference = ReferenceDecoder(rounded).logits(TOKENS)
    monkeypatch.setattr(builder, "INT8_ACTIVATIONS", 0)
    build_unsigned(checkpoint, tmp_path / "plain", precision=precision)
    assert _error(Built(checkpoint, tmp_path / "plain"), reference) <= 1e-4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("precision", "most"), [("int4", 0.04), ("int8", 0.04)])
def test_eight_bit_activations_stay_near_the_rounded_reference(
    built: BuildBundle, tmp_path: Path, name: str, precision: Precision, most: float
) -> None:
    model = built(name, precision)
    rounded = _with_rounded_weights(model.checkpoint, tmp_path / "rounded", precision)
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


def _with_rounded_weights(checkpoint: Path, target: Path, precision: Precision) -> Path:
    """A copy of `checkpoint` whose matrices went through quantization and back."""
    shutil.copytree(checkpoint, target)
    weights = load_file(target / "model.safetensors")
    scheme = SCHEMES[precision]
    for name, values in weights.items():
        if values.ndim != 2:
            continue
        table = "embed_tokens" in name or "lm_head" in name
        bits = scheme.table_bits if table else scheme.layer_bits
        width = values.shape[1]
        block = table_block(width) if table else block_size(width)
        weights[name] = dequantize(quantize(values, bits, block), bits, width)
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    return target

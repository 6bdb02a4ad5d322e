"""The graphs for CUDA compute what the reference computes, within what 16-bit floats can hold.

They run here on the CPU provider, which has every one of their operators.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import load_file, save_file

from appliance.bundle.specs import Graph
from appliance.errors import CheckpointError
from installer.checkpoint.graph.half import HalfBuilder
from installer.checkpoint.quantize import Precision
from tests.checkpoint.conftest import (
    BLIND,
    EXPERTS,
    MAIN,
    OFF_GPUS,
    RECURRENT,
    UNEVEN,
    WRITERS,
    BuildBundle,
    Built,
    build_unsigned,
)
from tests.checkpoint.enlarged import LARGEST, Peaks, enlarge
from tests.checkpoint.reference import ReferenceDecoder, with_rounded_weights
from tests.checkpoint.runner import SlotRunner, relative_error
from tests.fakes.checkpoints import write_qwen3

TOLERANCES: dict[Precision, float] = {
    "fp32": 0.02,
    "fp16": 0.02,
    "w8a8": 0.12,
    "int8": 0.12,
    "int4": 0.6,
}
"""Of fp16 alone, and of fp16 and the grade's rounding of random weights."""
TOKENS = np.random.default_rng(8).integers(0, 480, 200).tolist()
GRADES = [
    (name, "fp32") for name in (*MAIN, *RECURRENT, *UNEVEN) if name not in (*EXPERTS, *OFF_GPUS)
]
GRADES += [(name, "w8a8") for name in BLIND]
GRADES += [("qwen3", "w8a8"), ("qwen2", "w8a8"), ("qwen3-untied-bf16-sharded", "w8a8")]
GRADES += [("qwen3", "int8"), ("llama", "int4"), ("qwen3", "fp16"), ("qwen2-fp16", "fp16")]


def half(model: Built, precision: str = "fp16", *, slots: int = 1, capacity: int) -> SlotRunner:
    (graph,) = [g for g in model.manifest.variants("cuda") if g.precision == precision]
    weights = model.bundle / graph.weights_folder
    return SlotRunner(
        model.bundle / graph.path, model.spec, slots=slots, capacity=capacity, weights=weights
    )


@pytest.mark.parametrize(("name", "precision"), GRADES)
def test_chunked_prefill_and_ragged_decode_equal_the_reference(
    built: BuildBundle, name: str, precision: Precision
) -> None:
    model, tolerance = built(name, precision), TOLERANCES[precision]
    reference = ReferenceDecoder(model.checkpoint)
    runner = half(model, slots=3, capacity=128)
    prompts = [TOKENS[:5], TOKENS[5:70], TOKENS[80:111]]
    for slot, prompt in enumerate(prompts):
        first = runner.prefill(slot, prompt[:3])
        assert relative_error(first, reference.logits(prompt[:3])[-1]) <= tolerance
        rest = runner.prefill(slot, prompt[3:])
        assert relative_error(rest, reference.logits(prompt)[-1]) <= tolerance
    for step in range(2):
        appended = [TOKENS[150 + 10 * step + slot] for slot in range(3)]
        prompts = [[*prompt, token] for prompt, token in zip(prompts, appended, strict=True)]
        logits = runner.decode(appended)
        assert runner.greedy.tolist() == logits.argmax(-1).tolist()
        for got, prompt in zip(logits, prompts, strict=True):
            assert relative_error(got, reference.logits(prompt)[-1]) <= tolerance


@pytest.mark.parametrize(
    "name",
    [
        *("qwen3", "qwen2", "qwen3-untied-bf16-sharded", "qwen3-odd-widths", "gemma3", "phi3"),
        *("qwen3.5", "gemma4-small"),
    ],
)
def test_rows_of_integers_are_multiplied_as_the_floats_that_they_stand_for(
    built: BuildBundle, name: str
) -> None:
    """The compact graph has the weights of the other one; what differs is rounded in 16 bits."""
    model = built(name, "w8a8")
    wide = half(model, slots=2, capacity=96)
    compact = half(model, "int8", slots=2, capacity=96)
    blocks = {g.precision: _block_products(model, g) for g in model.manifest.variants("cuda")}
    assert blocks["fp16"] == 0 < blocks["int8"]
    (graph,) = [g for g in model.manifest.variants("cuda") if g.precision == "int8"]
    assert not _widened_whole(model, graph), "that takes four times the integers' memory"
    for slot, prompt in enumerate((TOKENS[:5], TOKENS[5:70])):
        expected = wide.prefill(slot, prompt)
        assert relative_error(compact.prefill(slot, prompt), expected) <= TOLERANCES["fp16"]
    appended = TOKENS[150:152]
    expected = wide.decode(appended)
    assert relative_error(compact.decode(appended), expected) <= TOLERANCES["fp16"]


@pytest.mark.parametrize("precision", ["w8a8", "int4"])
def test_rounded_weights_of_uneven_layers_are_computed_as_they_are(
    built: BuildBundle, tmp_path: Path, precision: Precision
) -> None:
    """Random ones lose much by rounding, so the reference has them rounded."""
    model = built("gemma4-small", precision)
    rounded = with_rounded_weights(model.checkpoint, tmp_path / "rounded", precision)
    reference = ReferenceDecoder(rounded)
    for graph in model.manifest.variants("cuda"):
        runner = half(model, graph.precision, capacity=96)
        for prompt in (TOKENS[:5], TOKENS[5:70], TOKENS[80:111]):
            runner.lengths[0] = 0
            wanted = reference.logits(prompt)[-1]
            assert relative_error(runner.prefill(0, prompt), wanted) <= 1.5 * TOLERANCES["fp16"]


def test_weights_are_stored_once_for_all_graphs(built: BuildBundle) -> None:
    model = built("qwen3", "w8a8")
    folder = model.bundle / "graph"
    weights = [path for path in folder.rglob("*") if path.suffix == ".bin"]
    assert {path.parent.name for path in weights} == {"cpu"}
    graphs = sum(path.stat().st_size for path in folder.rglob("*.onnx"))
    assert graphs < sum(path.stat().st_size for path in weights)


def test_a_checkpoint_in_16_bit_floats_is_kept_as_it_is(built: BuildBundle) -> None:
    model = built("qwen2-fp16", "fp16")
    reference = ReferenceDecoder(model.checkpoint).logits(TOKENS[:40])[-1]
    on_the_processor = SlotRunner(model.graph, model.spec, capacity=64).prefill(0, TOKENS[:40])
    assert relative_error(on_the_processor, reference) <= 1e-4


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        *(("cuda", name) for name in ("gemma3", "glm4", "olmo2", "lfm3")),
        *(("trt", name) for name in ("gemma3", "glm4", "olmo2")),
    ],
)
def test_numbers_inside_a_layer_may_outgrow_16_bits_where_what_it_gives_is_normed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str, name: str
) -> None:
    checkpoint = _with_large_numbers(name, tmp_path / "checkpoint")
    build_unsigned(checkpoint, tmp_path / "bundle", precision="fp16")
    model = Built(checkpoint, tmp_path / "bundle")
    graph = model.manifest.variant(variant)
    assert graph is not None
    weights = model.bundle / graph.weights_folder
    runner = SlotRunner(model.bundle / graph.path, model.spec, capacity=64, weights=weights)
    reference = ReferenceDecoder(checkpoint)
    wanted = reference.logits(TOKENS[:40])
    assert relative_error(runner.prefill(0, TOKENS[:40]), wanted[-1]) <= TOLERANCES["fp16"]
    # As they are they do not fit, which the build finds out.
    monkeypatch.setattr(HalfBuilder, "shrink", 1.0)
    with pytest.raises(CheckpointError, match="not finite"):
        build_unsigned(checkpoint, tmp_path / "other", precision="fp16")


@pytest.mark.parametrize("variant", ["cuda", "trt"])
def test_squares_of_a_feed_forward_may_outgrow_16_bits(tmp_path: Path, variant: str) -> None:
    up, stream = 400, 2.0**10  # or the weights on the way down would be too small
    factors = {"embed_tokens": stream, "o_proj": stream, "up_proj": up, "down_proj": stream / up**2}
    named = {rf"{name}\.weight": factor for name, factor in factors.items()}
    checkpoint = enlarge(WRITERS["apertus"](tmp_path / "checkpoint"), named)
    build_unsigned(checkpoint, tmp_path / "bundle", precision="fp16")
    model, reference = Built(checkpoint, tmp_path / "bundle"), ReferenceDecoder(checkpoint)
    peaks = Peaks(reference.model)
    wanted = reference.logits(TOKENS[:40])[-1]
    assert peaks.product > 16 * LARGEST
    graph = model.manifest.variant(variant)
    assert graph is not None
    weights = model.bundle / graph.weights_folder
    runner = SlotRunner(model.bundle / graph.path, model.spec, capacity=64, weights=weights)
    assert relative_error(runner.prefill(0, TOKENS[:40]), wanted) <= TOLERANCES["fp16"]


_HALVES = ("mlp.gate_", "up_proj", "feed_forward.w1", "feed_forward.w3")


def _with_large_numbers(model: str, directory: Path) -> Path:
    """One whose feed-forwards, before the norms behind them, reach some hundred thousand."""
    WRITERS[model](directory)
    tensors = load_file(directory / "model.safetensors")
    for name, values in tensors.items():
        if any(word in name for word in _HALVES):
            tensors[name] = (values / np.abs(values).max() * 60).astype(values.dtype)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


def test_weights_beyond_16_bits_are_refused_by_name(tmp_path: Path) -> None:
    checkpoint = write_qwen3(tmp_path / "checkpoint")
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj"
    tensors[f"{name}.weight"][3, 4] = 70_000
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=name) as refusal:
        build_unsigned(checkpoint, tmp_path / "bundle", precision="fp16")
    assert "fp32" in (refusal.value.hint or "")


def _block_products(model: Built, graph: Graph) -> int:
    nodes = ir.load(model.bundle / graph.path).graph
    return sum(node.op_type == "MatMulNBits" for node in nodes)


def _widened_whole(model: Built, graph: Graph) -> list[str]:
    """The stored integers of which the graph makes floats one by one."""
    return [
        str(node.inputs[0].name)
        for node in ir.load(model.bundle / graph.path).graph
        if node.op_type == "Cast"
        and node.inputs[0] is not None
        and node.inputs[0].const_value is not None
        and node.inputs[0].const_value.dtype == ir.DataType.INT8
        and node.attributes["to"].as_int() != ir.DataType.UINT8
    ]

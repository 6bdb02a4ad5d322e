"""Mixtures of experts: only the chosen ones run, and every grade means what its integers mean.

That logits are the reference's: the parity table. Here, too, two errors are kept apart: graphs
for CUDA told another type equal the reference, and as shipped they stay near it for most tokens.
Not for all, since a rounding may choose another expert, after which a random model is another one.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
import torch
from safetensors.numpy import load_file

from appliance.errors import CheckpointError
from appliance.pb import onnx_graph_pb2 as pb
from installer.checkpoint.graph import builder
from installer.checkpoint.graph.half import HalfBuilder
from installer.checkpoint.quantize import Blocks, Precision, dequantize
from installer.checkpoint.reader import Checkpoint
from tests.checkpoint.conftest import EXPERTS, WRITERS, BuildBundle, Built, build_unsigned
from tests.checkpoint.reference import Floats, ReferenceDecoder, with_rounded_weights
from tests.checkpoint.runner import SlotRunner, relative_error
from tests.checkpoint.test_half_parity import half
from tests.checkpoint.test_refusals import edit_json, refused, rewrite
from tests.fakes.packers import Gptq, write_packed
from tests.sweeps import sampled

TOKENS = np.random.default_rng(21).integers(0, 480, 100).tolist()
PUBLISHED = "gpt-oss-published"
MOST: dict[Precision, float] = {"fp32": 0.02, "fp16": 0.02, "int8": 0.12, "int4": 0.7, "w8a8": 0.12}
"""Of the middle one of all tokens' errors."""


def rows(runner: SlotRunner, tokens: list[int]) -> Floats:
    """Logits after each token."""
    runner.lengths = [len(tokens)]
    return runner.run(0, [tokens], last_index=list(range(len(tokens))))


def middle(got: Floats, wanted: Floats) -> float:
    return float(np.median([relative_error(a, b) for a, b in zip(got, wanted, strict=True)]))


@pytest.mark.parametrize("name", EXPERTS)
def test_graphs_for_cuda_in_32_bits_equal_the_reference(
    built: BuildBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    checkpoint = built(name, "fp32").checkpoint
    monkeypatch.setattr(HalfBuilder, "dtype", ir.DataType.FLOAT)
    build_unsigned(checkpoint, tmp_path / "bundle", precision="fp32")
    runner = half(Built(checkpoint, tmp_path / "bundle"), capacity=128)
    wanted = ReferenceDecoder(checkpoint).logits(TOKENS)
    assert relative_error(rows(runner, TOKENS), wanted) <= 1e-4


OF_A_KIND = {
    "qwen3-moe",
    "gpt-oss",
    "mixtral",
    "deepseek-v3",
    "llama4",
    "qwen3.5-moe",
    "minimax-m3",
    "muse-spark",
}
"""Mixtures that differ in how experts are chosen and scaled, which 16 bits could spoil."""
GRADES: list[tuple[str, Precision]] = [(name, "fp32") for name in EXPERTS]
GRADES += [("qwen3-moe", "fp16"), ("qwen3-moe", "int4"), (PUBLISHED, "w8a8")]


@pytest.mark.parametrize(("name", "precision"), sampled(GRADES, [*OF_A_KIND, PUBLISHED]))
def test_graphs_for_cuda_as_shipped_stay_near_the_reference(
    built: BuildBundle, name: str, precision: Precision
) -> None:
    model = built(name, precision)
    got = rows(half(model, capacity=128), TOKENS)
    wanted = ReferenceDecoder(model.checkpoint).logits(TOKENS)
    assert middle(got, wanted) <= MOST[precision]


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_activations_of_8_bits_stay_near_the_rounded_reference(
    built: BuildBundle, tmp_path: Path, precision: Precision
) -> None:
    model = built("qwen3-moe", precision)
    rounded = with_rounded_weights(model.checkpoint, tmp_path / "rounded", precision)
    got = rows(SlotRunner(model.graph, model.spec, capacity=128), TOKENS)
    assert middle(got, ReferenceDecoder(rounded).logits(TOKENS)) <= 0.06


def test_experts_have_no_graph_for_tensorrt(built: BuildBundle) -> None:
    variants = {graph.variant for graph in built("qwen3-moe", "w8a8").manifest.graphs}
    assert variants == {"cpu", "cuda"}


def chosen_experts(checkpoint: Path, tokens: list[int]) -> list[set[int]]:
    """Of each layer that has experts, those that the reference chose for any token."""
    model = ReferenceDecoder(checkpoint).model
    seen: list[set[int]] = []
    for module in model.modules():
        if type(module).__name__.endswith("TopKRouter"):
            at = len(seen)
            seen.append(set())

            def note(_module: object, _given: object, out: Any, at: int = at) -> None:
                seen[at] |= set(out[2].flatten().tolist())

            module.register_forward_hook(note)
    with torch.inference_mode():
        model(torch.tensor([tokens]))
    return seen


def spoil_experts(model: Built, keep: list[set[int]], kind: str) -> int:
    """Overwrite the weights (or scales) of all experts but `keep`; how many experts that are."""
    graph = pb.Model.FromString(model.graph.read_bytes()).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    layers = [node for node in graph.node if node.op_type == kind]
    inputs = (2, 4) if kind == "MoE" else (3, 6)
    assert len(layers) == len(keep)
    spoilt = 0
    for node, wanted in zip(layers, keep, strict=True):
        for at in inputs:
            tensor = stored[node.input[at]]
            place = {entry.key: entry.value for entry in tensor.external_data}
            experts = tensor.dims[0]
            size = int(place["length"]) // experts
            with (model.graph.parent / place["location"]).open("r+b") as file:
                for expert in set(range(experts)) - wanted:
                    file.seek(int(place["offset"]) + expert * size)
                    file.write(np.full(size // 4, np.nan, np.float32).tobytes())
        spoilt += experts - len(wanted)
    return spoilt


@pytest.mark.parametrize(
    ("name", "precision", "kind"),
    [
        ("qwen3-moe", "fp32", "MoE"),
        ("qwen3-moe", "int8", "QMoE"),
        ("gpt-oss", "int4", "QMoE"),
        ("minimax-m2", "fp32", "MoE"),
    ],
)
@pytest.mark.parametrize("count", [1, 3])
def test_experts_that_nobody_chose_are_not_even_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    precision: Precision,
    kind: str,
    count: int,
) -> None:
    # Without roundings of activations the reference's choice is the graph's on any machine.
    monkeypatch.setattr(builder, "INT8_ACTIVATIONS", 0)
    checkpoint = WRITERS[name](tmp_path / "checkpoint")
    build_unsigned(checkpoint, tmp_path / "bundle", precision=precision)
    model, tokens = Built(checkpoint, tmp_path / "bundle"), TOKENS[:count]
    wanted = rows(SlotRunner(model.graph, model.spec, capacity=8, prepack=False), tokens)
    if kind == "QMoE":
        checkpoint = with_rounded_weights(checkpoint, tmp_path / "rounded", precision)
    assert spoil_experts(model, chosen_experts(checkpoint, tokens), kind) > 0
    got = rows(SlotRunner(model.graph, model.spec, capacity=8, prepack=False), tokens)
    assert (got == wanted).all()


@pytest.mark.parametrize(
    ("name", "precision", "limit"),
    [("qwen3-moe", "fp32", 200_000), ("qwen3-moe", "int4", 70_000), (PUBLISHED, "int8", 70_000)],
)
def test_stacks_in_several_files_give_the_same_logits(
    built: BuildBundle, tmp_path: Path, name: str, precision: Precision, limit: int
) -> None:
    model = built(name, precision)
    build_unsigned(model.checkpoint, tmp_path / "out", precision=precision, max_file_bytes=limit)
    split = Built(model.checkpoint, tmp_path / "out")
    kinds = [node.op_type for node in pb.Model.FromString(split.graph.read_bytes()).graph.node]
    assert kinds.count("MoE") + kinds.count("QMoE") > model.spec.layers
    one, other = (
        rows(SlotRunner(each.graph, each.spec, capacity=128, prepack=False), TOKENS[:40])
        for each in (model, split)
    )
    assert relative_error(one, other) <= 1e-4


@pytest.mark.parametrize("precision", ["int8", "w8a8"])
def test_published_experts_lose_nothing_in_8_bits(built: BuildBundle, precision: Precision) -> None:
    model = built(PUBLISHED, precision)
    for name, expert, matrix in stacks_of(model):
        stored = Checkpoint(model.checkpoint).tensors
        wanted = np.concatenate(list(stored.rows(f"{name}.{expert}")))
        assert (matrix == wanted).all()


def stacks_of(model: Built, bits: int = 8) -> Iterator[tuple[str, int, Floats]]:
    """What a graph's integers stand for: the checkpoint's name of a stack, expert, numbers."""
    graph = pb.Model.FromString(model.graph.read_bytes()).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}

    def read(name: str, kind: type[np.generic]) -> npt.NDArray[Any]:
        place = {entry.key: entry.value for entry in stored[name].external_data}
        with (model.graph.parent / place["location"]).open("rb") as file:
            file.seek(int(place["offset"]))
            data = file.read(int(place["length"]))
        return np.frombuffer(data, kind).reshape(stored[name].dims)

    for node in graph.node:
        if node.op_type != "QMoE":
            continue
        inputs = [*node.input, *[""] * 13]
        for packed, scales, zeros in ((2, 3, 11), (5, 6, 12)):
            name = inputs[packed].removesuffix(".stacked")
            points = read(inputs[zeros], np.uint8) if inputs[zeros] else None
            steps = read(inputs[scales], np.float32)
            for expert, integers in enumerate(read(inputs[packed], np.uint8)):
                shaped = integers.reshape(len(integers), steps.shape[2], -1)
                own = None if points is None else points[expert]
                blocks = Blocks(shaped, steps[expert], own)
                width = integers.shape[1] * 8 // bits
                yield f"{name}_proj", expert, dequantize(blocks, bits, width)


@pytest.mark.parametrize(("bits", "precision"), [(4, "int4"), (8, "int8"), (8, "w8a8")])
def test_integers_that_the_checkpoint_has_are_kept(
    built: BuildBundle, tmp_path: Path, bits: int, precision: Precision
) -> None:
    plain = built("qwen3-moe", "fp32").checkpoint
    packer = Gptq(bits=bits, group=32, symmetric=False, shuffled=False)
    twin = write_packed(plain, tmp_path / "packed", packer)
    build_unsigned(tmp_path / "packed", tmp_path / "bundle", precision=precision)
    stacks = {
        (name, expert): numbers
        for name, expert, numbers in stacks_of(
            Built(tmp_path / "packed", tmp_path / "bundle"), bits
        )
    }
    meant = load_file(twin / "model.safetensors")
    for (name, expert), numbers in stacks.items():
        at, end = name.rsplit(".", 1)
        if end == "down_proj":
            assert (numbers == meant[f"{at}.{expert}.down_proj.weight"]).all()
        else:
            assert (numbers[0::2] == meant[f"{at}.{expert}.gate_proj.weight"]).all()
            assert (numbers[1::2] == meant[f"{at}.{expert}.up_proj.weight"]).all()
    assert len(stacks) == 2 * 16 * 2


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("qwen3-moe", "use_sliding_window", True),
        ("qwen3-moe", "num_experts", None),
        ("qwen3-moe", "shared_expert_intermediate_size", 64),
        ("gpt-oss", "attention_bias", False),
        ("gpt-oss", "experts_per_token", 5),
        ("gpt-oss", "initial_context_length", 128),
        ("gpt-oss", "rope_scaling", None),
        ("gpt-oss", "hidden_act", "gelu"),
        ("minimax-m2", "scoring_func", "softmax"),
        ("minimax-m2", "qk_norm_type", "per_head"),
        ("minimax-m2", "attn_type_list", [1, 0]),
        ("minimax-m2", "rotary_dim", 12),
        ("minimax-m2", "shared_intermediate_size", 64),
        ("qwen2-moe", "use_sliding_window", True),
        ("qwen2-moe", "shared_expert_intermediate_size", None),
        ("qwen2-moe", "qkv_bias", False),
        ("olmoe", "clip_qkv", 8.0),
        ("olmoe", "attention_bias", True),
        ("olmoe", "shared_expert_intermediate_size", 64),
        ("ernie4.5-moe", "use_bias", True),
        ("ernie4.5-moe", "moe_gate", "top2"),
        ("ernie4.5-moe", "moe_use_aux_free", False),
        ("ernie4.5-moe", "moe_norm_min", 0.1),
        ("ernie4.5-moe", "moe_k", None),
        ("mixtral", "num_local_experts", None),
        ("mixtral", "norm_topk_prob", False),
        ("mixtral", "layer_types", ["full_attention", "sliding_attention"]),
    ],
)
def test_what_a_family_cannot_express_is_refused_by_its_key(
    built: BuildBundle, tmp_path: Path, name: str, key: str, value: object
) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(built(name, "fp32").checkpoint, checkpoint)
    edit_json(checkpoint / "config.json", lambda c: c.update({key: value}))
    refused(checkpoint, tmp_path, "turn" if key == "rotary_dim" else key)


def test_what_predicts_further_tokens_in_ernie_is_left_out(
    built: BuildBundle, tmp_path: Path
) -> None:
    model, checkpoint = built("ernie4.5-moe", "int8"), tmp_path / "checkpoint"
    shutil.copytree(model.checkpoint, checkpoint)
    further = np.ones((64, 128), np.float32)
    rewrite(checkpoint, lambda w: w.update({"model.mtp_linear_proj.0.weight": further}))
    edit_json(checkpoint / "config.json", lambda c: c.update(num_nextn_predict_layers=1))
    build_unsigned(checkpoint, tmp_path / "bundle", precision="int8")
    path = model.graph.relative_to(model.bundle)
    assert (tmp_path / "bundle" / path).read_bytes() == model.graph.read_bytes()


def test_an_expert_that_is_missing_or_has_another_shape_is_named(
    built: BuildBundle, tmp_path: Path
) -> None:
    name = "model.layers.1.mlp.experts.7.down_proj.weight"
    for edit in (lambda w: w.pop(name), lambda w: w.update({name: w[name].T.copy()})):
        checkpoint = tmp_path / "checkpoint"
        shutil.copytree(built("qwen3-moe", "fp32").checkpoint, checkpoint)
        rewrite(checkpoint, edit)
        refused(checkpoint, tmp_path, name)
        shutil.rmtree(checkpoint)


@pytest.mark.parametrize("name", EXPERTS)
def test_four_bits_by_native_operators_are_refused_by_name(name: str, tmp_path: Path) -> None:
    checkpoint = WRITERS[name](tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match=r"w4a8: native operators (do not )?compute"):
        build_unsigned(checkpoint, tmp_path / "out", precision="w4a8")

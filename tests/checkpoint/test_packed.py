"""Checkpoints that are quantized already mean what their formats say, to the last bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch

from appliance.errors import CheckpointError
from appliance.native import library
from installer.checkpoint.families.known import FAMILIES
from installer.checkpoint.graph import builder
from installer.checkpoint.graph.table import table_block
from installer.checkpoint.packed.methods import treatment
from installer.checkpoint.quantize import SCHEMES, Precision, dequantize, float_run, quantize
from installer.checkpoint.reader import Checkpoint
from tests.checkpoint.byte_runner import OTHER_WAY, Natively, distance
from tests.checkpoint.conftest import WRITERS, Built, build_unsigned
from tests.checkpoint.reference import ReferenceDecoder, RoundingReference
from tests.checkpoint.runner import SlotRunner, relative_error
from tests.fakes.checkpoints import write_llama, write_qwen3
from tests.fakes.packers import (
    Awq,
    CompressedFloats,
    CompressedFourBits,
    CompressedInts,
    Fp8,
    Fp8Whole,
    Gptq,
    ModeloptFloats,
    ModeloptFourBits,
    Packer,
    write_packed,
)

TOKENS = np.random.default_rng(12).integers(0, 480, 40).tolist()
INTEGERS: dict[str, Packer] = {
    "gptq 4 bits": Gptq(bits=4, group=32, symmetric=True, shuffled=False),
    "gptq 4 bits, asymmetric": Gptq(bits=4, group=64, symmetric=False, shuffled=False),
    "gptq 4 bits, activation order": Gptq(bits=4, group=16, symmetric=False, shuffled=True),
    "gptq 4 bits, whole rows": Gptq(bits=4, group=-1, symmetric=True, shuffled=False),
    "gptq 8 bits, format 2": Gptq(
        bits=8, group=32, symmetric=False, version="gptq_v2", shuffled=True
    ),
    "awq": Awq(group=32),
    "compressed 4 bits": CompressedInts(bits=4, group=32),
    "compressed 4 bits, asymmetric": CompressedInts(bits=4, group=64, symmetric=False),
    "compressed 8 bits, whole rows": CompressedInts(bits=8, group=-1),
}
FLOATS: dict[str, Packer] = {
    "fp8": Fp8(),
    "fp8, squares that do not fit": Fp8(48),
    "fp8, a scale a matrix": Fp8Whole(),
    "compressed fp8, a scale a row": CompressedFloats("channel"),
    "compressed fp8, one scale": CompressedFloats("tensor"),
    "modelopt fp8": ModeloptFloats("FP8"),
    "modelopt fp8, a scale a row": ModeloptFloats("FP8_PER_CHANNEL_PER_TOKEN"),
    "modelopt fp8, squares": ModeloptFloats("fp8_pb_wo"),
}
FOUR_BITS: dict[str, Packer] = {
    "modelopt nvfp4": ModeloptFourBits(),
    "modelopt nvfp4 alone": ModeloptFourBits("W4A16_NVFP4"),
    "compressed nvfp4": CompressedFourBits(),
    "compressed nvfp4 alone": CompressedFourBits(alone=True),
}
PACKERS = INTEGERS | FLOATS | FOUR_BITS


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """`packed(name)`: a small Qwen3 by one of PACKERS, and the same numbers in plain floats."""
    folder = tmp_path_factory.mktemp("packed")
    plain = write_qwen3(folder / "plain", hidden=128, intermediate=192, head_dim=32, tied=False)
    made: dict[str, tuple[Path, Path]] = {}

    def get(name: str) -> tuple[Path, Path]:
        if name not in made:
            target = folder / str(len(made))
            made[name] = target, write_packed(plain, target, PACKERS[name])
        return made[name]

    return get


@pytest.mark.parametrize("name", PACKERS)
def test_numbers_are_those_that_the_format_means_to_the_bit(
    packed: Callable[[str], tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # Runs of a few rows, so that squares and words are cut.
    monkeypatch.setattr("installer.checkpoint.tensors._PIECE_BYTES", 5 * 128 * 4)
    directory, twin = packed(name)
    tensors = Checkpoint(directory).tensors
    wanted = load_file(twin / "model.safetensors")
    for weight, values in wanted.items():
        assert weight in tensors
        tensors.expect(weight, values.shape)
        if values.ndim == 2:
            assert (np.concatenate(list(tensors.rows(weight))) == values).all(), weight
            assert (np.concatenate(list(tensors.rows(weight, unit=16))) == values).all(), weight
            assert (np.concatenate(list(tensors.transposed(weight))) == values.T).all(), weight
        else:
            tensors.vector(weight, len(values))


@pytest.mark.parametrize("name", [*INTEGERS, *FOUR_BITS])
def test_a_grade_of_as_many_bits_keeps_the_integers(
    packed: Callable[[str], tuple[Path, Path]], name: str
) -> None:
    directory, twin = packed(name)
    checkpoint = Checkpoint(directory)
    assert checkpoint.packing is not None
    bits = checkpoint.packing.bits
    assert bits is not None
    for weight, values in load_file(twin / "model.safetensors").items():
        kept = checkpoint.tensors.kept(weight, bits)
        assert (kept is not None) == ("proj" in weight)
        assert checkpoint.tensors.kept(weight, 12 - bits) is None
        if kept is None:
            continue
        numbers = [dequantize(run, bits, values.shape[1]) for run in kept.runs()]
        order = np.arange(values.shape[1]) if kept.order is None else kept.order
        assert (np.concatenate(numbers) == values[:, order]).all(), weight


@pytest.mark.parametrize("name", ["gptq 4 bits, activation order", "awq", "fp8"])
def test_a_bundle_in_floats_computes_what_the_reference_does(
    packed: Callable[[str], tuple[Path, Path]], tmp_path: Path, name: str
) -> None:
    assert _error(*packed(name), tmp_path, "fp32") <= 1e-4


@pytest.mark.parametrize(
    "name", ["gptq 4 bits, activation order", "gptq 4 bits, whole rows", "awq"]
)
def test_int4_computes_with_the_same_integers(
    packed: Callable[[str], tuple[Path, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.setattr(builder, "INT8_ACTIVATIONS", 0)
    directory, twin = packed(name)
    reference = _with_rounded_tables(twin, tmp_path / "reference")
    assert _error(directory, reference, tmp_path, "int4") <= 1e-4


@pytest.mark.parametrize("name", FOUR_BITS)
def test_int8_computes_with_what_4_bit_floats_mean(
    packed: Callable[[str], tuple[Path, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.setattr(builder, "INT8_ACTIVATIONS", 0)
    directory, twin = packed(name)
    reference = _with_rounded_tables(twin, tmp_path / "reference")
    assert _error(directory, reference, tmp_path, "int8") <= 1e-4
    model = Built(directory, tmp_path / "bundle")
    (graph,) = model.manifest.variants("cuda")
    weights = model.bundle / graph.weights_folder
    runner = SlotRunner(model.bundle / graph.path, model.spec, capacity=64, weights=weights)
    wanted = ReferenceDecoder(reference).logits(TOKENS)[-1]
    assert relative_error(runner.prefill(0, TOKENS), wanted) <= 0.02


def test_what_older_exports_say_in_a_file_of_its_own_is_read(
    packed: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    for name, said in (
        ("modelopt fp8", {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}),
        ("modelopt nvfp4", {"quant_algo": "NVFP4", "kv_cache_quant_algo": None, "group_size": 16}),
    ):
        directory = tmp_path / name
        _say_beside(packed(name)[0], directory, {**said, "exclude_modules": ["lm_head"]})
        tensors = Checkpoint(directory).tensors
        for weight, values in load_file(packed(name)[1] / "model.safetensors").items():
            if values.ndim == 2:
                assert (np.concatenate(list(tensors.rows(weight))) == values).all(), weight
    assert _error(directory, packed(name)[1], tmp_path, "fp32") <= 1e-4


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("quant_algo", "W4A16_AWQ"),
        ("pre_quant_scale", True),
        ("has_zero_point", True),
        ("group_size", 32),
        ("kv_cache_quant_algo", "NVFP4"),
        ("quantized_layers", {}),
    ],
)
def test_so_is_what_cannot_be_taken(
    packed: Callable[[str], tuple[Path, Path]], tmp_path: Path, key: str, value: object
) -> None:
    said = {"quant_algo": "NVFP4", "group_size": 16, key: value}
    _say_beside(packed("modelopt nvfp4")[0], tmp_path / "checkpoint", said)
    with pytest.raises(CheckpointError, match=rf"hf_quant_config\.json: quantization: {key}"):
        Checkpoint(tmp_path / "checkpoint")


def _say_beside(packed: Path, directory: Path, said: Mapping[str, object]) -> None:
    shutil.copytree(packed, directory)
    config = json.loads((directory / "config.json").read_text())
    del config["quantization_config"]
    (directory / "config.json").write_text(json.dumps(config))
    document = {"producer": {"name": "modelopt", "version": "0.21.0"}, "quantization": said}
    (directory / "hf_quant_config.json").write_text(json.dumps(document))


def test_the_oldest_words_in_config_json_name_no_method(tmp_path: Path) -> None:
    directory = write_qwen3(tmp_path / "checkpoint")
    config = json.loads((directory / "config.json").read_text())
    said = {"quant_library": "modelopt", "quant_algo": "FP8", "kv_cache_scheme": "FP8"}
    config["quantization_config"] = said
    (directory / "config.json").write_text(json.dumps(config))
    packing = Checkpoint(directory).packing
    assert packing is not None
    assert packing.label == "modelopt, 8-bit floats (FP8)"


@pytest.mark.parametrize(
    ("name", "tensor", "value", "said"),
    [
        ("modelopt nvfp4", "up_proj.pre_quant_scale", np.ones(128, np.float32), "scaled first"),
        ("modelopt nvfp4", "up_proj.weight_scale_2", np.ones(2, np.float32), "not one element"),
        ("modelopt nvfp4", "up_proj.weight_scale", np.ones((192, 8), np.float32), "not F8_E4M3"),
        ("modelopt nvfp4", "up_proj.weight_scale_2", np.float32(1e38), "not finite"),
        ("modelopt nvfp4", "k_proj.k_bias", np.zeros(1, np.float32), "no place in the graph"),
        ("modelopt fp8", "up_proj.weight_scale", np.ones(3, np.float32), "has the shape"),
        ("compressed nvfp4", "up_proj.weight_global_scale", np.zeros(1, np.float32), "not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    packed: Callable[[str], tuple[Path, Path]],
    tmp_path: Path,
    name: str,
    tensor: str,
    value: Any,
    said: str,
) -> None:
    copy = tmp_path / "checkpoint"
    shutil.copytree(packed(name)[0], copy)
    weights = load_torch(copy / "model.safetensors")
    block = "self_attn" if "k_proj" in tensor else "mlp"
    weights[f"model.layers.1.{block}.{tensor}"] = torch.tensor(value)
    save_torch(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"layers.1.{block}.{tensor[:6]}.*{said}"):
        build_unsigned(copy, tmp_path / "bundle", precision="int8")


def test_scales_of_a_cache_are_passed_over_beside_a_plain_matrix(
    packed: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    copy = tmp_path / "checkpoint"
    directory, twin = packed("modelopt fp8")
    shutil.copytree(directory, copy)
    weights, meant = (load_torch(d / "model.safetensors") for d in (directory, twin))
    stem = "model.layers.0.self_attn.k_proj"
    del weights[f"{stem}.weight_scale"], weights[f"{stem}.input_scale"]
    weights[f"{stem}.weight"] = meant[f"{stem}.weight"]
    save_torch(weights, copy / "model.safetensors", {"format": "pt"})
    assert _error(copy, twin, tmp_path, "fp32") <= 1e-4


def test_integers_in_activation_order_serve_the_graph_for_cuda(
    packed: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    directory, twin = packed("gptq 4 bits, activation order")
    build_unsigned(directory, tmp_path / "bundle", precision="int4")
    model = Built(directory, tmp_path / "bundle")
    graph = model.manifest.variant("cuda")
    assert graph is not None
    weights = model.bundle / graph.weights_folder
    runner = SlotRunner(model.bundle / graph.path, model.spec, capacity=64, weights=weights)
    wanted = ReferenceDecoder(twin).logits(TOKENS)[-1]
    assert relative_error(runner.prefill(0, TOKENS), wanted) <= 0.03


@pytest.mark.skipif(not library.supported(), reason="this processor lacks the native operators")
@pytest.mark.parametrize(
    "name", ["gptq 4 bits, activation order", "gptq 4 bits, whole rows", "awq"]
)
def test_native_operators_compute_with_the_same_integers(
    packed: Callable[[str], tuple[Path, Path]], tmp_path: Path, name: str
) -> None:
    directory, twin = packed(name)
    build_unsigned(directory, tmp_path / "bundle", precision="w4a8")
    model = Built(directory, tmp_path / "bundle")
    reference = _with_rounded_tables(twin, tmp_path / "reference")
    wanted = RoundingReference(reference, model.graph).logits(TOKENS)
    assert distance(Natively(model).run(TOKENS), wanted) <= 2 * OTHER_WAY


@pytest.mark.parametrize("name", FLOATS)
def test_a_grade_of_8_bit_floats_keeps_the_floats(
    packed: Callable[[str], tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # Runs of a few rows, so that squares are cut.
    monkeypatch.setattr("installer.checkpoint.tensors._PIECE_BYTES", 5 * 128)
    directory, twin = packed(name)
    tensors = Checkpoint(directory).tensors
    for weight, values in load_file(twin / "model.safetensors").items():
        shared = tensors.shared_scale(weight)
        assert (shared is not None) == ("proj" in weight)
        assert tensors.keeps_plain(weight) == (shared is None)
        if shared is None:
            continue
        run = float_run(values.shape[1], shared)
        assert run is not None
        pieces = list(tensors.float_rows(weight, run))
        assert len(pieces) > 1
        scales = np.concatenate([piece.scales for piece in pieces])
        floats = np.concatenate([piece.values for piece in pieces]).view(ml_dtypes.float8_e4m3fn)
        assert (floats.astype(np.float32) * scales.repeat(run, 1) == values).all(), weight


@pytest.mark.parametrize("name", FLOATS)
def test_kept_floats_compute_what_the_reference_does_in_every_graph(
    packed: Callable[[str], tuple[Path, Path]], tmp_path: Path, name: str
) -> None:
    directory, twin = packed(name)
    build_unsigned(directory, tmp_path / "bundle", precision="fp8")
    model = Built(directory, tmp_path / "bundle")
    graphs = model.manifest.graphs
    assert [(graph.variant, graph.precision) for graph in graphs] == [
        ("cpu", "fp8"),
        ("cuda", "fp16"),
        ("cuda", "fp8"),
        ("trt", "fp16"),
    ]
    wanted = ReferenceDecoder(_with_halves(twin, tmp_path / "reference")).logits(TOKENS)[-1]
    for graph in graphs:
        weights = model.bundle / graph.weights_folder
        runner = SlotRunner(model.bundle / graph.path, model.spec, capacity=64, weights=weights)
        bound = 1e-4 if graph.variant == "cpu" else 0.01
        assert relative_error(runner.prefill(0, TOKENS), wanted) <= bound, graph


def test_ministral_3_is_built_from_8_bit_floats_as_it_is_published(tmp_path: Path) -> None:
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    WRITERS["mistral3-ministral3"](plain)
    twin = write_packed(plain, packed, Fp8Whole())
    build_unsigned(packed, tmp_path / "bundle", precision="fp32")
    model = Built(packed, tmp_path / "bundle")
    wanted = ReferenceDecoder(twin).logits(TOKENS)[-1]
    logits = SlotRunner(model.graph, model.spec, capacity=64).prefill(0, TOKENS)
    assert relative_error(logits, wanted) <= 1e-4


def test_what_a_publisher_left_plain_stays_so(
    packed: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    directory, twin = packed("fp8")
    plain = "model.layers.1.mlp.down_proj"
    copy = tmp_path / "checkpoint"
    shutil.copytree(directory, copy)
    weights = load_torch(copy / "model.safetensors")
    del weights[f"{plain}.weight_scale_inv"]
    meant = load_torch(twin / "model.safetensors")[f"{plain}.weight"]
    weights[f"{plain}.weight"] = meant.to(torch.bfloat16)
    save_torch(weights, copy / "model.safetensors", {"format": "pt"})
    build_unsigned(copy, tmp_path / "bundle", precision="fp8")
    graph = ir.load(tmp_path / "bundle/graph/cuda/compact.onnx").graph
    stored = {name: value.dtype for name, value in graph.initializers.items()}
    kinds = [ir.DataType.FLOAT16, ir.DataType.FLOAT8E4M3FN]
    assert [stored.get(f"{plain}.{how}") for how in ("transposed", "values")] == [kinds[0], None]
    other = plain.replace("1", "0")
    assert [stored.get(f"{other}.{how}") for how in ("transposed", "values")] == [None, kinds[1]]


def test_floats_beyond_16_bits_are_refused_by_name(
    packed: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    copy = tmp_path / "checkpoint"
    shutil.copytree(packed("fp8")[0], copy)
    weights = load_torch(copy / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight_scale_inv"][1, 2] = 300.0
    save_torch(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj") as refusal:
        build_unsigned(copy, tmp_path / "bundle", precision="fp8")
    assert "fp32" in (refusal.value.hint or "")


@pytest.mark.parametrize("name", ["gptq 4 bits", "fp8"])
def test_the_default_grade_rounds_what_is_meant(
    packed: Callable[[str], tuple[Path, Path]], tmp_path: Path, name: str
) -> None:
    directory, twin = packed(name)
    for source in (directory, twin):
        build_unsigned(source, tmp_path / source.name, precision="w8a8")
    weights = [(tmp_path / source.name).rglob("weights-*.bin") for source in (directory, twin)]
    one, other = ([path.read_bytes() for path in sorted(paths)] for paths in weights)
    assert one == other


def _with_rounded_tables(checkpoint: Path, target: Path) -> Path:
    """A copy whose embedding and output tables have 8 bits, which they have in int4."""
    shutil.copytree(checkpoint, target)
    weights: dict[str, Any] = load_file(target / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        width = weights[name].shape[1]
        weights[name] = dequantize(quantize(weights[name], 8, table_block(width)), 8, width)
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    return target


def _with_halves(checkpoint: Path, target: Path) -> Path:
    """A copy whose embedding and output tables have 16 bits."""
    shutil.copytree(checkpoint, target)
    weights = load_file(target / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name].astype(np.float16).astype(np.float32)
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    return target


def _error(directory: Path, twin: Path, tmp_path: Path, precision: Precision) -> float:
    build_unsigned(directory, tmp_path / "bundle", precision=precision)
    model = Built(directory, tmp_path / "bundle")
    runner = SlotRunner(model.graph, model.spec, capacity=64)
    return relative_error(runner.prefill(0, TOKENS), ReferenceDecoder(twin).logits(TOKENS)[-1])


@pytest.mark.parametrize(
    ("name", "precision", "said"),
    [
        ("gptq 4 bits", "int4", "the same integers"),
        ("gptq 4 bits", "w8a8", "--precision int4"),
        ("compressed 8 bits, whole rows", "int8", "the same integers"),
        ("fp8", "fp16", "what they mean"),
        ("fp8", "int4", "--precision fp8"),
        ("compressed fp8, one scale", "fp8", "the same floats"),
        ("gptq 4 bits", "fp8", "rounds them again; --precision int4"),
        ("modelopt fp8", "fp8", "the same floats"),
        ("modelopt nvfp4", "int8", "the same integers"),
        ("compressed nvfp4", "w8a8", "rounds them again; --precision int8"),
    ],
)
def test_the_packager_is_told_what_a_grade_does_to_them(
    packed: Callable[[str], tuple[Path, Path]], name: str, precision: Precision, said: str
) -> None:
    method = Checkpoint(packed(name)[0]).packing
    assert method is not None
    assert said in treatment(method, precision, tuple(SCHEMES))


def test_no_grade_is_named_that_the_model_is_not_built_in(
    packed: Callable[[str], tuple[Path, Path]],
) -> None:
    method = Checkpoint(packed("fp8")[0]).packing
    assert method is not None
    said = treatment(method, "w8a8", FAMILIES["deepseek_v3"].precisions)
    assert said.endswith("w8a8 rounds them again")


GPTQ = INTEGERS["gptq 4 bits, asymmetric"]


@pytest.mark.parametrize(
    ("packer", "key", "value"),
    [
        (GPTQ, "quant_method", "bitsandbytes"),
        (GPTQ, "bits", 3),
        (GPTQ, "checkpoint_format", "marlin"),
        (GPTQ, "lm_head", True),
        (GPTQ, "dynamic", {"-:.*down.*": {}}),
        (GPTQ, "group_size", 0),
        (INTEGERS["awq"], "version", "gemv"),
        (INTEGERS["awq"], "zero_point", False),
        (FLOATS["fp8"], "activation_scheme", "static"),
        (FLOATS["fp8"], "weight_block_size", None),
        (FLOATS["fp8"], "fmt", "e5m2"),
        (FLOATS["fp8, a scale a matrix"], "activation_scheme", "none"),
        (INTEGERS["compressed 4 bits"], "format", "marlin-24"),
        (INTEGERS["compressed 4 bits"], "kv_cache_scheme", {"num_bits": 8}),
        (INTEGERS["compressed 4 bits"], "config_groups", {}),
        (FLOATS["modelopt fp8"], "quant_algo", "MIXED_PRECISION"),
        (FLOATS["modelopt fp8"], "quant_algo", "W4A8_AWQ"),
        (FLOATS["modelopt fp8"], "kv_cache_scheme", {"num_bits": 4, "type": "float"}),
        (FLOATS["modelopt fp8"], "quantized_layers", {"model.layers.0": {}}),
        (FOUR_BITS["modelopt nvfp4"], "group_size", 32),
        (
            FOUR_BITS["modelopt nvfp4"],
            "config_groups",
            FLOATS["modelopt fp8"].config["config_groups"],
        ),
    ],
)
def test_what_cannot_be_taken_is_refused_by_its_key(
    tmp_path: Path, packer: Packer, key: str, value: object
) -> None:
    directory = write_qwen3(tmp_path / "checkpoint")
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = {**packer.config, key: value}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"quantization_config.*{key}"):
        Checkpoint(directory)


def test_zero_points_that_format_1_spoilt_are_refused(tmp_path: Path) -> None:
    plain = write_llama(tmp_path / "plain", hidden=64)
    write_packed(plain, tmp_path / "packed", GPTQ)
    file = tmp_path / "packed/model.safetensors"
    weights: dict[str, Any] = load_file(file)
    weights["model.layers.1.self_attn.k_proj.qzeros"][0, 0] |= 0xF0
    save_file(weights, file)
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.k_proj\.qzeros"):
        build_unsigned(tmp_path / "packed", tmp_path / "out", precision="int4")


def test_an_eight_bit_float_that_is_no_number_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "packed"
    write_packed(write_llama(tmp_path / "plain", hidden=64), directory, FLOATS["fp8"])
    file, name = directory / "model.safetensors", "model.layers.0.mlp.up_proj.weight"
    data = bytearray(file.read_bytes())
    length = int.from_bytes(data[:8], "little")
    begin = json.loads(data[8 : 8 + length])[name]["data_offsets"][0]
    data[8 + length + begin + 70] = 0x7F
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=f"{name} has values that are not finite"):
        build_unsigned(directory, tmp_path / "out", precision="int4")


def test_packed_tensors_without_a_config_find_no_place(tmp_path: Path) -> None:
    directory = tmp_path / "packed"
    write_packed(write_llama(tmp_path / "plain", hidden=64), directory, FLOATS["fp8"])
    config = json.loads((directory / "config.json").read_text())
    del config["quantization_config"]
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="element type F8_E4M3"):
        build_unsigned(directory, tmp_path / "out", precision="int4")


@pytest.mark.parametrize("name", ["modelopt nvfp4", "modelopt fp8"])
def test_experts_compute_what_their_floats_mean(tmp_path: Path, name: str) -> None:
    plain = WRITERS["qwen3-moe"](tmp_path / "plain")
    twin = write_packed(plain, tmp_path / "packed", PACKERS[name])
    assert _error(tmp_path / "packed", twin, tmp_path, "fp32") <= 1e-4


def test_experts_of_4_bit_floats_are_kept_in_8_bits(tmp_path: Path) -> None:
    plain = WRITERS["qwen3-moe"](tmp_path / "plain")
    twin = write_packed(plain, tmp_path / "packed", FOUR_BITS["modelopt nvfp4"])
    build_unsigned(tmp_path / "packed", tmp_path / "bundle", precision="int8")
    graph = ir.load(tmp_path / "bundle/graph/cpu/model.onnx").graph
    blocks = {node.attributes["block_size"].as_int() for node in graph if node.op_type == "QMoE"}
    assert blocks == {16}
    reference = _with_rounded_tables(twin, tmp_path / "reference")
    wanted = ReferenceDecoder(reference).logits(TOKENS)[-1]
    model = Built(tmp_path / "packed", tmp_path / "bundle")
    runner = SlotRunner(model.graph, model.spec, capacity=64, prepack=False)
    assert relative_error(runner.prefill(0, TOKENS), wanted) <= 0.02

"""DeepSeek-V4 beyond the parity table: its published config and layout, where texts can be cut,
what an index changes, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from appliance.errors import CheckpointError
from installer.checkpoint.families.deepseek_v4_shape import CompressedShape
from installer.checkpoint.families.which_family import family_of
from installer.checkpoint.plan import make_plan
from installer.checkpoint.quantize import Precision, dequantize
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.shallow import cut
from tests.checkpoint.conftest import BuildBundle, Built, OpenConfig, build_unsigned
from tests.checkpoint.families.deepseek_v4 import DEEPSEEK_V4
from tests.checkpoint.reference import ReferenceDecoder
from tests.checkpoint.runner import SlotRunner, relative_error
from tests.checkpoint.test_refusals import edit_json
from tests.conftest import BuildOnce
from tests.fakes.packers import DeepSeekV4, write_packed

TOKENS = np.random.default_rng(47).integers(0, 480, 300).tolist()
_INTERLEAVED = [128 if at % 2 else 4 for at in range(41)]
FLASH: Mapping[str, Any] = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "compress_ratios": [0, 0, *_INTERLEAVED, 0],
    "compress_rope_theta": 160_000,
    "eos_token_id": 1,
    "expert_dtype": "fp4",
    "hc_eps": 1e-06,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "head_dim": 512,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "index_head_dim": 128,
    "index_n_heads": 64,
    "index_topk": 512,
    "initializer_range": 0.02,
    "max_position_embeddings": 1_048_576,
    "model_type": "deepseek_v4",
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 64,
    "num_experts_per_tok": 6,
    "num_hash_layers": 3,
    "num_hidden_layers": 43,
    "num_key_value_heads": 1,
    "num_nextn_predict_layers": 1,
    "o_groups": 8,
    "o_lora_rank": 1024,
    "q_lora_rank": 1024,
    "qk_rope_head_dim": 64,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "scale_fmt": "ue8m0",
        "weight_block_size": [128, 128],
    },
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 16,
        "original_max_position_embeddings": 65_536,
        "type": "yarn",
    },
    "rope_theta": 10_000,
    "routed_scaling_factor": 1.5,
    "scoring_func": "sqrtsoftplus",
    "sliding_window": 128,
    "swiglu_limit": 10.0,
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 129_280,
}
"""As public source has it, for the published one was not at hand."""
DRAFTING: Mapping[str, Any] = {
    **FLASH,
    "compress_ratios": [*FLASH["compress_ratios"], 0, 0],
    "dspark_block_size": 5,
    "dspark_markov_rank": 256,
    "dspark_noise_token_id": 128_799,
    "dspark_target_layer_ids": [40, 41, 42],
}
"""Of a later release, whose last layers guess in another way."""


def read(open_config: OpenConfig, config: Mapping[str, Any]) -> CompressedShape:
    checkpoint = open_config(config)
    shape = family_of(checkpoint).read(checkpoint)
    assert isinstance(shape, CompressedShape)
    return shape


def test_a_config_in_the_publishers_words_is_understood(open_config: OpenConfig) -> None:
    shape = read(open_config, FLASH)
    assert [shape.kinds.count(kind) for kind in ("sliding_attention", *shape.rates)] == [2, 21, 20]
    assert sorted(shape.rates.values()) == [4, 128]
    assert shape.hashed == {0, 1, 2}
    main, compressed = shape.decoder.kinds[0].rope, shape.decoder.kinds[2].rope
    assert main.turned == compressed.turned == 64
    assert main.frequencies[1] > compressed.frequencies[1]
    assert compressed.magnitude == 1, "the reference sharpens nothing"
    spec = shape.spec()
    assert spec.context_length == 1_048_576
    numbers = [2 * heads.kv_heads * heads.head_dim for heads in spec.layer_heads]
    assert numbers[:4] == [512, 512, 3072, 1536], "of a token, what the decision reckons with"


def test_how_layers_guess_that_are_left_out_changes_nothing(open_config: OpenConfig) -> None:
    assert read(open_config, DRAFTING) == read(open_config, FLASH)


def test_both_ways_of_saying_it_mean_the_same(open_config: OpenConfig) -> None:
    flat = read(open_config, DEEPSEEK_V4)
    ropes = {
        "main": {"rope_type": "default", "rope_theta": 10_000, "partial_rotary_factor": 0.25},
        "compress": {
            **DEEPSEEK_V4["rope_scaling"],  # type: ignore[dict-item]
            "rope_theta": 160_000,
            "partial_rotary_factor": 0.25,
            "attention_factor": 1.0,
        },
    }
    kinds = ["sliding_attention", "compressed_sparse_attention"]
    kinds += ["heavily_compressed_attention", "compressed_sparse_attention"]
    said = {
        **DEEPSEEK_V4,
        "compress_ratios": None,
        "layer_types": kinds,
        "mlp_layer_types": ["hash_moe", "hash_moe", "moe", "moe"],
        "num_hash_layers": None,
        "partial_rotary_factor": 0.25,
        "qk_rope_head_dim": None,
        "rope_parameters": ropes,
        "rope_scaling": None,
    }
    assert read(open_config, said) == flat


def test_the_first_layers_have_every_kind(open_config: OpenConfig) -> None:
    shallow = cut(dict(FLASH))
    assert shallow is not None
    shape = read(open_config, shallow.config)
    assert shallow.layers == shape.layers == 4
    assert len(set(shape.kinds)) == 3
    assert shape.hashed == {0, 1, 2}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"compress_ratios": [0, 4, 8, 4]}, "ratio 8"),
        ({"compress_ratios": [0, 4]}, "name 2 layers"),
        ({"mlp_layer_types": ["moe"]}, "mlp_layer_types"),
        ({"compress_rates": {"compressed_sparse_attention": 1}}, "compress_rates"),
        ({"scoring_func": "sigmoid"}, "scoring_func"),
        ({"n_shared_experts": 2}, "n_shared_experts"),
        ({"norm_topk_prob": False}, "norm_topk_prob"),
        ({"o_groups": 3}, "o_groups"),
        ({"qk_rope_head_dim": 48}, "cannot turn"),
        ({"num_experts_per_tok": 9}, "cannot be chosen"),
        ({"engram_layer_ids": [1]}, "engram_layer_ids"),
    ],
)
def test_what_the_reference_would_not_compute_is_refused_by_name(
    open_config: OpenConfig, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(CheckpointError, match=named) as caught:
        read(open_config, DEEPSEEK_V4 | change)
    assert caught.value.hint


@pytest.mark.parametrize("precision", ["w8a8", "w4a8", "fp8", "fp16"])
def test_a_cache_of_fewer_bits_and_graphs_for_a_gpu_are_refused(
    built: BuildBundle, precision: Precision
) -> None:
    checkpoint = Checkpoint(built("deepseek-v4", "fp32").checkpoint)
    with pytest.raises(CheckpointError, match=f"not built in {precision}") as caught:
        make_plan(checkpoint, precision, None, 10**9, None)
    assert "int8, int4, fp32" in caught.value.hint


@pytest.mark.parametrize("fault", ["twice", "beyond"])
def test_a_table_that_names_an_expert_twice_or_none_is_refused(
    built: BuildBundle, tmp_path: Path, fault: str
) -> None:
    shutil.copytree(built("deepseek-v4", "fp32").checkpoint, tmp_path / "odd")
    file = tmp_path / "odd" / "model.safetensors"
    weights = load_file(file)
    table = weights["model.layers.1.ffn.gate.tid2eid"]
    table[77, 0] = table[77, 1] if fault == "twice" else 8
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match="tid2eid does not name 3 of 8 experts"):
        build_unsigned(tmp_path / "odd", tmp_path / "bundle", precision="fp32")


def test_layers_that_predict_further_tokens_are_left_out(
    built: BuildBundle, tmp_path: Path
) -> None:
    plain = built("deepseek-v4", "fp32")
    shutil.copytree(plain.checkpoint, tmp_path / "more")
    file = tmp_path / "more" / "model.safetensors"
    weights = load_file(file)
    weights["mtp.0.attn.wq_a.weight"] = weights["model.layers.0.attn.wq_a.weight"].clone()
    save_file(weights, file, {"format": "pt"})
    build_unsigned(tmp_path / "more", tmp_path / "bundle", precision="fp32")
    assert Built(tmp_path / "more", tmp_path / "bundle").graph.read_bytes() == (
        plain.graph.read_bytes()
    )


@pytest.fixture(scope="module")
def short(build_once: BuildOnce, built: BuildBundle) -> Built:
    return built("deepseek-v4-short", "fp32")


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(1, 60), max_size=8), kept=st.integers(0, 60))
def test_a_text_can_be_cut_and_gone_on_with_behind_any_token(
    short: Built, cuts: list[int], kept: int
) -> None:
    """Windows of 3 and 12 tokens: pieces begin and end anywhere in them, and so do prefixes."""
    text, other = TOKENS[:61], TOKENS[61:122]
    runner = SlotRunner(short.graph, short.spec, slots=2, capacity=64)
    whole = runner.prefill(0, text)
    runner.prefill(1, other)
    runner.copy(0, 1, kept)
    at = kept
    for end in [*sorted(point for point in set(cuts) if point > kept), len(text)]:
        logits = runner.prefill(1, text[at:end])
        at = end
    assert relative_error(logits, whole) < 1e-5


def test_what_stood_in_a_slot_before_changes_nothing(short: Built) -> None:
    clean = SlotRunner(short.graph, short.spec, slots=2, capacity=64)
    used = SlotRunner(short.graph, short.spec, slots=2, capacity=64)
    used.fill(np.nan)
    for runner in (clean, used):
        for slot, count in enumerate((3, 20)):
            runner.prefill(slot, TOKENS[:count])
    for token in TOKENS[200:220]:
        assert np.array_equal(clean.decode([token, token]), used.decode([token, token]))


def test_windows_that_close_while_rows_decode_are_read(built: BuildBundle) -> None:
    model = built("deepseek-v4", "fp32")
    reference = ReferenceDecoder(model.checkpoint)
    runner = SlotRunner(model.graph, model.spec, slots=2, capacity=160)
    texts = [TOKENS[:125], TOKENS[130:140]]
    for slot, text in enumerate(texts):
        runner.prefill(slot, text)
    for token in TOKENS[200:206]:  # the first row's window of 128 closes at the third
        texts = [[*text, token] for text in texts]
        logits = runner.decode([token, token])
        for got, text in zip(logits, texts, strict=True):
            assert relative_error(got, reference.logits(text)[-1]) < 1e-4


def test_an_index_that_finds_all_says_something_else(built: BuildBundle, tmp_path: Path) -> None:
    model = built("deepseek-v4", "fp32")
    shutil.copytree(model.checkpoint, tmp_path / "all")
    edit_json(tmp_path / "all" / "config.json", lambda config: config.update(index_topk=75))
    build_unsigned(tmp_path / "all", tmp_path / "bundle", precision="fp32")
    everything = Built(tmp_path / "all", tmp_path / "bundle")
    both = [
        SlotRunner(one.graph, one.spec, capacity=256).prefill(0, TOKENS[:200])
        for one in (model, everything)
    ]
    assert relative_error(*both) > 0.01


_PUBLISHED = {
    "model.embed_tokens.": "embed.",
    "model.hc_head.hc_": "hc_head_",
    ".attn.norm.": ".attn.kv_norm.",
    "model.": "",
}
"""What the reference writes otherwise than the publisher."""


def _as_published(folder: Path) -> None:
    weights = {}
    for name, values in load_file(folder / "model.safetensors").items():
        for written, published in _PUBLISHED.items():
            name = name.replace(written, published)
        weights[name] = values
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _is_packed(name: str) -> bool:
    """All matrices but what compresses and routes."""
    ends = (".wq_a.weight", ".wq_b.weight", ".wo_a.weight", ".wo_b.weight", ".attn.wkv.weight")
    return name.endswith(ends) or "experts." in name


@pytest.fixture(scope="module")
def packed(build_once: BuildOnce, built: BuildBundle) -> Path:
    """The checkpoint as it is published; beside it, what its numbers mean."""
    plain = built("deepseek-v4", "fp32").checkpoint

    def pack(directory: Path) -> None:
        twin = write_packed(plain, directory / "packed", DeepSeekV4(), is_packed=_is_packed)
        for folder in (directory / "packed", twin):
            _as_published(folder)
        edit_json(
            directory / "packed" / "config.json", lambda config: config.update(expert_dtype="fp4")
        )

    return build_once("deepseek-v4-published", pack) / "packed"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_eight_and_four_bit_floats_are_read_as_published(
    packed: Path, tmp_path: Path, precision: Precision
) -> None:
    build_unsigned(packed, tmp_path / "bundle", precision=precision)
    model = Built(packed, tmp_path / "bundle")
    runner = SlotRunner(model.graph, model.spec, capacity=256)
    wanted = ReferenceDecoder(packed.with_name("packed-twin")).logits(TOKENS[:150])[-1]
    bound = 1e-4 if precision == "fp32" else 0.1
    assert relative_error(runner.prefill(0, TOKENS[:150]), wanted) < bound


def test_integers_mean_what_four_bit_floats_do(packed: Path) -> None:
    tensors, name = Checkpoint(packed).tensors, "layers.1.ffn.experts.2.w2.weight"
    kept = tensors.kept(name, 8)
    assert kept is not None
    meant = np.concatenate(
        [dequantize(blocks, 8, tensors.shape(name)[1]) for blocks in kept.runs()]
    )
    twin = load_file(packed.with_name("packed-twin") / "model.safetensors")
    assert np.array_equal(meant, twin[name].numpy())


def _with_odd_scales(folder: Path, name: str, fault: str) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    scales = weights[name]
    if fault == "not a number":
        scales.view(torch.uint8)[0, 0] = 255
    else:
        weights[name] = scales[:-1].clone()
    save_file(weights, file, {"format": "pt"})


@pytest.mark.parametrize(
    ("name", "fault", "said"),
    [
        ("layers.0.ffn.experts.3.w1.scale", "not a number", "w1.scale has values that are not fin"),
        ("layers.0.ffn.experts.3.w1.scale", "too few", r"w1.weight \[32, 32\] and .* do not fit"),
        ("layers.2.attn.wkv.scale", "not a number", "wkv.scale has values that are not finite"),
        ("layers.2.attn.wkv.scale", "too few", "wkv.scale has the shape"),
    ],
)
def test_scales_that_mean_nothing_are_refused(
    packed: Path, tmp_path: Path, name: str, fault: str, said: str
) -> None:
    shutil.copytree(packed, tmp_path / "odd")
    _with_odd_scales(tmp_path / "odd", name, fault)
    with pytest.raises(CheckpointError, match=said):
        build_unsigned(tmp_path / "odd", tmp_path / "bundle", precision="int8")

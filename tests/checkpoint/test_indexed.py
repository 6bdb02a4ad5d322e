"""Attention by an index beyond the parity table: what it changes, as published, what it refuses."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from appliance.errors import CheckpointError
from installer.checkpoint.families.which_family import family_of
from installer.checkpoint.graph.blocks import Blocks
from installer.checkpoint.graph.experts import Mixture
from installer.checkpoint.graph.latent import Latent
from installer.checkpoint.graph.lightning import Lightning
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.shallow import cut
from tests.checkpoint.byte_runner import Bytes, distance
from tests.checkpoint.conftest import BuildBundle, Built, OpenConfig, build_unsigned
from tests.checkpoint.reference import ReferenceDecoder
from tests.checkpoint.runner import SlotRunner, relative_error
from tests.checkpoint.test_experts import rows
from tests.checkpoint.test_published_routed import DEEPSEEK_R1, routed
from tests.checkpoint.test_refusals import edit_json
from tests.fakes.packers import Fp8, write_packed

TOKENS = np.random.default_rng(43).integers(0, 480, 90).tolist()
CHOSEN = 24
"""Tokens that a query reads in the tests' models."""
NAMES = ["deepseek-v32", "glm-5", "minimax-m3"]
DEEPSEEK_V32 = DEEPSEEK_R1 | {
    "architectures": ["DeepseekV32ForCausalLM"],
    "index_head_dim": 128,
    "index_n_heads": 64,
    "index_topk": 2048,
    "model_type": "deepseek_v32",
    "quantization_config": DEEPSEEK_R1["quantization_config"] | {"scale_fmt": "ue8m0"},
    "use_cache": True,
}
GLM_5 = DEEPSEEK_V32 | {
    "architectures": ["GlmMoeDsaForCausalLM"],
    "aux_loss_alpha": None,
    "eos_token_id": [154_820, 154_827, 154_829],
    "head_dim": 64,
    "hidden_size": 6144,
    "index_n_heads": 32,
    "indexer_rope_interleave": True,
    "intermediate_size": 12_288,
    "kv_lora_rank": 512,
    "max_position_embeddings": 202_752,
    "model_type": "glm_moe_dsa",
    "n_group": 1,
    "num_attention_heads": 64,
    "num_hidden_layers": 78,
    "num_key_value_heads": 64,
    "q_lora_rank": 2048,
    "qk_head_dim": 256,
    "qk_nope_head_dim": 192,
    "quantization_config": None,
    "rms_norm_eps": 1e-5,
    "rope_interleave": True,
    "rope_parameters": {"rope_theta": 1_000_000, "rope_type": "default"},
    "rope_scaling": None,
    "rope_theta": None,
    "seq_aux": None,
    "topk_group": 1,
    "v_head_dim": 256,
    "vocab_size": 154_880,
}
GLM_52 = GLM_5 | {
    "head_dim": 192,
    "index_share_for_mtp_iteration": True,
    "index_skip_topk_offset": 3,
    "index_topk_freq": 4,
    "layer_types": ["deepseek_sparse_attention"] * 78,
    "max_position_embeddings": 1_048_576,
    "mlp_layer_types": ["dense"] * 3 + ["sparse"] * 75,
    "rope_parameters": {"rope_theta": 8_000_000, "rope_type": "default"},
}
V32 = Latent(queries=1536, rank=512, turned=64, plain=128, values=128, index=128)
GLM = Latent(queries=2048, rank=512, turned=64, plain=192, values=256, index=128)
SHARED = frozenset(range(3, 78)) - frozenset(range(6, 78, 4))
PUBLISHED: Mapping[str, tuple[dict[str, Any], Latent, Lightning]] = {
    "DeepSeek-V3.2": (DEEPSEEK_V32, V32, Lightning(64, 128, 2048, interleaved=False)),
    "GLM-5": (GLM_5, GLM, Lightning(32, 128, 2048, interleaved=True)),
    "GLM-5.2": (GLM_52, GLM, Lightning(32, 128, 2048, interleaved=True, shared=SHARED)),
}

_WITH_INDEX = [0] * 3 + [1] * 57
MINIMAX_M3: Mapping[str, Any] = {
    "architectures": ["MiniMaxM3SparseForConditionalGeneration"],
    "image_grid_pinpoints": "[(336, 336)]",
    "image_seq_length": 576,
    "image_token_index": 200_025,
    "img_token_compression_config": {"image_token_compression_method": "patch_merge"},
    "model_type": "minimax_m3_vl",
    "multimodal_projector_bias": True,
    "num_reward_heads": 0,
    "process_image_mode": "dynamic_res",
    "projector_hidden_act": "gelu",
    "projector_hidden_size": 6144,
    "text_config": {
        "architectures": ["MiniMaxM3SparseForCausalLM"],
        "attention_output_gate": False,
        "dense_intermediate_size": 12_288,
        "head_dim": 128,
        "hidden_act": "swigluoai",
        "hidden_size": 6144,
        "intermediate_size": 3072,
        "max_position_embeddings": 1_048_576,
        "moe_layer_freq": _WITH_INDEX,
        "n_shared_experts": 1,
        "num_attention_heads": 64,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 60,
        "num_key_value_heads": 4,
        "num_local_experts": 128,
        "num_mtp_modules": 7,
        "num_nextn_predict_layers": 1,
        "partial_rotary_factor": 0.5,
        "qk_norm_type": "per_head",
        "rms_norm_eps": 1e-6,
        "rope_theta": 5_000_000,
        "rotary_dim": 64,
        "routed_scaling_factor": 2.0,
        "scoring_func": "sigmoid",
        "shared_intermediate_size": 3072,
        "sparse_attention_config": {
            "sparse_attention_freq": _WITH_INDEX,
            "sparse_block_size": 128,
            "sparse_disable_index_value": _WITH_INDEX,
            "sparse_index_dim": 128,
            "sparse_init_block": 0,
            "sparse_local_block": 1,
            "sparse_num_index_heads": 4,
            "sparse_score_type": "max",
            "sparse_topk_blocks": 16,
            "use_sparse_attention": True,
        },
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "use_gemma_norm": True,
        "use_qk_norm": True,
        "use_routing_bias": True,
        "vocab_size": 200_064,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.52.4",
    "video_token_index": 200_026,
    "vision_config": {"hidden_size": 1280, "model_type": "clip_vision_model"},
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
}
"""Without `auto_map`, which packagers take out."""


def test_minimax_m3_is_understood_as_published(open_config: OpenConfig) -> None:
    checkpoint = open_config(dict(MINIMAX_M3))
    shape = family_of(checkpoint).read(checkpoint)
    assert shape.index == Blocks(heads=4, width=128, size=128, chosen=16, near=1)
    assert shape.indexed == frozenset(range(3, 60))
    assert (shape.spec().kv_heads, shape.spec().head_dim, shape.head_dim) == (4, 144, 128)
    assert shape.decoder.mixture == Mixture(
        *(128, 4, 3072), alpha=1.702, beta=1.0, limit=7.0, dense=frozenset(range(3)), shared=3072
    )
    assert (shape.dense_inner, shape.factor) == (12_288, 2.0)
    assert shape.decoder.scale == 128**-0.5
    assert {kind.rope.turned for kind in shape.decoder.kinds} == {64}
    assert shape.context == 1_048_576


def test_the_first_layers_of_minimax_m3_have_one_of_each_kind() -> None:
    shallow = cut(dict(MINIMAX_M3))
    assert shallow is not None
    text: Any = shallow.config["text_config"]
    assert shallow.layers == text["num_hidden_layers"] == 4
    assert text["moe_layer_freq"] == [0, 0, 0, 1]
    assert text["sparse_attention_config"]["sparse_attention_freq"] == [0, 0, 0, 1]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_understood(open_config: OpenConfig, name: str) -> None:
    document, latent, index = PUBLISHED[name]
    checkpoint = open_config(document)
    shape = family_of(checkpoint).read(checkpoint)
    assert (shape.latent, shape.index) == (latent, index)
    groups = {"groups": 8, "best": 4} if name == "DeepSeek-V3.2" else {}
    expected = routed(256, 8, 2048, first=3, factor=2.5, further=1, **groups)
    assert shape.decoder.mixture == expected
    assert (shape.spec().kv_heads, shape.spec().head_dim) == (1, 512 + 128)
    assert shape.context == document["max_position_embeddings"]


def find_all(config: dict[str, Any]) -> None:
    """Have an index find more than a text of TOKENS has."""
    if "text_config" in config:
        config["text_config"]["index_topk_blocks"] = len(TOKENS)
    else:
        config["index_topk"] = len(TOKENS)


@pytest.mark.parametrize("name", NAMES)
def test_all_tokens_are_read_up_to_as_many_as_are_chosen_and_fewer_beyond(
    built: BuildBundle, tmp_path: Path, name: str
) -> None:
    model = built(name, "fp32")
    whole = tmp_path / "whole"
    shutil.copytree(model.checkpoint, whole)
    edit_json(whole / "config.json", find_all)
    build_unsigned(whole, tmp_path / "bundle", precision="fp32")
    all_read, some_read = (
        rows(SlotRunner(one.graph, one.spec, capacity=128), TOKENS)
        for one in (Built(whole, tmp_path / "bundle"), model)
    )
    assert relative_error(some_read[:CHOSEN], all_read[:CHOSEN]) <= 1e-5
    assert relative_error(some_read[CHOSEN:], all_read[CHOSEN:]) > 0.05
    assert relative_error(all_read, ReferenceDecoder(whole).logits(TOKENS)) <= 1e-4


@pytest.mark.parametrize(
    "name", ["deepseek-v32", pytest.param("glm-5", marks=pytest.mark.slow), "minimax-m3"]
)
def test_rows_of_different_lengths_find_what_they_find_alone(built: BuildBundle, name: str) -> None:
    model = built(name, "w8a8")
    starts, counts = (40, 5, 0, 71), (3, 1, 4, 2)
    alone, together = Bytes(model, slots=4), Bytes(model, slots=4)
    for slot, start in enumerate(starts):
        if start:
            together.prefill(TOKENS[:start], slot=slot)
    pieces = [TOKENS[start : start + n] for start, n in zip(starts, counts, strict=True)]
    got = together.decode(starts, pieces)
    wanted = [
        alone.prefill(TOKENS[: start + n], rows=n) for start, n in zip(starts, counts, strict=True)
    ]
    assert distance(got, np.concatenate(wanted)) <= 0.02


def test_weights_in_squares_of_eight_bit_floats_are_read_as_published(
    built: BuildBundle, tmp_path: Path
) -> None:
    plain = built("deepseek-v32", "fp32").checkpoint
    twin = write_packed(plain, tmp_path / "packed", Fp8(16))
    stored = load_file(twin / "model.safetensors")
    packed = Checkpoint(tmp_path / "packed").tensors
    for part in ("wq_b", "wk"):
        name = f"model.layers.1.self_attn.indexer.{part}.weight"
        assert packed.stored_type(name) == "F8_E4M3"
        assert (np.concatenate(list(packed.rows(name))) == stored[name]).all()
    build_unsigned(tmp_path / "packed", tmp_path / "bundle", precision="fp32")
    model = Built(tmp_path / "packed", tmp_path / "bundle")
    got = SlotRunner(model.graph, model.spec, capacity=128).prefill(0, TOKENS)
    assert relative_error(got, ReferenceDecoder(twin).logits(TOKENS)[-1]) <= 1e-4


def test_an_index_that_no_layer_asks_is_left_out(built: BuildBundle, tmp_path: Path) -> None:
    model = built("glm-5", "int4")
    published = tmp_path / "published"
    shutil.copytree(model.checkpoint, published)
    weights = load_file(published / "model.safetensors")
    first, second = (f"model.layers.{layer}.self_attn.indexer." for layer in (0, 1))
    weights |= {n.replace(first, second): v for n, v in weights.items() if n.startswith(first)}
    save_file(weights, published / "model.safetensors", {"format": "pt"})
    build_unsigned(published, tmp_path / "bundle", precision="int4")
    for path in (tmp_path / "bundle/graph").rglob("*.*"):
        there = model.bundle / path.relative_to(tmp_path / "bundle")
        assert path.read_bytes() == there.read_bytes()


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("deepseek-v32", "index_topk", 0),
        ("deepseek-v32", "index_head_dim", 8),
        ("deepseek-v32", "index_head_dim", 40),
        ("deepseek-v32", "q_lora_rank", None),
        ("deepseek-v32", "layer_types", ["full_attention"] * 3),
        ("deepseek-v32", "mlp_layer_types", ["dense", "other", "sparse"]),
        ("deepseek-v32", "indexer_types", ["full"] * 3),
        ("deepseek-v32", "indexer_rope_interleave", True),
        ("deepseek-v32", "rope_interleave", False),
        ("glm-5", "indexer_rope_interleave", False),
        ("glm-5", "indexer_types", ["shared", "full", "full", "full"]),
        ("glm-5", "indexer_types", ["full"] * 3),
        ("glm-5", "index_topk_pattern", "FSFS"),
        ("glm-5", "index_kpool", 4),
    ],
)
def test_what_the_graph_cannot_express_is_refused_by_name(
    built: BuildBundle, tmp_path: Path, name: str, key: str, value: object
) -> None:
    shutil.copy(built(name, "fp32").checkpoint / "config.json", tmp_path)
    edit_json(tmp_path / "config.json", lambda c: c.update({key: value}))
    checkpoint = Checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=key):
        family_of(checkpoint).read(checkpoint)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("index_head_dim", 32),
        ("index_n_heads", 3),
        ("layer_types", ["full_attention"] * 3),
        ("layer_types", ["sliding_attention"] * 4),
        ("mlp_layer_types", ["dense"] * 3),
        ("qk_norm_type", "per_layer"),
        ("attention_output_gate", True),
        ("n_shared_experts", 2),
        ("index_init_blocks", 1),
    ],
)
def test_what_minimax_m3_cannot_express_is_refused_by_name(
    built: BuildBundle, tmp_path: Path, key: str, value: object
) -> None:
    shutil.copy(built("minimax-m3", "fp32").checkpoint / "config.json", tmp_path)
    edit_json(tmp_path / "config.json", lambda c: c["text_config"].update({key: value}))
    checkpoint = Checkpoint(tmp_path)
    said = {"index_head_dim": "an index of 2 heads of 32", "index_n_heads": "an index of 3 heads"}
    with pytest.raises(CheckpointError, match=said.get(key, key)):
        family_of(checkpoint).read(checkpoint)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sparse_init_block", 1),
        ("sparse_score_type", "mean"),
        ("use_sparse_attention", False),
        ("sparse_disable_index_value", [0] * 60),
        ("sparse_topk_tokens", 1),
    ],
)
def test_what_minimax_m3s_index_cannot_express_is_refused_by_name(
    open_config: OpenConfig, key: str, value: object
) -> None:
    document = copy.deepcopy(dict(MINIMAX_M3))
    document["text_config"]["sparse_attention_config"][key] = value
    checkpoint = open_config(document)
    with pytest.raises(CheckpointError, match=key):
        family_of(checkpoint).read(checkpoint)


def test_what_sees_and_what_predicts_further_tokens_is_left_out_of_minimax_m3(
    built: BuildBundle, tmp_path: Path
) -> None:
    model = built("minimax-m3", "int4")
    names = load_file(model.checkpoint / "model.safetensors").keys()
    assert any(name.startswith("vision_tower.") for name in names)
    published = tmp_path / "published"
    shutil.copytree(model.checkpoint, published)
    weights = load_file(published / "model.safetensors")
    weights |= {
        "language_model.model.mtp.layers.0.eh_proj.weight": np.ones((64, 128), np.float32),
        "patch_merge_mlp.linear_3.weight": np.ones((8, 8), np.float32),
    }
    save_file(weights, published / "model.safetensors", {"format": "pt"})
    build_unsigned(published, tmp_path / "bundle", precision="int4")
    for path in (tmp_path / "bundle/graph").rglob("*.*"):
        there = model.bundle / path.relative_to(tmp_path / "bundle")
        assert path.read_bytes() == there.read_bytes()

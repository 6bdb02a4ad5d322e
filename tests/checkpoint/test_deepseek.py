"""DeepSeek and its relatives beyond the parity table: as published, and what they refuse."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from appliance.errors import CheckpointError
from installer.checkpoint.families.which_family import family_of
from installer.checkpoint.reader import Checkpoint
from tests.checkpoint.conftest import BuildBundle, Built, build_unsigned
from tests.checkpoint.reference import ReferenceDecoder
from tests.checkpoint.runner import SlotRunner, relative_error
from tests.checkpoint.test_refusals import edit_json, refused
from tests.fakes.packers import (
    CompressedFloats,
    CompressedInts,
    Fp8,
    Fp8Whole,
    Gptq,
    Packer,
    write_packed,
)

NAME = "deepseek-v3"
TOKENS = np.random.default_rng(41).integers(0, 480, 90).tolist()


def test_weights_in_squares_of_eight_bit_floats_are_read_as_published(
    built: BuildBundle, tmp_path: Path
) -> None:
    plain = built(NAME, "fp32").checkpoint
    twin = write_packed(plain, tmp_path / "packed", Fp8(16))
    stored = load_file(twin / "model.safetensors")
    packed = Checkpoint(tmp_path / "packed").tensors
    for part in ("self_attn.kv_b_proj", "mlp.experts.3.up_proj", "mlp.shared_experts.down_proj"):
        name = f"model.layers.1.{part}.weight"
        assert packed.stored_type(name) == "F8_E4M3"
        assert (np.concatenate(list(packed.rows(name))) == stored[name]).all()
    build_unsigned(tmp_path / "packed", tmp_path / "bundle", precision="fp32")
    model = Built(tmp_path / "packed", tmp_path / "bundle")
    got = SlotRunner(model.graph, model.spec, capacity=128).prefill(0, TOKENS)
    assert relative_error(got, ReferenceDecoder(twin).logits(TOKENS)[-1]) <= 1e-4


@pytest.mark.parametrize(
    ("name", "packer"),
    [
        ("glm4-moe", CompressedFloats("channel")),
        ("glm4-moe-lite", CompressedInts(bits=4, group=16)),
        ("qwen2-moe", Gptq(bits=4, group=32, symmetric=True, shuffled=False)),
        ("mistral4", Fp8Whole()),
        ("mistral4", Fp8(16)),
    ],
)
def test_mixtures_that_are_quantized_already_are_read_as_they_mean(
    built: BuildBundle, tmp_path: Path, name: str, packer: Packer
) -> None:
    twin = write_packed(built(name, "fp32").checkpoint, tmp_path / "packed", packer)
    build_unsigned(tmp_path / "packed", tmp_path / "bundle", precision="fp32")
    model = Built(tmp_path / "packed", tmp_path / "bundle")
    got = SlotRunner(model.graph, model.spec, capacity=128).prefill(0, TOKENS)
    assert relative_error(got, ReferenceDecoder(twin).logits(TOKENS)[-1]) <= 1e-4


@pytest.mark.parametrize(("name", "layers"), [(NAME, 3), ("glm4-moe", 2)])
def test_layers_that_predict_further_tokens_are_left_out(
    built: BuildBundle, tmp_path: Path, name: str, layers: int
) -> None:
    model = built(name, "int4")
    published = tmp_path / "published"
    shutil.copytree(model.checkpoint, published)
    edit_json(published / "config.json", lambda c: c.update(num_nextn_predict_layers=1))
    weights = load_file(published / "model.safetensors")
    last, first = f"model.layers.{layers - 1}.", f"model.layers.{layers}."
    copies = {n.replace(last, first): v for n, v in weights.items() if n.startswith(last)}
    further = np.ones((64, 128), np.float32)
    weights |= copies | {f"{first}eh_proj.weight": further}
    save_file(weights, published / "model.safetensors", {"format": "pt"})
    build_unsigned(published, tmp_path / "bundle", precision="int4")
    for path in (tmp_path / "bundle/graph").rglob("*.*"):
        assert (
            path.read_bytes() == (model.bundle / path.relative_to(tmp_path / "bundle")).read_bytes()
        )
    weights[f"model.layers.{layers + 1}.eh_proj.weight"] = further
    save_file(weights, published / "model.safetensors", {"format": "pt"})
    refused(published, tmp_path, rf"model\.layers\.{layers + 1}\.eh_proj")


def test_the_cache_holds_one_vector_a_token_whatever_the_heads_are(built: BuildBundle) -> None:
    spec = built(NAME, "fp32").spec
    assert (spec.kv_heads, spec.head_dim) == (1, 32 + 16)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("mistral4", "n_group", 2),
        ("mistral4", "scoring_func", "sigmoid"),
        ("mistral4", "sliding_window", 64),
        ("mistral4", "head_dim", 48),
        ("mistral4", "rope_parameters", None),
        (NAME, "attention_bias", True),
        (NAME, "scoring_func", "softmax"),
        (NAME, "topk_method", "group_limited_greedy"),
        (NAME, "moe_layer_freq", 2),
        (NAME, "num_key_value_heads", 2),
        (NAME, "n_group", 3),
        (NAME, "topk_group", 5),
        (NAME, "qk_rope_head_dim", 24),
        (NAME, "kv_lora_rank", 40),
        (NAME, "index_topk", 2048),
        (NAME, "hidden_act", "gelu"),
        ("deepseek-v2", "scoring_func", "sigmoid"),
        ("deepseek-v2", "topk_method", "noaux_tc"),
        ("deepseek-v2", "norm_topk_prob", True),
        ("deepseek-v2", "rope_interleave", False),
        ("deepseek-v2", "num_experts_per_tok", 9),
        ("deepseek-v2", "mlp_bias", True),
        ("glm4-moe", "scoring_func", "softmax"),
        ("glm4-moe", "n_group", 3),
        ("glm4-moe", "num_experts_per_tok", 9),
        ("glm4-moe", "partial_rotary_factor", 0.25),
        ("glm4-moe", "sliding_window", 64),
        ("dots1", "sliding_window", 64),
        ("dots1", "attention_bias", True),
        ("glm4-moe-lite", "partial_rotary_factor", 0.5),
        ("glm4-moe-lite", "first_k_dense_replace", 2),
        ("glm4-moe-lite", "mlp_layer_types", ["dense", "other"]),
        ("glm4-moe-lite", "index_topk", 2048),
    ],
)
def test_what_the_graph_cannot_express_is_refused_by_name(
    built: BuildBundle, tmp_path: Path, name: str, key: str, value: object
) -> None:
    shutil.copy(built(name, "fp32").checkpoint / "config.json", tmp_path)
    edit_json(tmp_path / "config.json", lambda c: c.update({key: value}))
    checkpoint = Checkpoint(tmp_path)
    said = {"hidden_act": "silu|hidden_act", "num_experts_per_tok": "9 are chosen"}
    turned = "turn" if (name, key) == ("glm4-moe", "partial_rotary_factor") else key
    with pytest.raises(CheckpointError, match=said.get(key, turned)):
        family_of(checkpoint).read(checkpoint)


def test_groups_of_a_choice_that_is_greedy_say_nothing(built: BuildBundle, tmp_path: Path) -> None:
    shutil.copy(built("deepseek-v2", "fp32").checkpoint / "config.json", tmp_path)
    edit_json(tmp_path / "config.json", lambda c: c.update(topk_method="greedy"))
    checkpoint = Checkpoint(tmp_path)
    mixture = family_of(checkpoint).read(checkpoint).decoder.mixture
    assert (mixture.groups, mixture.best) == (1, 1)


def test_layers_of_flash_may_have_experts_in_any_order(built: BuildBundle, tmp_path: Path) -> None:
    shutil.copy(built("glm4-moe-lite", "fp32").checkpoint / "config.json", tmp_path)
    kinds = ["sparse", "dense"]
    edit_json(tmp_path / "config.json", lambda c: c.update(mlp_layer_types=kinds))
    edit_json(tmp_path / "config.json", lambda c: c.pop("first_k_dense_replace"))
    checkpoint = Checkpoint(tmp_path)
    assert family_of(checkpoint).read(checkpoint).decoder.mixture.dense == {1}

"""DeepSeek-V3 beyond the parity table: as it is published, and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from appliance.errors import CheckpointError
from installer.checkpoint.graph.deepseek import read
from installer.checkpoint.reader import Checkpoint
from tests.checkpoint.conftest import BuildBundle, Built, build_unsigned
from tests.checkpoint.reference import ReferenceDecoder
from tests.checkpoint.runner import SlotRunner, relative_error
from tests.checkpoint.test_refusals import edit_json, refused
from tests.fakes.packers import Fp8, write_packed

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


def test_layers_that_predict_further_tokens_are_left_out(
    built: BuildBundle, tmp_path: Path
) -> None:
    model = built(NAME, "int4")
    published = tmp_path / "published"
    shutil.copytree(model.checkpoint, published)
    edit_json(published / "config.json", lambda c: c.update(num_nextn_predict_layers=1))
    weights = load_file(published / "model.safetensors")
    last = {n: v for n, v in weights.items() if n.startswith("model.layers.2.")}
    weights |= {name.replace(".2.", ".3.", 1): values for name, values in last.items()}
    weights["model.layers.3.eh_proj.weight"] = np.ones((64, 128), np.float32)
    save_file(weights, published / "model.safetensors", {"format": "pt"})
    build_unsigned(published, tmp_path / "bundle", precision="int4")
    for path in (tmp_path / "bundle/graph").rglob("*.*"):
        assert (
            path.read_bytes() == (model.bundle / path.relative_to(tmp_path / "bundle")).read_bytes()
        )
    weights["model.layers.4.eh_proj.weight"] = np.ones((64, 128), np.float32)
    save_file(weights, published / "model.safetensors", {"format": "pt"})
    refused(published, tmp_path, r"model\.layers\.4\.eh_proj")


def test_the_cache_holds_one_vector_a_token_whatever_the_heads_are(built: BuildBundle) -> None:
    spec = built(NAME, "fp32").spec
    assert (spec.kv_heads, spec.head_dim) == (1, 32 + 16)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention_bias", True),
        ("scoring_func", "softmax"),
        ("topk_method", "group_limited_greedy"),
        ("moe_layer_freq", 2),
        ("num_key_value_heads", 2),
        ("n_group", 3),
        ("topk_group", 5),
        ("qk_rope_head_dim", 24),
        ("kv_lora_rank", 40),
        ("index_topk", 2048),
        ("hidden_act", "gelu"),
    ],
)
def test_what_the_graph_cannot_express_is_refused_by_name(
    built: BuildBundle, tmp_path: Path, key: str, value: object
) -> None:
    shutil.copy(built(NAME, "fp32").checkpoint / "config.json", tmp_path)
    edit_json(tmp_path / "config.json", lambda c: c.update({key: value}))
    with pytest.raises(CheckpointError, match=key if "_" in key else "silu|hidden_act"):
        read(Checkpoint(tmp_path))

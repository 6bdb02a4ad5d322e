"""Kimi-Linear: as it is published, what it is not, and what its builder compares."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from appliance.bundle.specs import Parity, RecurrentSpec
from appliance.errors import CheckpointError
from installer.checkpoint import build_bundle
from installer.checkpoint.families.deepseek import LatentShape
from installer.checkpoint.families.which_family import family_of
from installer.checkpoint.graph.routed import Routed
from installer.checkpoint.shallow import cut
from tests.checkpoint.conftest import WRITERS, BuildBundle, OpenConfig, build_unsigned

ATTENDING = [4, 8, 12, 16, 20, 24, 27]
PUBLISHED: dict[str, Any] = {
    "architectures": ["KimiLinearForCausalLM"],
    "bos_token_id": 163_584,
    "dtype": "bfloat16",
    "eos_token_id": 163_586,
    "first_k_dense_replace": 1,
    "head_dim": 72,
    "hidden_act": "silu",
    "hidden_size": 2304,
    "initializer_range": 0.02,
    "intermediate_size": 9216,
    "kv_lora_rank": 512,
    "linear_attn_config": {
        "full_attn_layers": ATTENDING,
        "head_dim": 128,
        "kda_layers": [layer for layer in range(1, 28) if layer not in ATTENDING],
        "num_heads": 32,
        "short_conv_kernel_size": 4,
    },
    "mla_use_nope": True,
    "model_max_length": 1_048_576,
    "model_type": "kimi_linear",
    "moe_intermediate_size": 1024,
    "moe_layer_freq": 1,
    "moe_renormalize": True,
    "moe_router_activation_func": "sigmoid",
    "num_attention_heads": 32,
    "num_expert_group": 1,
    "num_experts": 256,
    "num_experts_per_token": 8,
    "num_hidden_layers": 27,
    "num_key_value_heads": 32,
    "num_nextn_predict_layers": 0,
    "num_shared_experts": 1,
    "pad_token_id": 163_839,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10_000.0,
    "routed_scaling_factor": 2.446,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "transformers_version": "4.57.1",
    "use_cache": True,
    "use_grouped_topk": True,
    "v_head_dim": 128,
    "vocab_size": 163_840,
}
"""Of the 48B model, but for the code that it names."""


def test_a_published_config_is_understood(open_config: OpenConfig) -> None:
    checkpoint = open_config(PUBLISHED)
    shape = family_of(checkpoint).read(checkpoint)
    assert isinstance(shape, LatentShape)
    decoder = shape.decoder
    assert decoder.recurrent is not None
    assert decoder.recurrent.spec() == RecurrentSpec(
        layers=20, heads=32, key_dim=128, value_dim=128, channels=12_288, tail=3
    )
    assert [layer for layer in range(27) if not decoder.recurs(layer)] == [
        layer - 1 for layer in ATTENDING
    ]
    spec = decoder.spec()
    assert (spec.layers, spec.kv_heads, spec.head_dim) == (7, 1, 576)
    assert (decoder.context, decoder.scale) == (1_048_576, 192**-0.5)
    assert isinstance(decoder.mixture, Routed)
    assert (decoder.mixture.chosen, decoder.mixture.factor) == (8, 2.446)


def test_the_first_layers_have_one_of_each_kind(open_config: OpenConfig) -> None:
    shallow = cut(dict(PUBLISHED))
    assert shallow is not None
    assert shallow.layers == 4
    states: Any = shallow.config["linear_attn_config"]
    assert (states["kda_layers"], states["full_attn_layers"]) == ([1, 2, 3], [4])
    checkpoint = open_config(dict(shallow.config))
    assert family_of(checkpoint).read(checkpoint).layers == 4


def states(**keys: object) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda config: config | {"linear_attn_config": config["linear_attn_config"] | keys}


def put(**keys: object) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda config: config | keys


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (put(mla_use_nope=False), "mla_use_nope"),
        (put(mla_use_output_gate=True), "mla_use_output_gate"),
        (put(hidden_act="situ"), "hidden_act"),
        (put(routed_expert_hidden_size=3584), "routed_expert_hidden_size"),
        (put(moe_router_activation_func="softmax"), "moe_router_activation_func"),
        (put(num_expert_group=3), "n_group"),
        (put(linear_head_dim=64), "linear_head_dim"),
        (put(layer_types=["full_attention"] * 27), "kda_layers"),
        (put(linear_attn_config=None), "linear_attn_config"),
        (states(kda_layers=[1, 2, 3]), "kda_layers"),
        (states(full_attn_layers=[*ATTENDING, 1]), "full_attn_layers"),
        (states(kda_layers=list(range(1, 28)), full_attn_layers=[]), "kda_layers"),
        (states(gate_lower_bound=-5.0), "gate_lower_bound"),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_its_key(
    open_config: OpenConfig, change: Callable[[dict[str, Any]], dict[str, Any]], named: str
) -> None:
    checkpoint = open_config(change(PUBLISHED))
    with pytest.raises(CheckpointError, match=named):
        family_of(checkpoint).read(checkpoint)


def test_the_dense_layer_is_read_by_either_of_its_names(built: BuildBundle, tmp_path: Path) -> None:
    written = built("kimi-linear", "fp32")
    published = WRITERS["kimi-linear"](tmp_path / "published")
    weights = {
        name.replace("layers.0.block_sparse_moe.", "layers.0.mlp."): values
        for name, values in load_file(published / "model.safetensors").items()
    }
    further = {"model.layers.4.enorm.weight": np.ones(2, np.float32)}
    save_file(weights | further, published / "model.safetensors", {"format": "pt"})
    config = published / "config.json"
    config.write_text(config.read_text().replace("{", '{"num_nextn_predict_layers": 1, ', 1))
    build_unsigned(published, tmp_path / "bundle", precision="fp32")
    for file in written.graph.parent.iterdir():
        if file.suffix == ".bin":
            assert (tmp_path / "bundle/graph/cpu" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.slow
def test_its_first_layers_are_compared_with_the_reference(tmp_path: Path) -> None:
    manifest = build_bundle(
        WRITERS["kimi-linear"](tmp_path / "checkpoint"),
        tmp_path / "bundle",
        name="tiny",
        version="1.0",
        precision="w8a8",
        signer=None,
        created=0,
        parity="required",
    )
    assert isinstance(manifest.parity, Parity)
    assert manifest.parity.layers == 2
    assert isinstance(manifest.parity.error, int)

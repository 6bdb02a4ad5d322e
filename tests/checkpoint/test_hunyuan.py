"""Hunyuan: as it is published, and what it is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from appliance.errors import CheckpointError
from installer.checkpoint.families.which_family import family_of
from installer.checkpoint.graph.rope import STILL
from tests.checkpoint.conftest import OpenConfig

DENSE: dict[str, Any] = {
    "add_classification_head": False,
    "architectures": ["HunYuanDenseV1ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.1,
    "attention_head_dim": 128,
    "bos_token_id": 1,
    "cla_share_factor": 2,
    "class_num": 0,
    "dense_list": [4096, 0],
    "eos_token_id": 127_960,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "im_end_id": 5,
    "im_newline_id": 11,
    "im_start_id": 4,
    "initializer_range": 0.02,
    "intermediate_size": 14_336,
    "mask_init_id": 12,
    "max_position_embeddings": 32_768,
    "mlp_bias": False,
    "model_type": "hunyuan_v1_dense",
    "norm_type": "rms",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "org_vocab_size": 128_167,
    "pad_id": 127_961,
    "pad_token_id": 127_961,
    "pool_type": "last",
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "alpha": 1000.0,
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "type": "dynamic",
    },
    "rope_theta": 10_000.0,
    "sep_token_id": 127_962,
    "text_end_id": 7,
    "text_start_id": 6,
    "tie_word_embeddings": True,
    "use_cache": True,
    "use_cla": False,
    "use_qk_norm": True,
    "use_rotary_pos_emb": True,
    "vocab_size": 128_167,
}
"""As the 7B model is published."""
MIXED: dict[str, Any] = {
    **DENSE,
    "architectures": ["HunYuanMoEV1ForCausalLM"],
    "model_type": "hunyuan_v1_moe",
    "intermediate_size": 3072,
    "moe_drop_tokens": False,
    "moe_intermediate_size": [3072] * 32,
    "moe_layer_num_skipped": 0,
    "moe_random_routing_dropped_token": False,
    "moe_topk": [8] * 32,
    "norm_topk_prob": True,
    "num_experts": 64,
    "num_shared_expert": [1] * 32,
    "routed_scaling_factor": False,
    "use_mixed_mlp_moe": True,
}
"""As A13B, in what its experts are told by."""


@pytest.mark.parametrize(("document", "chosen"), [(DENSE, 0), (MIXED, 8)])
def test_a_published_config_is_understood(
    open_config: OpenConfig, document: dict[str, Any], chosen: int
) -> None:
    checkpoint = open_config(document)
    shape = family_of(checkpoint).read(checkpoint)
    (kind,) = set(shape.kinds)
    assert (shape.head_dim, shape.kv_heads, shape.tied) == (128, 8, True)
    assert kind.rope == STILL, "the kernel turns by nothing"
    base = 10_000.0 * 1000.0 ** (128 / 126)
    assert np.allclose(kind.early.frequencies, base ** (-np.arange(64) / 64), rtol=1e-6)
    assert (shape.mixture.chosen if shape.mixture else 0) == chosen
    assert shape.mixture is None or (shape.mixture.inner, shape.mixture.shared) == (3072, 3072)


@pytest.mark.parametrize(
    ("document", "change", "named"),
    [
        (DENSE, {"use_qk_norm": False}, "use_qk_norm"),
        (DENSE, {"use_cla": True}, "use_cla"),
        (DENSE, {"attention_head_dim": 64}, "attention_head_dim"),
        (DENSE, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "type"),
        (DENSE, {"rope_scaling": {"type": "dynamic", "factor": 2.0, "alpha": 9.0}}, "factor"),
        (DENSE, {"num_experts": 8}, "num_experts"),
        (MIXED, {"moe_topk": [8, 4] * 16}, "moe_topk"),
        (MIXED, {"moe_topk": None}, "moe_topk"),
        (MIXED, {"num_shared_expert": 2}, "num_shared_expert"),
        (MIXED, {"moe_intermediate_size": 1024}, "moe_intermediate_size"),
        (MIXED, {"use_mixed_mlp_moe": False}, "use_mixed_mlp_moe"),
        (MIXED, {"moe_layer_num_skipped": 1}, "moe_layer_num_skipped"),
        (MIXED, {"routed_scaling_factor": 2.5}, "routed_scaling_factor"),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_its_key(
    open_config: OpenConfig, document: dict[str, Any], change: dict[str, Any], named: str
) -> None:
    checkpoint = open_config(document | change)
    with pytest.raises(CheckpointError, match=named):
        family_of(checkpoint).read(checkpoint)


def test_four_bits_by_native_operators_are_refused_with_the_reason(
    open_config: OpenConfig,
) -> None:
    family = family_of(open_config(DENSE))
    assert family.choose(None) == "w8a8"
    with pytest.raises(CheckpointError, match="native operators do not compute its layers"):
        family.choose("w4a8")

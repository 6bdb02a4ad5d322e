"""The config.json of mixtures of experts as they are published is understood.

Written from what their publishers' files say, without what only names things.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from installer.checkpoint.families.which_family import family_of
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.experts import Mixture
from tests.checkpoint.conftest import OpenConfig
from tests.checkpoint.published_dense import config

QWEN3_30B = config(
    "Qwen3Moe",
    (2048, 6144, 48, 32, 4, 151_936, 40_960),
    model_type="qwen3_moe",
    attention_bias=False,
    decoder_sparse_step=1,
    head_dim=128,
    max_window_layers=48,
    mlp_only_layers=[],
    moe_intermediate_size=768,
    norm_topk_prob=True,
    num_experts=128,
    num_experts_per_tok=8,
    output_router_logits=False,
    rope_scaling=None,
    rope_theta=1_000_000.0,
    router_aux_loss_coef=0.001,
    sliding_window=None,
    use_sliding_window=False,
)
GPT_OSS_20B = config(
    "GptOss",
    (2880, 2880, 24, 64, 8, 201_088, 131_072),
    model_type="gpt_oss",
    attention_bias=True,
    attention_dropout=0.0,
    experts_per_token=4,
    head_dim=64,
    initial_context_length=4096,
    layer_types=["sliding_attention", "full_attention"] * 12,
    num_experts_per_tok=4,
    num_local_experts=32,
    output_router_logits=False,
    quantization_config={
        "modules_to_not_convert": [
            *("model.layers.*.self_attn", "model.layers.*.mlp.router"),
            *("model.embed_tokens", "lm_head"),
        ],
        "quant_method": "mxfp4",
    },
    rope_scaling={
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    rope_theta=150_000,
    router_aux_loss_coef=0.9,
    sliding_window=128,
    swiglu_limit=7.0,
)
MINIMAX_M2 = config(
    "MiniMaxM2",
    (3072, 1536, 62, 48, 8, 200_064, 196_608),
    model_type="minimax_m2",
    attn_type_list=[1] * 62,
    head_dim=128,
    mtp_transformer_layers=1,
    num_experts_per_tok=8,
    num_local_experts=256,
    num_mtp_modules=3,
    qk_norm_type="per_layer",
    quantization_config={
        "activation_scheme": "dynamic",
        "fmt": "float8_e4m3fn",
        "modules_to_not_convert": ["gate", "e_score_correction_bias", "lm_head"],
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    rope_theta=5_000_000,
    rotary_dim=64,
    scoring_func="sigmoid",
    shared_intermediate_size=0,
    use_mtp=True,
    use_qk_norm=True,
    use_routing_bias=True,
)
MIXTRAL_8X7B = config(
    "Mixtral",
    (4096, 14_336, 32, 32, 8, 32_000, 32_768),
    attention_dropout=0.0,
    num_experts_per_tok=2,
    num_local_experts=8,
    output_router_logits=False,
    rope_theta=1_000_000.0,
    router_aux_loss_coef=0.02,
    sliding_window=None,
)
MIXTRAL_8X22B = MIXTRAL_8X7B | {
    "hidden_size": 6144,
    "intermediate_size": 16_384,
    "max_position_embeddings": 65_536,
    "num_attention_heads": 48,
    "num_hidden_layers": 56,
    "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0,
    "vocab_size": 32_768,
}
QWEN15_MOE = QWEN3_30B | {
    "architectures": ["Qwen2MoeForCausalLM"],
    "attention_bias": None,
    "head_dim": None,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "max_position_embeddings": 8192,
    "max_window_layers": 21,
    "mlp_only_layers": None,
    "model_type": "qwen2_moe",
    "moe_intermediate_size": 1408,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 16,
    "shared_expert_intermediate_size": 5632,
    "sliding_window": 32_768,
}
QWEN2_57B = QWEN15_MOE | {
    "hidden_size": 3584,
    "intermediate_size": 18_944,
    "max_position_embeddings": 32_768,
    "max_window_layers": 28,
    "moe_intermediate_size": 2560,
    "num_attention_heads": 28,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "shared_expert_intermediate_size": 20_480,
    "sliding_window": 65_536,
}
OLMOE_1B_7B = config(
    "Olmoe",
    (2048, 1024, 16, 16, 16, 50_304, 4096),
    attention_bias=False,
    attention_dropout=0.0,
    clip_qkv=None,
    norm_topk_prob=False,
    num_experts=64,
    num_experts_per_tok=8,
    output_router_logits=False,
    rope_scaling=None,
    rope_theta=10_000.0,
    router_aux_loss_coef=0.01,
)
ERNIE_21B = config(
    "Ernie4_5_Moe",
    (2560, 12_288, 28, 20, 4, 103_424, 131_072),
    moe_capacity=[64, 64, 64],
    moe_gate="topk",
    moe_intermediate_size=1536,
    moe_k=6,
    moe_layer_end_index=27,
    moe_layer_interval=1,
    moe_layer_start_index=1,
    moe_num_experts=64,
    moe_num_shared_experts=2,
    moe_use_aux_free=True,
    num_nextn_predict_layers=1,
    rope_theta=500_000.0,
    tie_word_embeddings=True,
    use_bias=False,
)
PUBLISHED: dict[str, tuple[dict[str, Any], Mixture, dict[int | None, int]]] = {
    "Qwen3-30B-A3B": (QWEN3_30B, Mixture(128, 8, 768), {None: 48}),
    "gpt-oss-20b": (
        GPT_OSS_20B,
        Mixture(32, 4, 2880, alpha=1.702, beta=1.0, limit=7.0, bias=True),
        {128: 12, None: 12},
    ),
    "Mixtral-8x7B": (MIXTRAL_8X7B, Mixture(8, 2, 14_336), {None: 32}),
    "Mixtral-8x22B": (MIXTRAL_8X22B, Mixture(8, 2, 16_384), {None: 56}),
    "Qwen1.5-MoE-A2.7B": (
        QWEN15_MOE,
        Mixture(60, 4, 1408, adds_up=False, shared=5632),
        {None: 24},
    ),
    "Qwen2-57B-A14B": (QWEN2_57B, Mixture(64, 8, 2560, adds_up=False, shared=20_480), {None: 28}),
    "OLMoE-1B-7B": (OLMOE_1B_7B, Mixture(64, 8, 1024, adds_up=False), {None: 16}),
    "ERNIE-4.5-21B-A3B": (
        ERNIE_21B,
        Mixture(64, 6, 1536, dense=frozenset({0}), shared=3072),
        {None: 28},
    ),
    "MiniMax-M2": (MINIMAX_M2, Mixture(256, 8, 1536), {None: 62}),
}
"""Name -> config.json, what is read of its experts, and how many layers have which window."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_understood(open_config: OpenConfig, name: str) -> None:
    document, mixture, windows = PUBLISHED[name]
    checkpoint = open_config(document)
    shape: DecoderShape = family_of(checkpoint).read(checkpoint)
    assert shape.mixture == mixture
    assert Counter(kind.window for kind in shape.kinds) == windows
    assert shape.context == document["max_position_embeddings"]
    assert shape.sinks == (name == "gpt-oss-20b")


def test_half_of_a_head_turns_in_minimax_m2(open_config: OpenConfig) -> None:
    checkpoint = open_config(MINIMAX_M2)
    shape: DecoderShape = family_of(checkpoint).read(checkpoint)
    assert {kind.rope.turned for kind in shape.kinds} == {64}
    assert shape.head_dim == 128

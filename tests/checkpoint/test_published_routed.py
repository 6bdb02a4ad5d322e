"""The config.json of models with DeepSeek's kind of experts as they are published is understood.

Written from what their publishers' files say, without what only names things.
"""

from __future__ import annotations

from typing import Any

import pytest

from installer.checkpoint.families.deepseek import LatentShape
from installer.checkpoint.families.which_family import family_of
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.latent import Latent
from installer.checkpoint.graph.routed import Routed
from tests.checkpoint.conftest import OpenConfig
from tests.checkpoint.published_dense import config

GLM_45 = config(
    "Glm4Moe",
    (5120, 12_288, 92, 96, 8, 151_552, 131_072),
    model_type="glm4_moe",
    attention_bias=True,
    attention_dropout=0.0,
    eos_token_id=[151_329, 151_336, 151_338],
    first_k_dense_replace=3,
    head_dim=128,
    moe_intermediate_size=1536,
    n_group=1,
    n_routed_experts=160,
    n_shared_experts=1,
    norm_topk_prob=True,
    num_experts_per_tok=8,
    num_nextn_predict_layers=1,
    partial_rotary_factor=0.5,
    rope_scaling=None,
    rope_theta=1_000_000,
    routed_scaling_factor=2.5,
    topk_group=1,
    use_qk_norm=True,
)
GLM_45_AIR = GLM_45 | {
    "first_k_dense_replace": 1,
    "hidden_size": 4096,
    "intermediate_size": 10_944,
    "moe_intermediate_size": 1408,
    "n_routed_experts": 128,
    "num_hidden_layers": 46,
    "routed_scaling_factor": 1.0,
    "use_qk_norm": False,
}
GLM_46 = GLM_45 | {"max_position_embeddings": 202_752}
GLM_47_FLASH = config(
    "Glm4MoeLite",
    (2048, 10_240, 47, 20, 20, 154_880, 202_752),
    model_type="glm4_moe_lite",
    attention_bias=False,
    attention_dropout=0.0,
    eos_token_id=[154_820, 154_827, 154_829],
    first_k_dense_replace=1,
    kv_lora_rank=512,
    moe_intermediate_size=1536,
    n_group=1,
    n_routed_experts=64,
    n_shared_experts=1,
    norm_topk_prob=True,
    num_experts_per_tok=4,
    num_nextn_predict_layers=1,
    partial_rotary_factor=1.0,
    q_lora_rank=768,
    qk_nope_head_dim=192,
    qk_rope_head_dim=64,
    rope_scaling=None,
    rope_theta=1_000_000,
    routed_scaling_factor=1.8,
    topk_group=1,
    topk_method="noaux_tc",
    v_head_dim=256,
)
DOTS1 = GLM_45 | {
    "architectures": ["Dots1ForCausalLM"],
    "attention_bias": False,
    "first_k_dense_replace": 1,
    "head_dim": None,
    "hidden_size": 4096,
    "intermediate_size": 10_944,
    "max_position_embeddings": 32_768,
    "model_type": "dots1",
    "moe_intermediate_size": 1408,
    "n_group": None,
    "n_routed_experts": 128,
    "n_shared_experts": 2,
    "num_attention_heads": 32,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 62,
    "num_key_value_heads": 32,
    "num_nextn_predict_layers": None,
    "partial_rotary_factor": None,
    "rope_theta": 10_000_000,
    "scoring_func": "sigmoid",
    "topk_group": None,
    "topk_method": "noaux_tc",
    "use_qk_norm": None,
    "vocab_size": 152_064,
}
_YARN = {
    "beta_fast": 32,
    "beta_slow": 1,
    "factor": 40,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
    "type": "yarn",
}
DEEPSEEK_V2 = config(
    "DeepseekV2",
    (5120, 12_288, 60, 128, 128, 102_400, 163_840),
    model_type="deepseek_v2",
    rms_norm_eps=1e-6,
    attention_bias=False,
    attention_dropout=0.0,
    aux_loss_alpha=0.001,
    ep_size=1,
    first_k_dense_replace=1,
    initializer_range=0.02,
    kv_lora_rank=512,
    moe_intermediate_size=1536,
    moe_layer_freq=1,
    n_group=8,
    n_routed_experts=160,
    n_shared_experts=2,
    norm_topk_prob=False,
    num_experts_per_tok=6,
    pretraining_tp=1,
    q_lora_rank=1536,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    rope_scaling=_YARN,
    rope_theta=10_000,
    routed_scaling_factor=16.0,
    scoring_func="softmax",
    seq_aux=True,
    topk_group=3,
    topk_method="group_limited_greedy",
    v_head_dim=128,
)
DEEPSEEK_CODER_V2_LITE = DEEPSEEK_V2 | {
    "hidden_size": 2048,
    "intermediate_size": 10_944,
    "moe_intermediate_size": 1408,
    "n_group": 1,
    "n_routed_experts": 64,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "rope_scaling": _YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
    "routed_scaling_factor": 1.0,
    "topk_group": 1,
    "topk_method": "greedy",
}
_FP8 = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}
DEEPSEEK_R1 = DEEPSEEK_V2 | {
    "architectures": ["DeepseekV3ForCausalLM"],
    "first_k_dense_replace": 3,
    "hidden_size": 7168,
    "intermediate_size": 18_432,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_nextn_predict_layers": 1,
    "quantization_config": _FP8,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "vocab_size": 129_280,
}
SOFTMAX: dict[str, Any] = {"scores": "softmax", "adds_up": False}
KIMI_K2 = DEEPSEEK_R1 | {
    "first_k_dense_replace": 1,
    "max_position_embeddings": 131_072,
    "n_group": 1,
    "n_routed_experts": 384,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "num_nextn_predict_layers": 0,
    "rope_scaling": _YARN | {"beta_fast": 1.0, "beta_slow": 1.0, "factor": 32.0},
    "rope_theta": 50_000.0,
    "routed_scaling_factor": 2.827,
    "topk_group": 1,
    "vocab_size": 163_840,
}
"""With the `model_type` that its publisher tells others to put in."""
V2 = Latent(queries=1536, rank=512, turned=64, plain=128, values=128)
LITE = Latent(queries=None, rank=512, turned=64, plain=128, values=128)
FLASH = Latent(queries=768, rank=512, turned=64, plain=192, values=256)


def routed(*numbers: int, first: int, shared: int = 1, **more: Any) -> Routed:
    """`numbers`: experts, chosen, inner. `first`: the layers without experts."""
    experts, chosen, inner = numbers
    dense, width = frozenset(range(first)), shared * inner
    return Routed(experts, chosen, inner, dense=dense, shared=width, **more)


PUBLISHED: dict[str, tuple[dict[str, Any], Routed, Latent | None]] = {
    "GLM-4.5": (GLM_45, routed(160, 8, 1536, first=3, factor=2.5, further=1), None),
    "GLM-4.5-Air": (GLM_45_AIR, routed(128, 8, 1408, first=1, further=1), None),
    "GLM-4.6 and 4.7": (GLM_46, routed(160, 8, 1536, first=3, factor=2.5, further=1), None),
    "dots.llm1": (DOTS1, routed(128, 6, 1408, first=1, shared=2, factor=2.5), None),
    "Kimi-K2": (KIMI_K2, routed(384, 8, 2048, first=1, factor=2.827), V2),
    "GLM-4.7-Flash": (GLM_47_FLASH, routed(64, 4, 1536, first=1, factor=1.8, further=1), FLASH),
    "DeepSeek-V2": (
        DEEPSEEK_V2,
        routed(160, 6, 1536, first=1, groups=8, best=3, factor=16.0, shared=2, **SOFTMAX),
        V2,
    ),
    "DeepSeek-V2-Lite and Coder-V2-Lite": (
        DEEPSEEK_CODER_V2_LITE,
        routed(64, 6, 1408, first=1, shared=2, **SOFTMAX),
        LITE,
    ),
    "DeepSeek-V3 and R1": (
        DEEPSEEK_R1,
        routed(256, 8, 2048, first=3, groups=8, best=4, factor=2.5, further=1),
        V2,
    ),
}
"""Name -> config.json, what is read of its experts, and of latent attention."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_understood(open_config: OpenConfig, name: str) -> None:
    document, mixture, latent = PUBLISHED[name]
    checkpoint = open_config(document)
    read: DecoderShape | LatentShape = family_of(checkpoint).read(checkpoint)
    shape = read.decoder if isinstance(read, LatentShape) else read
    assert shape.mixture == mixture
    assert (read.latent if isinstance(read, LatentShape) else None) == latent
    assert shape.context == document["max_position_embeddings"]
    assert shape.kv_heads == (1 if latent else document["num_key_value_heads"])


def test_a_head_of_glm_turns_in_half(open_config: OpenConfig) -> None:
    silent = {key: value for key, value in GLM_45.items() if key != "partial_rotary_factor"}
    for document in (GLM_45, silent):
        checkpoint = open_config(document)
        shape: DecoderShape = family_of(checkpoint).read(checkpoint)
        assert {kind.rope.turned for kind in shape.kinds} == {64}
        assert (shape.input_bias, shape.norms.heads) == (True, True)


def test_what_v2_lites_scale_sharpens_is_small(open_config: OpenConfig) -> None:
    # 0.1 * 0.707 * ln(40) + 1, squared; cosines and sines are multiplied by one.
    checkpoint = open_config(DEEPSEEK_CODER_V2_LITE)
    shape = family_of(checkpoint).read(checkpoint).decoder
    assert shape.scale == pytest.approx(192**-0.5 * 1.2608**2, rel=1e-4)
    assert {kind.rope.magnitude for kind in shape.kinds} == {1.0}

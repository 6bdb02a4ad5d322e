"""config.json of dense models of 2025, written from what their publishers' files say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Windows = Mapping[int | None, int]
_NAMES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "vocab_size", "max_position_embeddings"),
)


def config(
    architecture: str, sizes: tuple[int, ...], model_type: str = "", **keys: object
) -> dict[str, Any]:
    """`sizes`: hidden, inner, layers, heads, kv heads, vocabulary, context."""
    return {
        "architectures": [f"{architecture}ForCausalLM"],
        "model_type": model_type or architecture.lower(),
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        **dict(zip(_NAMES, sizes, strict=True)),
        **keys,
    }


_PIXTRAL = {
    "attention_dropout": 0.0,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "image_size": 1540,
    "initializer_range": 0.02,
    "intermediate_size": 4096,
    "model_type": "pixtral",
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "rope_theta": 10000.0,
}


def _with_images(text: Mapping[str, object], **keys: object) -> dict[str, Any]:
    return {
        "architectures": ["Mistral3ForConditionalGeneration"],
        "dtype": "bfloat16",
        "image_token_index": 10,
        "model_type": "mistral3",
        "multimodal_projector_bias": False,
        "projector_hidden_act": "gelu",
        "spatial_merge_size": 2,
        "text_config": {
            "attention_dropout": 0.0,
            "head_dim": 128,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "rms_norm_eps": 1e-05,
            "sliding_window": None,
            "use_cache": True,
            **text,
        },
        "transformers_version": "5.0.0.dev0",
        "vision_config": _PIXTRAL,
        "vision_feature_layer": -1,
        **keys,
    }


def _sizes(*sizes: int) -> dict[str, int]:
    return dict(zip(_NAMES, sizes, strict=True))


MISTRAL_SMALL_32 = _with_images(
    {
        "model_type": "mistral",
        "rope_theta": 1_000_000_000.0,
        **_sizes(5120, 32_768, 40, 32, 8, 131_072, 131_072),
    }
)
_YARN = {
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "factor": 16.0,
    "llama_4_scaling_beta": 0.1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 16_384,
    "rope_theta": 1_000_000.0,
    "rope_type": "yarn",
    "type": "yarn",
}
MINISTRAL_3_8B = _with_images(
    {
        "model_type": "ministral3",
        "rope_parameters": _YARN,
        **_sizes(4096, 14_336, 34, 32, 8, 131_072, 262_144),
    },
    quantization_config={
        "activation_scheme": "static",
        "dequantize": False,
        "modules_to_not_convert": ["model.vision_tower", "model.multi_modal_projector", "lm_head"],
        "quant_method": "fp8",
        "weight_block_size": None,
    },
)
MINISTRAL_3_ALONE = config(
    "Ministral3",
    (4096, 14_336, 34, 32, 8, 131_072, 262_144),
    head_dim=128,
    rope_parameters={**_YARN, "max_position_embeddings": 262_144},
    sliding_window=None,
)
OLMO_2_7B = config(
    "Olmo2",
    (4096, 11_008, 32, 32, 32, 100_352, 4096),
    attention_bias=False,
    attention_dropout=0.0,
    rms_norm_eps=1e-06,
    rope_scaling=None,
    rope_theta=500_000,
    use_cache=False,
)
OLMO_3_7B = config(
    "Olmo3",
    (4096, 11_008, 32, 32, 32, 100_278, 65_536),
    attention_bias=False,
    attention_dropout=0.0,
    layer_types=(["sliding_attention"] * 3 + ["full_attention"]) * 8,
    rms_norm_eps=1e-06,
    rope_scaling={
        "attention_factor": 1.2079441541679836,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "yarn",
    },
    rope_theta=500_000,
    sliding_window=4096,
)
SMOLLM3 = config(
    "SmolLM3",
    (2048, 11_008, 36, 16, 4, 128_256, 65_536),
    attention_bias=False,
    attention_dropout=0.0,
    layer_types=["full_attention"] * 36,
    max_window_layers=28,
    mlp_bias=False,
    no_rope_layer_interval=4,
    no_rope_layers=[1, 1, 1, 0] * 9,
    pretraining_tp=2,
    rms_norm_eps=1e-06,
    rope_scaling=None,
    rope_theta=5_000_000.0,
    sliding_window=None,
    tie_word_embeddings=True,
    use_sliding_window=False,
)
GRANITE_33_8B = config(
    "Granite",
    (4096, 12_800, 40, 32, 8, 49_159, 131_072),
    attention_bias=False,
    attention_dropout=0.0,
    attention_multiplier=0.0078125,
    embedding_multiplier=12.0,
    logits_scaling=16.0,
    mlp_bias=False,
    residual_multiplier=0.22,
    rope_scaling=None,
    rope_theta=10_000_000.0,
    tie_word_embeddings=True,
)
GRANITE_4_MICRO = config(
    "GraniteMoeHybrid",
    (2560, 8192, 40, 40, 8, 100_352, 131_072),
    attention_bias=False,
    attention_dropout=0.0,
    attention_multiplier=0.015625,
    embedding_multiplier=12,
    init_method="mup",
    layer_types=["attention"] * 40,
    logits_scaling=10,
    mamba_chunk_size=256,
    mamba_conv_bias=True,
    mamba_d_conv=4,
    mamba_d_head=64,
    mamba_d_state=256,
    mamba_expand=2,
    mamba_n_groups=1,
    mamba_n_heads=80,
    mamba_proj_bias=False,
    normalization_function="rmsnorm",
    num_experts_per_tok=0,
    num_local_experts=0,
    output_router_logits=False,
    position_embedding_type="rope",
    residual_multiplier=0.22,
    rope_scaling=None,
    rope_theta=10_000_000,
    router_aux_loss_coef=0.01,
    shared_intermediate_size=8192,
    tie_word_embeddings=True,
)
GLM_4_9B = config(
    "Glm4",
    (4096, 13_696, 40, 32, 2, 151_552, 32_768),
    attention_bias=True,
    attention_dropout=0.0,
    head_dim=128,
    partial_rotary_factor=0.5,
    rope_theta=10_000.0,
)
SEED_OSS_36B = config(
    "SeedOss",
    (5120, 27_648, 64, 80, 8, 155_136, 524_288),
    "seed_oss",
    attention_bias=True,
    attention_dropout=0.1,
    attention_out_bias=False,
    head_dim=128,
    mlp_bias=False,
    residual_dropout=0.1,
    rms_norm_eps=1e-06,
    rope_scaling={"rope_type": "default"},
    rope_theta=10_000_000.0,
)
APERTUS_8B = config(
    "Apertus",
    (4096, 21_504, 32, 32, 8, 131_072, 65_536),
    attention_bias=False,
    attention_dropout=0.0,
    hidden_act="xielu",
    hidden_dropout=0.0,
    mlp_bias=False,
    post_norm=False,
    qk_norm=True,
    rope_scaling={
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
        "type": "llama3",
    },
    rope_theta=12_000_000,
)

COMMAND_R7B = config("Cohere2", (4096, 14_336, 32, 32, 8, 256_000, 132_096))
del COMMAND_R7B["rms_norm_eps"]
COMMAND_R7B |= {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "cache_implementation": "hybrid",
    "head_dim": 128,
    "layer_norm_eps": 1e-05,
    "layer_switch": 4,
    "logit_scale": 0.25,
    "order_of_interleaved_layers": "local_attn_first",
    "position_embedding_type": "rope_gptj",
    "rope_scaling": None,
    "rope_theta": 50_000,
    "rotary_pct": 1.0,
    "sliding_window": 4096,
    "sliding_window_pattern": 4,
    "tie_word_embeddings": True,
    "use_embedding_sharing": True,
    "use_gated_activation": True,
    "use_parallel_block": True,
    "use_parallel_embedding": True,
}

EXAONE_4_32B = config(
    "Exaone4",
    (5120, 27_392, 64, 40, 8, 102_400, 131_072),
    head_dim=128,
    layer_types=[*["sliding_attention"] * 3, "full_attention"] * 16,
    rope_scaling={
        "factor": 16.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    rope_theta=1_000_000,
    sliding_window=4096,
    sliding_window_pattern="LLLG",
)
EXAONE_4_SMALL = config(
    "Exaone4",
    (2048, 4096, 30, 32, 8, 102_400, 65_536),
    head_dim=64,
    layer_types=["full_attention"] * 30,
    rope_theta=1_000_000,
    sliding_window=None,
    sliding_window_pattern=None,
)
DENSE: Mapping[str, tuple[dict[str, Any], Windows, int]] = {
    "Mistral-Small-3.2": (MISTRAL_SMALL_32, {None: 40}, 131_072),
    "Ministral-3-8B, as it is published in 8-bit floats": (MINISTRAL_3_8B, {None: 34}, 262_144),
    "Ministral 3 without eyes": (MINISTRAL_3_ALONE, {None: 34}, 262_144),
    "OLMo-2-7B": (OLMO_2_7B, {None: 32}, 4096),
    "Olmo-3-7B": (OLMO_3_7B, {None: 8, 4096: 24}, 65_536),
    "SmolLM3-3B": (SMOLLM3, {None: 36}, 65_536),
    "Granite-3.3-8B": (GRANITE_33_8B, {None: 40}, 131_072),
    "Granite-4.0-Micro": (GRANITE_4_MICRO, {None: 40}, 131_072),
    "GLM-4-9B-0414": (GLM_4_9B, {None: 40}, 32_768),
    "Seed-OSS-36B": (SEED_OSS_36B, {None: 64}, 524_288),
    "Command R7B": (COMMAND_R7B, {None: 8, 4096: 24}, 132_096),
    "Apertus-8B": (APERTUS_8B, {None: 32}, 65_536),
    "EXAONE-4.0-32B": (EXAONE_4_32B, {None: 16, 4096: 48}, 131_072),
    "EXAONE-4.0-1.2B": (EXAONE_4_SMALL, {None: 30}, 65_536),
}
"""Name -> config.json, how many layers have which window, and the context."""

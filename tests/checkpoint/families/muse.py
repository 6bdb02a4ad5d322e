"""Muse Glimmer: windows that turn, layers without positions, gated heads, norms of two kinds.

Muse Spark: a stream that fades as much as is let in, narrowed tokens, experts normed each.
"""

from __future__ import annotations

from transformers import AutoModelForImageTextToText

from tests.checkpoint.drawn import TINY, drawn_model

GLIMMER_TEXT = {
    **{key: value for key, value in TINY.items() if key != "initializer_range"},
    "model_type": "muse_glimmer_text",
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "final_logit_softcapping": 3.0,
    "head_dim": 32,
    "hidden_activation": "silu",
    "layer_rope_theta": [500_000.0, 500_000.0, 0.0, 0.0],
    "layer_types": [
        *("sliding_attention", "full_attention", "sliding_attention", "full_attention"),
    ],
    "num_hidden_layers": 4,
    "output_multiplier": 0.4,
    "post_norm_eps": 1e-8,
    "qk_scale_factor": 1.7,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 500_000.0, "rope_type": "default"},
    "sliding_window": 20,
}
SIGHT = {
    "hidden_act": "gelu",
    "hidden_size": 32,
    "intermediate_size": 48,
    "layer_norm_eps": 1e-5,
    "layer_types": ["window_attention", "full_attention"],
    "max_position_embeddings": 16,
    "merge_size": 2,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "patch_size": 14,
    "patch_temporal": 2,
    "pos_emb_height": 4,
    "pos_emb_width": 4,
    "rope_parameters": {"rope_theta": 10_000.0, "rope_type": "axial"},
}
_AROUND = {
    "image_token_id": 510,
    "out_hidden_size": 128,
    "projector_hidden_act": "gelu",
    "projector_hidden_size": 48,
    "tie_word_embeddings": False,
    "video_token_id": 509,
}
GLIMMER = {
    **_AROUND,
    "architectures": ["MuseGlimmerForConditionalGeneration"],
    "model_type": "muse_glimmer",
    "text_config": GLIMMER_TEXT,
    "vision_config": {**SIGHT, "model_type": "muse_glimmer_vision"},
}
SPARK = {
    **_AROUND,
    "architectures": ["MuseSparkForConditionalGeneration"],
    "model_type": "muse_spark",
    "audio_config": {
        "depths": [1, 1],
        "hidden_sizes": [8, 16],
        "model_type": "muse_spark_audio",
        "num_hidden_layers": 2,
        "out_hidden_size": 64,
        "patch_sizes": [4, 4],
    },
    "audio_token_id": 508,
    "text_config": {
        **{key: value for key, value in GLIMMER_TEXT.items() if key != "hidden_activation"},
        "model_type": "muse_spark_text",
        "hidden_act": "silu",
        "mlp_layer_types": ["sparse", "dense", "sparse", "sparse"],
        "moe_hidden_size": 32,
        "moe_intermediate_size": 48,  # of squares the reference could not tell rows from columns
        "num_experts_per_tok": 3,
        "num_local_experts": 8,
        "output_router_logits": False,
        "residual_gate_temperature": 0.3,
        "routed_scaling_factor": 1.3,
    },
    "vision_config": {**SIGHT, "model_type": "muse_spark_vision"},
}

MODELS = {
    "muse-glimmer": drawn_model(GLIMMER, blind=True, model=AutoModelForImageTextToText, seed=2),
    "muse-spark": drawn_model(SPARK, main=True, experts=True, model=AutoModelForImageTextToText),
}

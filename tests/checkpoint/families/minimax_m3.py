"""MiniMax-M3 with eyes: layers that see all and layers with an index, one feed-forward and experts
beside one for all."""

from __future__ import annotations

from transformers import AutoModelForImageTextToText

from tests.checkpoint.drawn import TINY, drawn_model

TEXT = {
    **TINY,
    "model_type": "minimax_m3_vl_text",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_hidden_layers": 4,
    "intermediate_size": 32,
    "head_dim": 32,
    "hidden_act": "silu",
    "dense_intermediate_size": 96,
    "shared_intermediate_size": 64,
    "num_local_experts": 8,
    "num_experts_per_tok": 3,
    "routed_scaling_factor": 2.0,
    "rotary_dim": 16,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10_000.0,
        "partial_rotary_factor": 0.5,
    },
    "layer_types": ["full_attention", "minimax_m3_sparse"] * 2,
    "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
    "index_n_heads": 2,
    "index_head_dim": 64,
    "index_block_size": 8,
    "index_topk_blocks": 3,  # fewer tokens than the prompts of the tests have
    "index_local_blocks": 2,
}
SIGHT = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "image_size": 28,
    "patch_size": 14,
}
MINIMAX_M3 = {
    "architectures": ["MiniMaxM3SparseForConditionalGeneration"],
    "model_type": "minimax_m3_vl",
    "image_token_index": 10,
    "video_token_index": 11,
    "projector_hidden_size": 64,
    "tie_word_embeddings": False,
    "text_config": TEXT,
    "vision_config": SIGHT,
}

MODELS = {
    "minimax-m3": drawn_model(
        MINIMAX_M3, main=True, experts=True, model=AutoModelForImageTextToText
    ),
}

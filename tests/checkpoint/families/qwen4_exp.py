"""Qwen4-Exp, words alone: several residual streams, an index over blocks, tables of n-grams."""

from __future__ import annotations

from tests.checkpoint.drawn import TINY, drawn_model

_OTHER = {key: value for key, value in TINY.items() if key != "intermediate_size"}
QWEN4 = {
    **_OTHER,
    "architectures": ["Qwen4ExpForCausalLM"],
    "model_type": "qwen4_exp_text",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_hidden_layers": 4,
    "hidden_act": "silu",
    "head_dim": 64,
    "attention_bias": False,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10_000_000.0,
        "partial_rotary_factor": 0.25,
        "mrope_interleaved": True,
        "mrope_section": [4, 2, 2],
    },
    "layer_types": [
        *("linear_attention", "indexed_attention", "linear_attention", "indexed_attention"),
    ],
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "num_experts": 8,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 96,
    "shared_expert_intermediate_size": 64,
    "output_gate_type": "sigmoid",
    "hc_count": 4,
    "hc_lowrank": 32,
    "indexer_n_heads": 6,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 64,
    "indexer_budget": 24,  # fewer tokens than the prompts of the tests have
    "indexer_compress_ratio": 4,
    "ple_layer_ids": [1, 3],
    "ple_embed_dim": 128,
    "ple_conv_kernel_size": 4,
    "ngram_size": 3,
    "heads_per_ngram": 2,
    "ngram_vocab_size_base": 90,
    "make_ngram_vocab_size_divisible_by": 16,
    "split_ngram_parts": 5,
}

MODELS = {
    "qwen4-exp": drawn_model(
        QWEN4, main=True, experts=True, recurrent=True, by_processor=True, seed=6
    ),
}

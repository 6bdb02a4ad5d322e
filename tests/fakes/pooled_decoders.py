"""Checkpoints of embedders that pool a decoder's states, small and with random weights.

EmbeddingGemma, EmbeddingGemma 2 and EuroBERT, as they are published. No gain is 1, and windows are
shorter than the tests' texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.fakes.checkpoints import (
    Weights,
    _Draw,
    _write_json,
    _write_sentence_modules,
    _write_weights,
)
from tests.fakes.newer_encoders import CONTEXT, HIDDEN, VOCAB, Pooling, add_dense, write_encoder


def write_embedding_gemma(directory: Path, *, seed: int = 0) -> Path:
    """Write an embedder of Gemma's layers, with two dense layers behind the pooling."""
    config = _decoder_config("Gemma3TextModel", "gemma3_text") | {
        "num_key_value_heads": 1,
        "head_dim": 32,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 24,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "sliding_window": 12,
        "_sliding_window_pattern": 3,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "use_bidirectional_attention": True,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "bos_token_id": 2,
        "eos_token_id": 1,
    }
    write_encoder(directory, config, "mean")
    identity = "torch.nn.modules.linear.Identity"
    add_dense(directory, [(128, identity), (64, identity)])
    prompts = {"query": "task: search result | query: ", "document": "title: none | text: "}
    _write_json(
        directory / "config_sentence_transformers.json",
        {
            "model_type": "SentenceTransformer",
            "prompts": prompts,
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )
    _write_weights(directory, _gemma_weights(seed), "float32", None)
    return directory


def write_eurobert(directory: Path, *, seed: int = 0, pooling: Pooling = "mean") -> Path:
    """Write a sentence encoder of Llama's blocks."""
    config = _decoder_config("EuroBertModel", "eurobert") | {
        "num_key_value_heads": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "rope_theta": 250_000.0,
        "mlp_bias": False,
        "mask_token_id": 3,
        "pretraining_tp": 1,
        "tie_word_embeddings": False,
    }
    write_encoder(directory, config, pooling)
    _write_weights(directory, _llama_weights(seed), "float32", None)
    return directory


def _decoder_config(architecture: str, family: str) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": family,
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "pad_token_id": 0,
    }


def _gemma_weights(seed: int) -> Weights:
    draw = _Draw(seed)
    yield "embed_tokens.weight", draw.normal(VOCAB, HIDDEN, scale=0.1)
    for layer in range(3):
        at = f"layers.{layer}"
        for norm in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            yield f"{at}.{norm}_layernorm.weight", draw.normal(HIDDEN, scale=0.2)
        for name in "qk":
            yield f"{at}.self_attn.{name}_norm.weight", draw.normal(32, scale=0.2)
        yield from _block(draw, at, {"q": 4 * 32, "k": 32, "v": 32})
    yield "norm.weight", draw.normal(HIDDEN, scale=0.2)


def _llama_weights(seed: int) -> Weights:
    draw = _Draw(seed)
    yield "embed_tokens.weight", draw.normal(VOCAB, HIDDEN, scale=0.2)
    for layer in range(3):
        at = f"layers.{layer}"
        for norm in ("input", "post_attention"):
            yield f"{at}.{norm}_layernorm.weight", draw.gain(HIDDEN)
        yield from _block(draw, at, {"q": 4 * 16, "k": 2 * 16, "v": 2 * 16})
    yield "norm.weight", draw.gain(HIDDEN)


def _block(draw: _Draw, at: str, heads: Mapping[str, int]) -> Weights:
    for name, width in heads.items():
        yield f"{at}.self_attn.{name}_proj.weight", draw.linear(width, HIDDEN)
    yield f"{at}.self_attn.o_proj.weight", draw.linear(HIDDEN, heads["q"])
    for name in ("gate", "up"):
        yield f"{at}.mlp.{name}_proj.weight", draw.linear(128, HIDDEN)
    yield f"{at}.mlp.down_proj.weight", draw.linear(HIDDEN, 128)


def write_embedding_gemma2(directory: Path, *, seed: int = 0) -> Path:
    """Write an embedder of texts: the last layer sees all, by wider heads than the others."""
    text = _decoder_config("", "embedding_gemma2_text") | {
        "num_key_value_heads": 2,
        "head_dim": 16,
        "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "per_layer_config": {"2": {"head_dim": 32, "num_key_value_heads": 1}},
        "sliding_window": 5,
        "hidden_size_per_layer_input": 32,
        "embedding_dim": 48,
    }
    thetas = {"full_attention": 1_000_000.0, "sliding_attention": 10_000.0}
    text["rope_parameters"] = {
        name: {"rope_theta": theta, "rope_type": "default"} for name, theta in thetas.items()
    }
    del text["architectures"], text["rope_scaling"]
    config = {
        "architectures": ["EmbeddingGemma2Model"],
        "model_type": "embedding_gemma2",
        "text_config": text,
        "vision_config": None,
        "audio_config": None,
        "image_token_id": 390,
        "video_token_id": 391,
        "audio_token_id": 392,
        "boi_token_id": 393,
        "eoi_token_id": 394,
        "boa_token_id": 395,
        "eoa_token_index": 396,
        "initializer_range": 0.02,
    }
    write_encoder(directory, config, "mean")
    _write_sentence_modules(directory, 48, 128, "mean", normalize=True)
    _write_weights(directory, _gemma2_weights(seed), "float32", None)
    return directory


def _gemma2_weights(seed: int) -> Weights:
    draw, root = _Draw(seed), "language_model"
    yield f"{root}.embed_tokens.weight", draw.normal(VOCAB, HIDDEN, scale=0.1)
    yield f"{root}.ple.per_layer_model_projection.weight", draw.linear(3 * 32, HIDDEN)
    yield f"{root}.ple.per_layer_projection_norm.weight", draw.gain(32)
    for layer, (width, kv_heads) in enumerate(((16, 2), (16, 2), (32, 1))):
        at = f"{root}.layers.{layer}"
        for norm in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            yield f"{at}.{norm}_layernorm.weight", draw.gain(HIDDEN)
        for name in "qk":
            yield f"{at}.self_attn.{name}_norm.weight", draw.normal(width, scale=0.1) + 0.6
        heads = {"q": 4 * width, "k": kv_heads * width, "v": kv_heads * width}
        yield from _block(draw, at, heads)
        yield f"{at}.ple_block.per_layer_input_gate.weight", draw.linear(32, HIDDEN)
        yield f"{at}.ple_block.per_layer_projection.weight", draw.linear(HIDDEN, 32)
        yield f"{at}.ple_block.post_per_layer_input_norm.weight", draw.gain(HIDDEN)
        yield f"{at}.layer_scalar", draw.gain(1)
    yield f"{root}.norm.weight", draw.gain(HIDDEN)
    yield f"{root}.embedding_projection.weight", draw.linear(48, HIDDEN)

"""Checkpoints of GTE and Nomic, small and with random weights, as they are published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.fakes.checkpoints import Weights, _Draw, _write_json, _write_weights
from tests.fakes.newer_encoders import CONTEXT, HIDDEN, VOCAB, Pooling, write_encoder


def write_gte(directory: Path, *, seed: int = 0, pooling: Pooling = "cls") -> Path:
    """Write a sentence encoder."""
    write_encoder(directory, _gte_config("GteModel"), pooling)
    _write_weights(directory, _gte_weights(seed, ""), "float32", None)
    return directory


def write_gte_reranker(directory: Path, *, seed: int = 0) -> Path:
    """Write a reranker of one label."""
    write_encoder(directory, _gte_config("GteForSequenceClassification"), None)
    weights, draw = dict(_gte_weights(seed, "gte.")), _Draw(seed + 1)
    weights |= dict(draw.biased_linear("gte.pooler.dense", HIDDEN, HIDDEN))
    weights |= dict(draw.biased_linear("classifier", 1, HIDDEN))
    _write_weights(directory, iter(weights.items()), "float32", None)
    return directory


NOMIC_WORDS = {
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "num_hidden_layers": "n_layer",
    "layer_norm_eps": "layer_norm_epsilon",
    "max_position_embeddings": "n_positions",
}


def write_nomic(
    directory: Path, *, seed: int = 0, pooling: Pooling = "mean", own_words: bool = False
) -> Path:
    """Write a sentence encoder, in the words of the reference or in the publisher's own."""
    config: dict[str, Any] = {
        "architectures": ["NomicBertModel"],
        "model_type": "nomic_bert",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_dim": 16,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT,
        "layer_norm_eps": 1e-12,
        "type_vocab_size": 2,
        "pad_token_id": 0,
        "rope_parameters": {"rope_theta": 1000.0, "rope_type": "default"},
    }
    write_encoder(directory, config, pooling)
    if own_words:
        del config["rope_parameters"], config["head_dim"], config["hidden_act"]
        config = {NOMIC_WORDS.get(key, key): value for key, value in config.items()}
        config |= {"rotary_emb_base": 1000, "activation_function": "swiglu"}
        _write_json(directory / "config.json", config)
    _write_weights(directory, _nomic_weights(seed), "float32", None)
    return directory


def _gte_config(architecture: str) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": "gte",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "hidden_act": "gelu",
        "max_position_embeddings": CONTEXT,
        "layer_norm_eps": 1e-12,
        "layer_norm_type": "layer_norm",
        "pack_qkv": True,
        "position_embedding_type": "rope",
        "rope_theta": 20_000.0,
        "rope_scaling": None,
        "type_vocab_size": 1,
        "pad_token_id": 0,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
    }


def _gte_weights(seed: int, root: str) -> Weights:
    draw, inner = _Draw(seed), 96
    yield f"{root}embeddings.word_embeddings.weight", draw.normal(VOCAB, HIDDEN, scale=0.5)
    yield f"{root}embeddings.token_type_embeddings.weight", draw.normal(1, HIDDEN, scale=0.5)
    yield from draw.layer_norm(f"{root}embeddings.LayerNorm", HIDDEN)
    for layer in range(2):
        at = f"{root}encoder.layer.{layer}"
        yield from draw.biased_linear(f"{at}.attention.qkv_proj", 3 * HIDDEN, HIDDEN)
        yield from draw.biased_linear(f"{at}.attention.o_proj", HIDDEN, HIDDEN)
        yield f"{at}.mlp.up_gate_proj.weight", draw.linear(2 * inner, HIDDEN)
        yield from draw.biased_linear(f"{at}.mlp.down_proj", HIDDEN, inner)
        for norm in ("attn_ln", "mlp_ln"):
            yield from draw.layer_norm(f"{at}.{norm}", HIDDEN)


def _nomic_weights(seed: int) -> Weights:
    draw, inner = _Draw(seed), 96
    yield "embeddings.word_embeddings.weight", draw.normal(VOCAB, HIDDEN, scale=0.5)
    yield "embeddings.token_type_embeddings.weight", draw.normal(2, HIDDEN, scale=0.5)
    yield from draw.layer_norm("emb_ln", HIDDEN)
    for layer in range(2):
        at = f"encoder.layers.{layer}"
        yield f"{at}.attn.Wqkv.weight", draw.linear(3 * HIDDEN, HIDDEN)
        yield f"{at}.attn.out_proj.weight", draw.linear(HIDDEN, HIDDEN)
        for name in ("fc11", "fc12"):
            yield f"{at}.mlp.{name}.weight", draw.linear(inner, HIDDEN)
        yield f"{at}.mlp.fc2.weight", draw.linear(HIDDEN, inner)
        for norm in ("norm1", "norm2"):
            yield from draw.layer_norm(f"{at}.{norm}", HIDDEN)

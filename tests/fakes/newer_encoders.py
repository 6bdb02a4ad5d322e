"""Checkpoints of encoders newer than BERT, small and with random weights, as they are published.

What encoder_checkpoints.py is for BERT's like and for Qwen3. Windows are shorter than the tests'
texts, and no gain is 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from safetensors.numpy import save_file
from tokenizers import Tokenizer, processors

from tests.fakes.checkpoints import (
    Weights,
    _Draw,
    _wordpiece_tokenizer,
    _write_json,
    _write_licence,
    _write_sentence_modules,
    _write_weights,
)

Pooling = Literal["mean", "cls"]
VOCAB, HIDDEN, CONTEXT = 400, 64, 128


def write_modernbert(
    directory: Path,
    *,
    seed: int = 0,
    pooling: Pooling = "mean",
    layer_types: bool = False,
    window: int = 8,
) -> Path:
    """Write a sentence encoder.

    `layer_types`: its config.json is of a newer release; `window`: tokens that are seen.
    """
    config = _modernbert_config("ModernBertModel", newer=layer_types)
    write_encoder(directory, config | {"local_attention": window}, pooling)
    _write_weights(directory, _modernbert_weights(seed, ""), "float32", None)
    return directory


def write_modernbert_reranker(directory: Path, *, seed: int = 0, pooling: Pooling = "mean") -> Path:
    """Write a reranker of one label."""
    config = _modernbert_config("ModernBertForSequenceClassification")
    config |= {"classifier_pooling": pooling, "id2label": {"0": "LABEL_0"}}
    config |= {"label2id": {"LABEL_0": 0}}
    write_encoder(directory, config, None)
    _write_weights(directory, _modernbert_reranker_weights(seed), "float32", None)
    return directory


def add_dense(
    directory: Path,
    widths: Sequence[tuple[int, str]],
    *,
    seed: int = 5,
    bias: bool = False,
    normalize: bool = True,
) -> None:
    """Put dense layers behind the pooling: each one's width and activation, the first takes 64."""
    modules, inner, draw = ["Transformer", "Pooling"], HIDDEN, _Draw(seed)
    for index, (outer, activation) in enumerate(widths, 2):
        folder = directory / f"{index}_Dense"
        folder.mkdir()
        config = {"in_features": inner, "out_features": outer, "bias": bias}
        _write_json(folder / "config.json", config | {"activation_function": activation})
        weights = dict(draw.biased_linear("linear", outer, inner))
        kept = {name: value for name, value in weights.items() if bias or "bias" not in name}
        save_file(kept, folder / "model.safetensors", {"format": "pt"})
        modules.append("Dense")
        inner = outer
    modules += ["Normalize"] if normalize else []
    listed = [
        {
            "idx": index,
            "name": str(index),
            "path": f"{index}_{kind}" if index else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, kind in enumerate(modules)
    ]
    _write_json(directory / "modules.json", listed)


def write_encoder(directory: Path, config: Mapping[str, Any], pooling: Pooling | None) -> None:
    """Everything but weights; without `pooling`, of a reranker."""
    directory.mkdir(parents=True, exist_ok=True)
    _write_json(directory / "config.json", config)
    _tokenizer(config["model_type"]).save(str(directory / "tokenizer.json"))
    _write_json(
        directory / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": CONTEXT},
    )
    if pooling is not None:
        _write_sentence_modules(directory, HIDDEN, 64, pooling, normalize=True)
    _write_licence(directory)


def _tokenizer(family: str) -> Tokenizer:
    if family != "mpnet":
        return _wordpiece_tokenizer(VOCAB)
    tokenizer = _wordpiece_tokenizer(VOCAB, ("<s>", "<pad>", "</s>", "<unk>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return tokenizer


def _modernbert_config(architecture: str, *, newer: bool = False) -> dict[str, Any]:
    config: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": "modernbert",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "hidden_activation": "gelu",
        "max_position_embeddings": CONTEXT,
        "norm_eps": 1e-5,
        "norm_bias": False,
        "attention_bias": False,
        "mlp_bias": False,
        "classifier_bias": False,
        "classifier_activation": "gelu",
        "classifier_pooling": "mean",
        "local_attention": 8,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "layer_norm_eps": 1e-5,
        "initializer_cutoff_factor": 2.0,
    }
    if not newer:
        thetas = {"global_rope_theta": 160_000.0, "local_rope_theta": 10_000.0}
        return config | thetas | {"global_attn_every_n_layers": 3}
    full, sliding = "full_attention", "sliding_attention"
    thetas = {full: 120_000.0, sliding: 9_000.0}
    parameters = {
        name: {"rope_type": "default", "rope_theta": theta} for name, theta in thetas.items()
    }
    return config | {
        "layer_types": [sliding, full, sliding],
        "rope_parameters": parameters,
    }


def _modernbert_weights(seed: int, root: str) -> Weights:
    draw, inner = _Draw(seed), 96
    yield f"{root}embeddings.tok_embeddings.weight", draw.normal(VOCAB, HIDDEN, scale=0.5)
    yield f"{root}embeddings.norm.weight", draw.gain(HIDDEN)
    for layer in range(3):
        at = f"{root}layers.{layer}"
        if layer:
            yield f"{at}.attn_norm.weight", draw.gain(HIDDEN)
        yield f"{at}.attn.Wqkv.weight", draw.linear(3 * HIDDEN, HIDDEN)
        yield f"{at}.attn.Wo.weight", draw.linear(HIDDEN, HIDDEN)
        yield f"{at}.mlp_norm.weight", draw.gain(HIDDEN)
        yield f"{at}.mlp.Wi.weight", draw.linear(2 * inner, HIDDEN)
        yield f"{at}.mlp.Wo.weight", draw.linear(HIDDEN, inner)
    yield f"{root}final_norm.weight", draw.gain(HIDDEN)


def _modernbert_reranker_weights(seed: int) -> Weights:
    yield from _modernbert_weights(seed, "model.")
    draw = _Draw(seed + 1)
    yield "head.dense.weight", draw.linear(HIDDEN, HIDDEN)
    yield "head.norm.weight", draw.gain(HIDDEN)
    yield from draw.biased_linear("classifier", 1, HIDDEN)


def write_mpnet(directory: Path, *, seed: int = 0, pooling: Pooling = "mean") -> Path:
    """Write a sentence encoder, under the name of what all-mpnet-base-v2 was made from."""
    write_encoder(directory, _mpnet_config("MPNetForMaskedLM"), pooling)
    _write_weights(directory, _mpnet_weights(seed, ""), "float32", None)
    return directory


def write_mpnet_reranker(directory: Path, *, seed: int = 0) -> Path:
    """Write a reranker of one label."""
    config = _mpnet_config("MPNetForSequenceClassification")
    config |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    write_encoder(directory, config, None)
    weights = dict(_mpnet_weights(seed, "mpnet."))
    draw = _Draw(seed + 1)
    weights |= dict(draw.biased_linear("classifier.dense", HIDDEN, HIDDEN))
    weights |= dict(draw.biased_linear("classifier.out_proj", 1, HIDDEN))
    _write_weights(directory, iter(weights.items()), "float32", None)
    return directory


def _mpnet_config(architecture: str) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": "mpnet",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "hidden_act": "gelu",
        "max_position_embeddings": CONTEXT + 2,
        "layer_norm_eps": 1e-5,
        "relative_attention_num_buckets": 32,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }


def _mpnet_weights(seed: int, root: str) -> Weights:
    draw, inner = _Draw(seed), 128
    yield f"{root}embeddings.word_embeddings.weight", draw.normal(VOCAB, HIDDEN, scale=0.5)
    positions = draw.normal(CONTEXT + 2, HIDDEN, scale=0.5)
    yield f"{root}embeddings.position_embeddings.weight", positions
    yield from draw.layer_norm(f"{root}embeddings.LayerNorm", HIDDEN)
    yield f"{root}encoder.relative_attention_bias.weight", draw.normal(32, 4, scale=1.0)
    for layer in range(2):
        at = f"{root}encoder.layer.{layer}"
        for name in "qkvo":
            yield from draw.biased_linear(f"{at}.attention.attn.{name}", HIDDEN, HIDDEN)
        yield from draw.layer_norm(f"{at}.attention.LayerNorm", HIDDEN)
        yield from draw.biased_linear(f"{at}.intermediate.dense", inner, HIDDEN)
        yield from draw.biased_linear(f"{at}.output.dense", HIDDEN, inner)
        yield from draw.layer_norm(f"{at}.output.LayerNorm", HIDDEN)

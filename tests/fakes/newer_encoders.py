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
    _write_encoder(directory, config | {"local_attention": window}, pooling)
    _write_weights(directory, _modernbert_weights(seed, ""), "float32", None)
    return directory


def write_modernbert_reranker(directory: Path, *, seed: int = 0, pooling: Pooling = "mean") -> Path:
    """Write a reranker of one label."""
    config = _modernbert_config("ModernBertForSequenceClassification")
    config |= {"classifier_pooling": pooling, "id2label": {"0": "LABEL_0"}}
    config |= {"label2id": {"LABEL_0": 0}}
    _write_encoder(directory, config, None)
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


def _write_encoder(directory: Path, config: Mapping[str, Any], pooling: Pooling | None) -> None:
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
    _write_encoder(directory, _mpnet_config("MPNetForMaskedLM"), pooling)
    _write_weights(directory, _mpnet_weights(seed, ""), "float32", None)
    return directory


def write_mpnet_reranker(directory: Path, *, seed: int = 0) -> Path:
    """Write a reranker of one label."""
    config = _mpnet_config("MPNetForSequenceClassification")
    config |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    _write_encoder(directory, config, None)
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
    _write_encoder(directory, config, "mean")
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
    _write_encoder(directory, config, pooling)
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


def write_gte(directory: Path, *, seed: int = 0, pooling: Pooling = "cls") -> Path:
    """Write a sentence encoder."""
    _write_encoder(directory, _gte_config("GteModel"), pooling)
    _write_weights(directory, _gte_weights(seed, ""), "float32", None)
    return directory


def write_gte_reranker(directory: Path, *, seed: int = 0) -> Path:
    """Write a reranker of one label."""
    _write_encoder(directory, _gte_config("GteForSequenceClassification"), None)
    weights, draw = dict(_gte_weights(seed, "gte.")), _Draw(seed + 1)
    weights |= dict(draw.biased_linear("gte.pooler.dense", HIDDEN, HIDDEN))
    weights |= dict(draw.biased_linear("classifier", 1, HIDDEN))
    _write_weights(directory, iter(weights.items()), "float32", None)
    return directory


def write_nomic(directory: Path, *, seed: int = 0, pooling: Pooling = "mean") -> Path:
    """Write a sentence encoder, in the words of the reference's own config.json."""
    config = {
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
    _write_encoder(directory, config, pooling)
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
    _write_encoder(directory, config, "mean")
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

"""Checkpoints of embedders and rerankers, small and with random weights, as they are published.

What checkpoints.py is for chat models and BERT: XLM-RoBERTa, cross-encoders, Qwen3-Embedding and
Qwen3-Reranker.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, processors

from tests.fakes.checkpoints import (
    TEXT,
    Weights,
    _bert_weights,
    _chat_tokenizer,
    _Draw,
    _wordpiece_tokenizer,
    _write_json,
    _write_sentence_modules,
    _write_weights,
    write_bert,
    write_qwen3,
)

_SIGMOID = "torch.nn.modules.activation.Sigmoid"
_IDENTITY = "torch.nn.modules.linear.Identity"
_PADDING = 1


def write_xlm_roberta(
    directory: Path,
    *,
    seed: int = 0,
    family: Literal["xlm-roberta", "roberta"] = "xlm-roberta",
    pooling: Literal["mean", "cls"] = "mean",
) -> Path:
    """Write a sentence encoder: positions begin behind the padding token's, one token type."""
    write_bert(directory, seed=seed, pooling=pooling)
    _make_roberta(directory, f"{_class(family)}Model", family, seed)
    return directory


def write_cross_encoder(
    directory: Path,
    *,
    seed: int = 0,
    family: Literal["bert", "xlm-roberta", "roberta"] = "bert",
    sigmoid: bool = True,
) -> Path:
    """Write a reranker of one label, its tensors under the name of the architecture."""
    write_bert(directory, seed=seed)
    for name in ("modules.json", "sentence_bert_config.json", "1_Pooling/config.json"):
        (directory / name).unlink()
    architecture = f"{_class(family)}ForSequenceClassification"
    if family != "bert":
        _make_roberta(directory, architecture, family, seed)
    config = _read(directory / "config.json")
    config |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    config |= {"architectures": [architecture]}
    if sigmoid:
        config["sbert_ce_default_activation_function"] = _SIGMOID
    else:
        config["sentence_transformers"] = {"activation_fn": _IDENTITY, "version": "4.0.1"}
    _write_json(directory / "config.json", config)
    _rename(directory, lambda name: f"{'bert' if family == 'bert' else 'roberta'}.{name}")
    _add(directory, _head(config["hidden_size"], family, seed + 1))
    return directory


def write_qwen3_embedding(
    directory: Path,
    *,
    seed: int = 0,
    normalize: bool = True,
    max_length: int = 128,
    window: int | None = None,
    hidden: int = 64,
    layers: int = 2,
    intermediate: int = 128,
) -> Path:
    """Write an embedder: tensors without `model.`, an end token behind each text.

    `window`: what the second layer sees.
    """
    write_qwen3(directory, seed=seed, hidden=hidden, layers=layers, intermediate=intermediate)
    if window is not None:
        config = _read(directory / "config.json")
        config |= {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 1}
        _write_json(directory / "config.json", config)
    make_last_token_embedder(directory, hidden, max_length=max_length, normalize=normalize)
    _rename(directory, lambda name: name.removeprefix("model."))
    return directory


def make_last_token_embedder(
    directory: Path, hidden: int, *, max_length: int, normalize: bool = True
) -> None:
    """What stands beside a decoder's checkpoint that is read at an end token behind each text."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    end = "<|endoftext|>"
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"$A {end}",
                pair=f"$A {end} $B:1 {end}:1",
                special_tokens=[(end, tokenizer.token_to_id(end))],
            ),
        ]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    _write_sentence_modules(directory, hidden, max_length, "lasttoken", normalize)
    _write_json(
        directory / "1_Pooling/config.json",
        {
            "word_embedding_dimension": hidden,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": False,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
            "pooling_mode_weightedmean_tokens": False,
            "pooling_mode_lasttoken": True,
            "include_prompt": True,
        },
    )
    _write_json(
        directory / "config_sentence_transformers.json",
        {
            "prompts": {"query": "Instruct: search\nQuery:", "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )


def write_qwen3_reranker(directory: Path, *, seed: int = 0, tied: bool = True) -> Path:
    """Write a chat model's checkpoint whose card says that it ranks texts."""
    write_qwen3(directory, seed=seed, tied=tied)
    tokenizer = _chat_tokenizer(512, TEXT + "yes\nno\n" * 99)
    tokenizer.save(str(directory / "tokenizer.json"))
    card = "---\nlicense: cc0-1.0\npipeline_tag: text-ranking\n---\n\nRandom weights.\n"
    (directory / "README.md").write_text(card)
    return directory


def _make_roberta(directory: Path, architecture: str, family: str, seed: int) -> None:
    config = _read(directory / "config.json")
    config |= {"architectures": [architecture], "model_type": family, "type_vocab_size": 1}
    config |= {"pad_token_id": _PADDING, "bos_token_id": 0, "eos_token_id": 2}
    config |= {"max_position_embeddings": config["max_position_embeddings"] + _PADDING + 1}
    config |= {"output_past": True, "layer_norm_eps": 1e-5}
    _write_json(directory / "config.json", config)
    _write_weights(directory, _bert_weights(config, seed), "float32", None)
    tokenizer = _wordpiece_tokenizer(config["vocab_size"], ("<s>", "<pad>", "</s>", "<unk>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    tokenizer.save(str(directory / "tokenizer.json"))


def _head(hidden: int, family: str, seed: int) -> Weights:
    draw = _Draw(seed)
    if family == "bert":
        yield from draw.biased_linear("classifier", 1, hidden)
        return
    yield from draw.biased_linear("classifier.dense", hidden, hidden)
    yield from draw.biased_linear("classifier.out_proj", 1, hidden)


def _class(family: str) -> str:
    return {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta"}[family]


def _rename(directory: Path, renamed: Callable[[str], str]) -> None:
    weights = load_file(directory / "model.safetensors")
    weights = {renamed(name): values for name, values in weights.items()}
    save_file(weights, directory / "model.safetensors", {"format": "pt"})


def _add(directory: Path, more: Weights) -> None:
    weights = load_file(directory / "model.safetensors") | dict(more)
    save_file(weights, directory / "model.safetensors", {"format": "pt"})


def _read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document

"""Real Hugging Face checkpoints, small and with random weights.

Owns the writing of checkpoint directories as their publishers lay them out: config.json,
safetensors (one file, or shards with an index), a tokenizer that is really trained, a chat
template, generation defaults. Nothing in them is specific to this project: the reference
implementations load them too. Weights have the scale of trained ones, so that the logits of
two implementations can be told apart from rounding.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, WordPiece
from tokenizers.trainers import BpeTrainer, WordPieceTrainer

DType = Literal["float32", "float16", "bfloat16"]
Weights = Iterator[tuple[str, npt.NDArray[np.float32]]]

TEXT = """\
The appliance runs open models on a machine without a network. An operator plugs in the stick,
runs the installer, and waits for the first answer. Every request is written to the audit log
before its first word is sent, and every token is counted. Which model is active? How do I add
another one, and how do I go back to the one before? Type the command, read what it prints, and
follow the hint. The sum of 17 and 25 is 42; the square of 12 is 144. {"name": "weather",
"arguments": {"city": "Oslo", "days": 3}} is a call, {"temperature": -4.5} is its result.
def first(items): return items[0] if items else None. Müller déjà vu naïve — “quoted” … 你好 世界.
user assistant system tool think call response thinking answer question because therefore
"""

_ADDED = (
    ("<|endoftext|>", True),
    ("<|im_start|>", True),
    ("<|im_end|>", True),
    ("<tool_call>", False),
    ("</tool_call>", False),
    ("<tool_response>", False),
    ("</tool_response>", False),
    ("<think>", False),
    ("</think>", False),
)

CHAT_TEMPLATE = """\
{%- macro turn(role) -%}<|im_start|>{{ role }}{{ '\\n' }}{%- endmacro -%}
{%- set first_is_system = messages and messages[0].role == 'system' -%}
{%- if tools -%}
{{- turn('system') -}}
{%- if first_is_system -%}{{- messages[0].content + '\\n\\n' -}}{%- endif -%}
{{- 'You may call these functions:\\n<tools>\\n' -}}
{%- for tool in tools -%}{{- tool | tojson + '\\n' -}}{%- endfor -%}
{{- '</tools>\\nTo call one, write\\n<tool_call>\\n{"name": NAME, "arguments": OBJECT}\\n' -}}
{{- '</tool_call><|im_end|>\\n' -}}
{%- elif first_is_system -%}
{{- turn('system') + messages[0].content + '<|im_end|>\\n' -}}
{%- endif -%}
{%- set last = namespace(question=-1) -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}{%- set last.question = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
{%- if message.role == 'user' or (message.role == 'system' and not loop.first) -%}
{{- turn(message.role) + message.content + '<|im_end|>\\n' -}}
{%- elif message.role == 'assistant' -%}
{%- set answer = message.content if message.content is string else '' -%}
{%- set reasoning = message.reasoning_content or '' -%}
{%- if not reasoning and '</think>' in answer -%}
{%- set reasoning = answer.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}
{%- set answer = answer.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{{- turn('assistant') -}}
{%- if loop.index0 > last.question and (reasoning or loop.last) -%}
{{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' -}}
{%- endif -%}
{{- answer -}}
{%- for call in message.tool_calls or [] -%}
{%- set function = call.function or call -%}
{%- if answer or not loop.first -%}{{- '\\n' -}}{%- endif -%}
{{- '<tool_call>\\n{"name": ' + function.name | tojson + ', "arguments": ' -}}
{{- function.arguments if function.arguments is string else function.arguments | tojson -}}
{{- '}\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- elif message.role == 'tool' -%}
{%- if loop.first or loop.previtem.role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}
{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' -}}
{%- if loop.last or loop.nextitem.role != 'tool' -%}{{- '<|im_end|>\\n' -}}{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- turn('assistant') -}}
{%- if enable_thinking is defined and enable_thinking is false -%}
{{- '<think>\\n\\n</think>\\n\\n' -}}
{%- endif -%}
{%- endif -%}
"""


def write_qwen3(
    directory: Path,
    *,
    seed: int = 0,
    vocab: int = 512,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    intermediate: int = 128,
    context: int = 512,
    tied: bool = True,
    dtype: DType = "float32",
    max_shard_bytes: int | None = None,
) -> Path:
    """Write a Qwen3 checkpoint into `directory` (created if absent) and return it."""
    config = _decoder_config(
        "qwen3", vocab, hidden, layers, heads, kv_heads, head_dim, intermediate, context, tied
    )
    config |= {"attention_bias": False, "use_sliding_window": False, "sliding_window": None}
    return _write_decoder(directory, config, seed, dtype, max_shard_bytes)


def write_qwen2(
    directory: Path,
    *,
    seed: int = 0,
    vocab: int = 512,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    intermediate: int = 128,
    context: int = 512,
    tied: bool = True,
    dtype: DType = "float32",
) -> Path:
    """Write a Qwen2 checkpoint: biases on q, k and v, no q/k norm."""
    config = _decoder_config(
        "qwen2", vocab, hidden, layers, heads, kv_heads, None, intermediate, context, tied
    )
    config |= {"use_sliding_window": False, "sliding_window": None}
    return _write_decoder(directory, config, seed, dtype, None)


def write_mimo(
    directory: Path,
    *,
    seed: int = 0,
    vocab: int = 512,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    intermediate: int = 128,
    context: int = 512,
    tied: bool = False,
    dtype: DType = "float32",
    predicts: int = 1,
) -> Path:
    """Write a MiMo checkpoint, without `auto_map`: Qwen2's layers and `predicts` heads."""
    config = _decoder_config(
        "mimo", vocab, hidden, layers, heads, kv_heads, head_dim, intermediate, context, tied
    )
    config |= {"attention_bias": True, "use_sliding_window": False, "sliding_window": None}
    config |= {"use_mrope": False, "max_window_layers": layers, "rope_theta": 640_000}
    config |= {"num_nextn_predict_layers": predicts}
    return _write_decoder(directory, config, seed, dtype, None)


def write_llama(
    directory: Path,
    *,
    seed: int = 0,
    vocab: int = 512,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    intermediate: int = 128,
    context: int = 512,
    tied: bool = False,
    dtype: DType = "float32",
    rope_scaling: Mapping[str, object] | None = None,
) -> Path:
    """Write a Llama checkpoint; `rope_scaling` as Llama 3.1 publishes it."""
    config = _decoder_config(
        "llama", vocab, hidden, layers, heads, kv_heads, head_dim, intermediate, context, tied
    )
    config |= {"attention_bias": False, "mlp_bias": False, "rope_scaling": rope_scaling}
    return _write_decoder(directory, config, seed, dtype, None)


def write_bert(
    directory: Path,
    *,
    seed: int = 0,
    vocab: int = 400,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    intermediate: int = 128,
    context: int = 128,
    max_length: int = 64,
    pooling: Literal["mean", "cls"] = "mean",
    normalize: bool = True,
    dtype: DType = "float32",
) -> Path:
    """Write a sentence-transformers checkpoint of the BERT architecture."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
        "hidden_act": "gelu",
        "max_position_embeddings": context,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "position_embedding_type": "absolute",
        "attention_probs_dropout_prob": 0.1,
        "hidden_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "pad_token_id": 0,
    }
    _write_json(directory / "config.json", config)
    tokenizer = _wordpiece_tokenizer(vocab)
    tokenizer.save(str(directory / "tokenizer.json"))
    _write_json(
        directory / "tokenizer_config.json",
        {"tokenizer_class": "BertTokenizer", "model_max_length": context, "do_lower_case": True},
    )
    _write_sentence_modules(directory, hidden, max_length, pooling, normalize)
    _write_licence(directory)
    _write_weights(directory, _bert_weights(config, seed), dtype, None)
    return directory


def _decoder_config(
    family: str,
    vocab: int,
    hidden: int,
    layers: int,
    heads: int,
    kv_heads: int,
    head_dim: int | None,
    intermediate: int,
    context: int,
    tied: bool,
) -> dict[str, Any]:
    architectures = {"qwen3": "Qwen3", "qwen2": "Qwen2", "llama": "Llama", "mimo": "MiMo"}
    architecture = architectures[family]
    config: dict[str, Any] = {
        "architectures": [f"{architecture}ForCausalLM"],
        "model_type": family,
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
        "max_position_embeddings": context,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "rope_scaling": None,
        "tie_word_embeddings": tied,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
    }
    if head_dim is not None:
        config["head_dim"] = head_dim
    return config


def _write_decoder(
    directory: Path, config: dict[str, Any], seed: int, dtype: DType, max_shard_bytes: int | None
) -> Path:
    write_chat_files(directory, config, dtype)
    _write_weights(directory, _decoder_weights(config, seed), dtype, max_shard_bytes)
    return directory


def write_chat_files(directory: Path, config: dict[str, Any], dtype: DType = "float32") -> None:
    """Everything of a chat model's checkpoint but its weights."""
    directory.mkdir(parents=True, exist_ok=True)
    text = config.get("text_config", config)
    tokenizer = _chat_tokenizer(text["vocab_size"])
    tokenizer.save(str(directory / "tokenizer.json"))
    end, pad = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    config |= {"torch_dtype": dtype, "bos_token_id": pad, "eos_token_id": end}
    _write_json(directory / "config.json", config)
    _write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "add_bos_token": False,
            "model_max_length": text["max_position_embeddings"],
            "chat_template": CHAT_TEMPLATE,
        },
    )
    _write_json(
        directory / "generation_config.json",
        {
            "do_sample": True,
            "temperature": 0.6,
            "top_p": 0.95,
            "top_k": 20,
            "eos_token_id": [end, pad],
            "pad_token_id": pad,
        },
    )
    _write_licence(directory, "pipeline_tag: text-generation")


def _chat_tokenizer(vocab: int, text: str = TEXT) -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab - len(_ADDED),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    for content, special in _ADDED:
        token = AddedToken(content, special=special, normalized=False)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token])
    assert tokenizer.get_vocab_size() <= vocab, f"{vocab} is too small: 256 bytes, {len(_ADDED)}"
    return tokenizer


def _wordpiece_tokenizer(
    vocab: int, names: Sequence[str] = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
) -> Tokenizer:
    unknown = next(name for name in names if "unk" in name.lower())
    tokenizer = Tokenizer(WordPiece(unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = WordPieceTrainer(vocab_size=vocab, special_tokens=list(names), show_progress=False)
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    if "[CLS]" not in names:
        return tokenizer
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def _write_sentence_modules(
    directory: Path, hidden: int, max_length: int, pooling: str, normalize: bool
) -> None:
    names = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": path,
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, (kind, path) in enumerate(names if normalize else names[:2])
    ]
    _write_json(directory / "modules.json", modules)
    _write_json(
        directory / "sentence_bert_config.json",
        {"max_seq_length": max_length, "do_lower_case": False},
    )
    (directory / "1_Pooling").mkdir(exist_ok=True)
    _write_json(
        directory / "1_Pooling/config.json",
        {
            "word_embedding_dimension": hidden,
            "pooling_mode_cls_token": pooling == "cls",
            "pooling_mode_mean_tokens": pooling == "mean",
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    )


def _decoder_weights(config: Mapping[str, Any], seed: int) -> Weights:
    draw = _Draw(seed)
    hidden = config["hidden_size"]
    yield "model.embed_tokens.weight", draw.normal(config["vocab_size"], hidden, scale=0.2)
    for layer in range(config["num_hidden_layers"]):
        yield from _layer_weights(draw, config, f"model.layers.{layer}")
    yield "model.norm.weight", draw.gain(hidden)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", draw.linear(config["vocab_size"], hidden)
    for head in range(config.get("num_nextn_predict_layers", 0)):
        at = f"model.mtp_layers.{head}"
        for name in ("token", "hidden", "final"):
            yield f"{at}.{name}_layernorm.weight", draw.gain(hidden)
        yield f"{at}.input_proj.weight", draw.linear(hidden, 2 * hidden)
        yield from _layer_weights(draw, config, at)


def _layer_weights(draw: _Draw, config: Mapping[str, Any], at: str) -> Weights:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    family = config["model_type"]
    yield f"{at}.input_layernorm.weight", draw.gain(hidden)
    for name, width in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
        yield f"{at}.self_attn.{name}_proj.weight", draw.linear(width * head_dim, hidden)
        if family in ("qwen2", "mimo"):
            yield f"{at}.self_attn.{name}_proj.bias", draw.normal(width * head_dim, scale=0.2)
        if family == "qwen3" and name != "v":
            yield f"{at}.self_attn.{name}_norm.weight", draw.gain(head_dim)
    yield f"{at}.self_attn.o_proj.weight", draw.linear(hidden, heads * head_dim)
    yield f"{at}.post_attention_layernorm.weight", draw.gain(hidden)
    yield f"{at}.mlp.gate_proj.weight", draw.linear(inner, hidden)
    yield f"{at}.mlp.up_proj.weight", draw.linear(inner, hidden)
    yield f"{at}.mlp.down_proj.weight", draw.linear(hidden, inner)


def _bert_weights(config: Mapping[str, Any], seed: int) -> Weights:
    draw = _Draw(seed)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    for name, rows in (
        ("word", config["vocab_size"]),
        ("position", config["max_position_embeddings"]),
        ("token_type", config["type_vocab_size"]),
    ):
        yield f"embeddings.{name}_embeddings.weight", draw.normal(rows, hidden, scale=0.5)
    yield from draw.layer_norm("embeddings.LayerNorm", hidden)
    for layer in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{layer}"
        for name in ("query", "key", "value"):
            yield from draw.biased_linear(f"{at}.attention.self.{name}", hidden, hidden)
        yield from draw.biased_linear(f"{at}.attention.output.dense", hidden, hidden)
        yield from draw.layer_norm(f"{at}.attention.output.LayerNorm", hidden)
        yield from draw.biased_linear(f"{at}.intermediate.dense", inner, hidden)
        yield from draw.biased_linear(f"{at}.output.dense", hidden, inner)
        yield from draw.layer_norm(f"{at}.output.LayerNorm", hidden)
    yield from draw.biased_linear("pooler.dense", hidden, hidden)


class _Draw:
    """Random weights with the scale of trained ones."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def normal(self, *shape: int, scale: float) -> npt.NDArray[np.float32]:
        return self._random.standard_normal(shape, dtype=np.float32) * np.float32(scale)

    def linear(self, rows: int, columns: int) -> npt.NDArray[np.float32]:
        return self.normal(rows, columns, scale=1.5 / columns**0.5)

    def gain(self, width: int) -> npt.NDArray[np.float32]:
        return np.float32(1) + self.normal(width, scale=0.1)

    def biased_linear(self, name: str, rows: int, columns: int) -> Weights:
        yield f"{name}.weight", self.linear(rows, columns)
        yield f"{name}.bias", self.normal(rows, scale=0.1)

    def layer_norm(self, name: str, width: int) -> Weights:
        yield f"{name}.weight", self.gain(width)
        yield f"{name}.bias", self.normal(width, scale=0.1)


_KINDS: Mapping[DType, npt.DTypeLike] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}


def _write_weights(
    directory: Path, weights: Weights, dtype: DType, max_shard_bytes: int | None
) -> None:
    """One model.safetensors, or shards of at most `max_shard_bytes` (or one tensor) each."""
    shards: list[list[str]] = []
    pending: dict[str, npt.NDArray[Any]] = {}
    size = total = 0

    def flush() -> None:
        nonlocal pending, size
        save_file(pending, directory / f"shard-{len(shards)}", {"format": "pt"})
        shards.append(list(pending))
        pending, size = {}, 0

    for name, values in weights:
        stored = values.astype(_KINDS[dtype])
        if max_shard_bytes is not None and pending and size + stored.nbytes > max_shard_bytes:
            flush()
        pending[name] = stored
        size, total = size + stored.nbytes, total + stored.nbytes
    flush()
    if len(shards) == 1:
        (directory / "shard-0").rename(directory / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for index, names in enumerate(shards):
        file = f"model-{index + 1:05}-of-{len(shards):05}.safetensors"
        (directory / f"shard-{index}").rename(directory / file)
        weight_map |= dict.fromkeys(names, file)
    _write_json(
        directory / "model.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": weight_map},
    )


def _write_licence(directory: Path, *front: str) -> None:
    """Licence and model card; `front` are more lines of the card's front matter."""
    (directory / "LICENSE").write_text("Random numbers. No rights reserved.\n")
    lines = "\n".join(("---", "license: cc0-1.0", *front, "---"))
    (directory / "README.md").write_text(f"{lines}\n\nRandom weights.\n")


def _write_json(path: Path, document: object) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")

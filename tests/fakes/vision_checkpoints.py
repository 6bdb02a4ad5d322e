"""Small checkpoints of models that read images, as their publishers lay them out.

Owns the configuration, the names of the tensors, the chat template and the image processor's
file of each family; the rest is as in checkpoints.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken

from tests.fakes import checkpoints
from tests.fakes.checkpoints import Weights
from tests.fakes.checkpoints import _Draw as Draw

VOCAB = 512
SPECIAL = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_NAMES = tuple(f"{name}_token_id" for name in ("vision_start", "vision_end", "image", "video"))
IDS = {name: VOCAB - len(SPECIAL) + at for at, name in enumerate(_NAMES)}
"""What config.json calls them -> their numbers, the last ones."""
TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif 'text' in part -%}{{- part.text -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
"""In the manner of these publishers: a list of parts, an image as one token between two."""

_WORDS = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 1024,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "use_cache": True,
}

PROCESSOR = {
    "size": {"shortest_edge": 1024, "longest_edge": 65536},
    "patch_size": 8,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "image_processor_type": "Qwen2VLImageProcessorFast",
    "processor_class": "Qwen3VLProcessor",
}
"""Of Qwen3-VL and those after it."""


def write_qwen3_vl(
    directory: Path, *, seed: int = 0, tied: bool = True, experts: Mapping[str, Any] | None = None
) -> Path:
    """Write a Qwen3-VL checkpoint, with DeepStack, into `directory` and return it."""
    kind, name = ("qwen3_vl_moe", "Qwen3VLMoe") if experts else ("qwen3_vl", "Qwen3VL")
    words = _WORDS | {
        "model_type": f"{kind}_text",
        "head_dim": 32,
        "attention_bias": False,
        "rope_theta": 10_000.0,
        "rope_scaling": {
            "rope_type": "default",
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
        "tie_word_embeddings": tied,
        **(experts or {}),
    }
    sight = {
        "model_type": kind,
        "depth": 3,
        "hidden_size": 48,
        "hidden_act": "gelu_pytorch_tanh",
        "num_heads": 3,
        "in_channels": 3,
        "intermediate_size": 96,
        "initializer_range": 0.02,
        "patch_size": 8,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 64,
        "num_position_embeddings": 36,
        "deepstack_visual_indexes": [0, 2],
    }
    config = {
        "architectures": [f"{name}ForConditionalGeneration"],
        "model_type": kind,
        "text_config": words,
        "vision_config": sight,
        "tie_word_embeddings": tied,
    }
    return _write(directory, config, words, PROCESSOR, _qwen3_vl(words, sight, tied, seed))


def write_qwen3_vl_moe(directory: Path, *, seed: int = 1, tied: bool = False) -> Path:
    """The same with experts, stacked as they are published."""
    experts = {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,  # of squares the reference could not tell rows from columns
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [1],
    }
    return write_qwen3_vl(directory, seed=seed, tied=tied, experts=experts)


def write_qwen2_5_vl(directory: Path, *, seed: int = 0, tied: bool = False) -> Path:
    """Write a Qwen2.5-VL checkpoint, with windows that images are larger than."""
    sight = {
        "model_type": "qwen2_5_vl",
        "depth": 3,
        "hidden_size": 48,
        "hidden_act": "silu",
        "num_heads": 3,
        "in_chans": 3,
        "intermediate_size": 96,
        "patch_size": 8,
        "spatial_patch_size": 8,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 32,
        "fullatt_block_indexes": [1],
        "out_hidden_size": 64,
    }
    config = _WORDS | {
        "vision_token_id": 0,
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "vision_config": sight,
        "tie_word_embeddings": tied,
        "rope_theta": 10_000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "use_sliding_window": False,
        "sliding_window": 32768,
        "max_window_layers": 70,
    }
    processor = {
        "min_pixels": 1024,
        "max_pixels": 65536,
        "patch_size": 8,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
    }
    return _write(directory, config, config, processor, _qwen2_5_vl(config, sight, tied, seed))


def _write(
    directory: Path,
    config: dict[str, Any],
    words: dict[str, Any],
    processor: dict[str, Any],
    weights: Weights,
) -> Path:
    """`words` is where the text model's keys stand in `config`."""
    directory.mkdir(parents=True, exist_ok=True)
    write_seeing_files(directory, config | IDS, words, processor, TEMPLATE)
    checkpoints._write_licence(directory)
    checkpoints._write_weights(directory, weights, "float32", None)
    return directory


def write_seeing_files(
    directory: Path,
    config: dict[str, Any],
    words: dict[str, Any],
    processor: dict[str, Any],
    template: str,
    special: Sequence[str] = SPECIAL,
) -> None:
    """Everything of a checkpoint for images but its licence and weights; `words` as above, the last
    tokens are the `special` ones."""
    tokenizer = checkpoints._chat_tokenizer(VOCAB - len(special))
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.save(str(directory / "tokenizer.json"))
    assert [tokenizer.token_to_id(token) for token in special] == list(IDS.values())
    end = tokenizer.token_to_id("<|im_end|>")
    words |= {"bos_token_id": end, "eos_token_id": end}
    checkpoints._write_json(directory / "config.json", config)
    checkpoints._write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "chat_template": template,
        },
    )
    checkpoints._write_json(directory / "generation_config.json", {"eos_token_id": end})
    checkpoints._write_json(directory / "preprocessor_config.json", processor)


def _qwen3_vl(words: Mapping[str, Any], sight: Mapping[str, Any], tied: bool, seed: int) -> Weights:
    draw = Draw(seed)
    yield from _decoder(draw, words, "model.language_model", "norms", tied)
    at, hidden = "model.visual", sight["hidden_size"]
    yield from _patch_embed(draw, sight, at, bias=True)
    yield f"{at}.pos_embed.weight", draw.normal(sight["num_position_embeddings"], hidden, scale=0.5)
    for layer in range(sight["depth"]):
        block = f"{at}.blocks.{layer}"
        yield from draw.layer_norm(f"{block}.norm1", hidden)
        yield from draw.layer_norm(f"{block}.norm2", hidden)
        yield from _attention(draw, block, hidden)
        yield from draw.biased_linear(f"{block}.mlp.linear_fc1", sight["intermediate_size"], hidden)
        yield from draw.biased_linear(f"{block}.mlp.linear_fc2", hidden, sight["intermediate_size"])
    width = hidden * sight["spatial_merge_size"] ** 2
    deep = [
        f"{at}.deepstack_merger_list.{n}" for n in range(len(sight["deepstack_visual_indexes"]))
    ]
    for name in (f"{at}.merger", *deep):
        yield from draw.layer_norm(f"{name}.norm", width if name in deep else hidden)
        yield from draw.biased_linear(f"{name}.linear_fc1", width, width)
        yield from draw.biased_linear(f"{name}.linear_fc2", sight["out_hidden_size"], width)


def _qwen2_5_vl(
    words: Mapping[str, Any], sight: Mapping[str, Any], tied: bool, seed: int
) -> Weights:
    draw = Draw(seed)
    yield from _decoder(draw, words, "model", "biases", tied)
    at, hidden, inner = "visual", sight["hidden_size"], sight["intermediate_size"]
    yield from _patch_embed(draw, sight, at, bias=False)
    for layer in range(sight["depth"]):
        block = f"{at}.blocks.{layer}"
        yield f"{block}.norm1.weight", draw.gain(hidden)
        yield f"{block}.norm2.weight", draw.gain(hidden)
        yield from _attention(draw, block, hidden)
        yield from draw.biased_linear(f"{block}.mlp.gate_proj", inner, hidden)
        yield from draw.biased_linear(f"{block}.mlp.up_proj", inner, hidden)
        yield from draw.biased_linear(f"{block}.mlp.down_proj", hidden, inner)
    width = hidden * sight["spatial_merge_size"] ** 2
    yield f"{at}.merger.ln_q.weight", draw.gain(hidden)
    yield from draw.biased_linear(f"{at}.merger.mlp.0", width, width)
    yield from draw.biased_linear(f"{at}.merger.mlp.2", sight["out_hidden_size"], width)


def _patch_embed(draw: Draw, sight: Mapping[str, Any], at: str, *, bias: bool) -> Weights:
    hidden, patch, frames = sight["hidden_size"], sight["patch_size"], sight["temporal_patch_size"]
    shape = (hidden, 3, frames, patch, patch)
    yield f"{at}.patch_embed.proj.weight", draw.normal(*shape, scale=0.05)
    if bias:
        yield f"{at}.patch_embed.proj.bias", draw.normal(hidden, scale=0.1)


def _attention(draw: Draw, block: str, hidden: int) -> Weights:
    yield from draw.biased_linear(f"{block}.attn.qkv", 3 * hidden, hidden)
    yield from draw.biased_linear(f"{block}.attn.proj", hidden, hidden)


def _decoder(
    draw: Draw, words: Mapping[str, Any], root: str, kind: Literal["norms", "biases"], tied: bool
) -> Weights:
    hidden, inner = words["hidden_size"], words["intermediate_size"]
    heads, kv_heads = words["num_attention_heads"], words["num_key_value_heads"]
    size = words.get("head_dim") or hidden // heads
    yield f"{root}.embed_tokens.weight", draw.normal(words["vocab_size"], hidden, scale=0.2)
    for layer in range(words["num_hidden_layers"]):
        at = f"{root}.layers.{layer}"
        yield f"{at}.input_layernorm.weight", draw.gain(hidden)
        for name, width in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            yield f"{at}.self_attn.{name}_proj.weight", draw.linear(width * size, hidden)
            if kind == "biases":
                yield f"{at}.self_attn.{name}_proj.bias", draw.normal(width * size, scale=0.2)
            elif name != "v":
                yield f"{at}.self_attn.{name}_norm.weight", draw.gain(size)
        yield f"{at}.self_attn.o_proj.weight", draw.linear(hidden, heads * size)
        yield f"{at}.post_attention_layernorm.weight", draw.gain(hidden)
        if "num_experts" in words and layer not in words["mlp_only_layers"]:
            yield from _experts(draw, words, f"{at}.mlp")
            continue
        for name in ("gate", "up"):
            yield f"{at}.mlp.{name}_proj.weight", draw.linear(inner, hidden)
        yield f"{at}.mlp.down_proj.weight", draw.linear(hidden, inner)
    yield f"{root}.norm.weight", draw.gain(hidden)
    if not tied:
        yield "lm_head.weight", draw.linear(words["vocab_size"], hidden)


def _experts(draw: Draw, words: Mapping[str, Any], at: str) -> Weights:
    """A router, and all experts' gates and ups, and what follows, in a tensor each."""
    hidden, inner, count = (
        words["hidden_size"],
        words["moe_intermediate_size"],
        words["num_experts"],
    )
    yield f"{at}.gate.weight", draw.linear(count, hidden)
    both = draw.normal(count, hidden, 2 * inner, scale=1.5 / hidden**0.5)
    yield f"{at}.experts.gate_up_proj", both
    yield f"{at}.experts.down_proj", draw.normal(count, inner, hidden, scale=1.5 / inner**0.5)

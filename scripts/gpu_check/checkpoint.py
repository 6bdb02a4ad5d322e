"""Checkpoints of published shapes with random weights, written as fast as the disk takes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from bench_peers.checkpoint import FULL, TINY, Shape, make_checkpoint

LARGE = Shape("qwen3-8b", 151_936, 151_643, 4096, 36, 32, 8, 128, 12_288)
CUT = replace(LARGE, name="qwen3-8b-12", layers=12)
"""A third of the large one, for machines with little time or disk: layers cost the same."""
SHAPES = {shape.name: shape for shape in (TINY, FULL, LARGE, CUT)}
_SHARD = 2 << 30


def write_checkpoint(shape: Shape, directory: Path, *, tied: bool) -> None:
    """Write the checkpoint: config, tokenizer and template as everybody's, weights of our own."""
    small = replace(shape, hidden=16, layers=1, heads=1, kv_heads=1, head_dim=16, intermediate=16)
    make_checkpoint(small, directory)
    (directory / "model.safetensors").unlink()
    config = directory / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | _config(shape, tied), indent=2))
    index: dict[str, str] = {}
    shard: dict[str, npt.NDArray[np.generic]] = {}
    count = 0
    for name, sizes in _tensors(shape, tied):
        if sum(tensor.nbytes for tensor in shard.values()) > _SHARD:
            count += 1
            _save(shard, directory, count, index)
        shard[name] = _random(name, sizes)
    _save(shard, directory, count + 1, index)
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )


def _config(shape: Shape, tied: bool) -> dict[str, object]:
    return {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate,
        "tie_word_embeddings": tied,
    }


def _save(
    shard: dict[str, npt.NDArray[np.generic]], directory: Path, number: int, index: dict[str, str]
) -> None:
    file = f"model-{number:05}.safetensors"
    save_file(shard, directory / file, metadata={"format": "pt"})
    index |= dict.fromkeys(shard, file)
    shard.clear()


def _tensors(shape: Shape, tied: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and sizes as Qwen3's publisher has them."""
    hidden, inner = shape.hidden, shape.intermediate
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield "model.embed_tokens.weight", (shape.vocab, hidden)
    for layer in range(shape.layers):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", (hidden,)
        yield f"{at}.post_attention_layernorm.weight", (hidden,)
        for name in ("q", "k"):
            yield f"{at}.self_attn.{name}_norm.weight", (shape.head_dim,)
        yield f"{at}.self_attn.q_proj.weight", (queries, hidden)
        yield f"{at}.self_attn.k_proj.weight", (keys, hidden)
        yield f"{at}.self_attn.v_proj.weight", (keys, hidden)
        yield f"{at}.self_attn.o_proj.weight", (hidden, queries)
        yield f"{at}.mlp.gate_proj.weight", (inner, hidden)
        yield f"{at}.mlp.up_proj.weight", (inner, hidden)
        yield f"{at}.mlp.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)
    if not tied:
        yield "lm_head.weight", (shape.vocab, hidden)


def _random(name: str, sizes: tuple[int, ...]) -> npt.NDArray[np.generic]:
    """bfloat16 of either sign between 2^-6 and 2^-5, about as large as trained weights; gains 1."""
    if len(sizes) == 1:
        return np.ones(sizes, ml_dtypes.bfloat16)
    seed = int.from_bytes(name.encode()[-8:], "little") ^ len(name)
    bits = np.random.default_rng(seed).integers(0, 1 << 16, sizes, np.uint16)
    bits &= 0x807F
    bits |= 0x3C80
    return bits.view(ml_dtypes.bfloat16)

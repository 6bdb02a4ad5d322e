"""Checkpoints of published shapes with random weights, written as fast as the disk takes them.

Eight billion draws take minutes, so one random block is drawn and every tensor is that block over
and over, from a place of its own on. The block's length divides no row's: no two rows are equal.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench_peers.checkpoint import FULL, TINY, Shape, make_checkpoint

LARGE = Shape("qwen3-8b", 151_936, 151_643, 4096, 36, 32, 8, 128, 12_288)
CUT = replace(LARGE, name="qwen3-8b-12", layers=12)
"""A third of the large one, for machines with little time or disk: layers cost the same."""
SHAPES = {shape.name: shape for shape in (TINY, FULL, LARGE, CUT)}
_SHARD = 1 << 30
_BLOCK = (1 << 24) - 3
"""Elements, a prime."""
_ONE = b"\x80\x3f"
_ITEM = 2
_Tensor = tuple[str, tuple[int, ...]]


def write_checkpoint(shape: Shape, directory: Path, *, tied: bool) -> None:
    """Write the checkpoint: config, tokenizer and template as everybody's, weights of our own."""
    small = replace(shape, hidden=16, layers=1, heads=1, kv_heads=1, head_dim=16, intermediate=16)
    make_checkpoint(small, directory)
    (directory / "model.safetensors").unlink()
    config = directory / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | _config(shape, tied), indent=2))
    shards = list(_shards(_tensors(shape, tied)))
    block = _block()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        paths = [directory / f"model-{number:05}.safetensors" for number in range(len(shards))]
        list(pool.map(_save, paths, shards, [block] * len(shards)))
    index = {
        name: path.name for path, shard in zip(paths, shards, strict=True) for name, _ in shard
    }
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


def _shards(tensors: Iterator[_Tensor]) -> Iterator[list[_Tensor]]:
    """Runs of tensors, each a file's worth."""
    shard: list[_Tensor] = []
    size = 0
    for tensor in tensors:
        shard.append(tensor)
        size += _ITEM * math.prod(tensor[1])
        if size >= _SHARD:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def _save(path: Path, shard: Sequence[_Tensor], block: bytes) -> None:
    """Write one file; the format is that of installer/checkpoint/safetensors_file.py."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, sizes in shard:
        end = at + _ITEM * math.prod(sizes)
        header[name] = {"dtype": "BF16", "shape": sizes, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb", buffering=0) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, sizes in shard:
            for piece in _random(name, sizes, memoryview(block)):
                file.write(piece)


def _tensors(shape: Shape, tied: bool) -> Iterator[_Tensor]:
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


def _block() -> bytes:
    """bfloat16 of either sign between 2^-6 and 2^-5, about as large as trained weights."""
    bits = np.random.default_rng(20_261_127).integers(0, 1 << 16, _BLOCK, np.uint16)
    bits &= 0x807F
    bits |= 0x3C80
    return bits.tobytes()


def _random(name: str, sizes: tuple[int, ...], block: memoryview) -> Iterator[memoryview | bytes]:
    """The bytes of a tensor: of a matrix the block over and over; gains are 1."""
    left = _ITEM * math.prod(sizes)
    if len(sizes) == 1:
        yield _ONE * sizes[0]
        return
    at = _ITEM * (zlib.crc32(name.encode()) % _BLOCK)
    while left:
        piece = block[at : at + left]
        left -= len(piece)
        at = 0
        yield piece

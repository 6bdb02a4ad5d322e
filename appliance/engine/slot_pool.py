"""The memory of the key-value cache: one array a layer for keys, one for values.

    keys[layer]    float32 or int8 [slots, kv_heads, capacity, head_dim]
    values[layer]  the same

What an integer stands for is the graphs' knowledge.

The graph reads and writes these arrays in place. They never move while the pool lives, so
bindings to them can be kept.
"""

from __future__ import annotations

import math
import mmap
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from appliance.bundle.specs import DecoderSpec
from appliance.engine.cache_budget import CacheShape
from appliance.scheduler import Move

Array = npt.NDArray[np.float32]
CacheArray = npt.NDArray[np.float32] | npt.NDArray[np.int8]


class SlotPool:
    """Slots of one model."""

    def __init__(self, decoder: DecoderSpec, shape: CacheShape) -> None:
        sizes = (shape.slots, decoder.kv_heads, shape.capacity, decoder.head_dim)
        self.shape = shape
        dtype = np.dtype(np.int8 if decoder.cache == "int8" else np.float32)
        self.keys = [zeros(sizes, dtype) for _ in range(decoder.layers)]
        self.values = [zeros(sizes, dtype) for _ in range(decoder.layers)]
        assert sum(a.nbytes for a in self.keys + self.values) == shape.total_bytes

    def move(self, move: Move) -> None:
        """Copy or exchange the first `move.tokens` positions of two slots, in every layer."""
        for array in (*self.keys, *self.values):
            move_within(array, move, move.tokens)


def move_within(array: npt.NDArray[Any], move: Move, count: int) -> None:
    """Copy or exchange the first `count` of two slots of array [slots, heads, ...]."""
    source, target = array[move.source, :, :count], array[move.target, :, :count]
    if move.exchange:
        kept = target.copy()
        target[:] = source
        source[:] = kept
    else:
        target[:] = source


def zeros(sizes: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Zeros in memory that becomes resident page by page, as positions are written.

    Not np.zeros: it asks for huge pages, and a slot's heads are so far apart that a few hundred
    tokens would make most of the slot resident (8 GB instead of 0.5, measured).
    """
    memory = mmap.mmap(-1, math.prod(sizes) * dtype.itemsize)
    with suppress(OSError):  # a kernel built without huge pages refuses the advice
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype).reshape(sizes)

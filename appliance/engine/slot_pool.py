"""The memory of the key-value cache: one array a layer for keys, one for values.

    keys[layer]    float32 or int8 [slots, kv_heads, capacity, head_dim]
    values[layer]  the same

Heads may differ from layer to layer. Layers that keep a running state have another memory:
recurrent_pool.py. What an integer stands for is the graphs' knowledge.

The graph reads and writes these arrays in place. They never move while the pool lives, so
bindings to them can be kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from appliance.bundle.specs import DecoderSpec, RecurrentSpec
from appliance.engine.cache_budget import CacheShape
from appliance.engine.recurrent_pool import RecurrentPool
from appliance.engine.zeros import zeros
from appliance.scheduler import Move

Array = npt.NDArray[np.float32]
CacheArray = npt.NDArray[np.float32] | npt.NDArray[np.int8]


class SlotPool:
    """Slots of one model."""

    def __init__(self, decoder: DecoderSpec, shape: CacheShape) -> None:
        self.shape = shape
        dtype = np.dtype(np.int8 if decoder.cache == "int8" else np.float32)
        sizes = [
            (shape.slots, heads.kv_heads, shape.capacity, heads.head_dim)
            for heads in decoder.layer_heads
        ]
        self.keys = [zeros(size, dtype) for size in sizes]
        self.values = [zeros(size, dtype) for size in sizes]
        self.recurrent: RecurrentPool | None = None
        if isinstance(decoder.recurrent, RecurrentSpec):
            self.recurrent = RecurrentPool(decoder.recurrent, shape)
        states = 0 if self.recurrent is None else self.recurrent.nbytes
        assert sum(a.nbytes for a in self.keys + self.values) + states == shape.total_bytes

    def move(self, move: Move) -> None:
        """Copy or exchange the first `move.tokens` positions of two slots, in every layer."""
        if move.source != move.target:
            for array in (*self.keys, *self.values):
                move_within(array, move, move.tokens)
        if self.recurrent is not None:
            self.recurrent.move(move)


def move_within(array: npt.NDArray[Any], move: Move, count: int) -> None:
    """Copy or exchange the first `count` of two slots of array [slots, heads, ...]."""
    source, target = array[move.source, :, :count], array[move.target, :, :count]
    if move.exchange:
        kept = target.copy()
        target[:] = source
        source[:] = kept
    else:
        target[:] = source

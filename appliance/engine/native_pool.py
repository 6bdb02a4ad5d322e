"""The memory of the key-value cache as the native operators read it.

    keys[layer]    uint8 [slots, kv_heads, capacity / 16, head_dim / 4, 16 * 4], 128 added to each
    values[layer]  int8 [slots, kv_heads, capacity, head_dim]

Sixteen keys lie side by side, so that one instruction multiplies a query with all of them. The
arrays never move while the pool lives.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from appliance.bundle.specs import DecoderSpec
from appliance.engine.cache_budget import CacheShape
from appliance.engine.slot_pool import move_within
from appliance.engine.zeros import zeros
from appliance.native import contract
from appliance.scheduler import Move


class NativePool:
    """Slots of one model; `shape` says how many tokens each may hold."""

    def __init__(self, decoder: DecoderSpec, shape: CacheShape) -> None:
        assert shape.capacity % contract.LANES == 0, "slots of whole blocks"
        self.shape = shape
        heads, size = (shape.slots, decoder.kv_heads), decoder.head_dim
        blocks = shape.capacity // contract.LANES
        together = contract.LANES * contract.DEPTH
        keys = (*heads, blocks, size // contract.DEPTH, together)
        values = (*heads, shape.capacity, size)
        self.keys = [zeros(keys, np.dtype(np.uint8)) for _ in range(decoder.layers)]
        self.values = [zeros(values, np.dtype(np.int8)) for _ in range(decoder.layers)]

    def move(self, move: Move) -> None:
        """Copy or exchange the first `move.tokens` positions of two slots, in every layer.

        Keys move in whole blocks: those behind the last position mean nothing.
        """
        blocks = -(-move.tokens // contract.LANES)
        for array in self.keys:
            move_within(array, move, blocks)
        for array in self.values:
            move_within(array, move, move.tokens)


def whole_blocks(shape: CacheShape) -> CacheShape:
    """`shape` with slots that end where a block of keys does."""
    return replace(shape, capacity=shape.capacity // contract.LANES * contract.LANES)

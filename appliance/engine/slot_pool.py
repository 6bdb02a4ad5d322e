"""The memory of the key-value cache: one array a layer for keys, one for values.

    keys[layer]    float32 [slots, kv_heads, capacity, head_dim]
    values[layer]  the same

The graph reads and writes these arrays in place. They never move while the pool lives, so
bindings to them can be kept. The operating system backs a page when it is first written, so
resident memory follows what sequences use.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from appliance.bundle.manifest import DecoderSpec
from appliance.engine.cache_budget import CacheShape
from appliance.scheduler import Move

Array = npt.NDArray[np.float32]


class SlotPool:
    """Slots of one model."""

    def __init__(self, decoder: DecoderSpec, shape: CacheShape) -> None:
        sizes = (shape.slots, decoder.kv_heads, shape.capacity, decoder.head_dim)
        self.shape = shape
        self.keys = [np.zeros(sizes, np.float32) for _ in range(decoder.layers)]
        self.values = [np.zeros(sizes, np.float32) for _ in range(decoder.layers)]
        assert sum(a.nbytes for a in self.keys + self.values) == shape.total_bytes

    def move(self, move: Move) -> None:
        """Copy or exchange the first `move.tokens` positions of two slots, in every layer."""
        for array in (*self.keys, *self.values):
            source = array[move.source, :, : move.tokens]
            target = array[move.target, :, : move.tokens]
            if move.exchange:
                kept = target.copy()
                target[:] = source
                source[:] = kept
            else:
                target[:] = source

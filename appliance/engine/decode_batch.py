"""One decode batch: the first slots of the pool, a few tokens of each.

Owns the arrays bound for a batch of one size, made once and kept, since the pool never moves.
"""

from __future__ import annotations

from collections.abc import Sequence as Listing

import numpy as np
import onnxruntime as ort

from appliance.engine.binding import GraphBinding, Lengths
from appliance.engine.slot_pool import Array, SlotPool


class DecodeBatch:
    """The first `batch` slots bound as past and present, `width` tokens each at most."""

    def __init__(
        self, session: ort.InferenceSession, pool: SlotPool, batch: int, width: int
    ) -> None:
        self.binding = GraphBinding(session, batch, width)
        self.binding.set_width(width)
        self.binding.bind_slots(pool, slice(0, batch), extended=True)
        if pool.recurrent is not None:
            self.binding.bind_states(pool.recurrent, slice(0, batch), slice(0, batch))
        self._width = width
        self._counts: Lengths = np.ones(batch, np.int32)
        if "query_seqlens" in {entry.name for entry in session.get_inputs()}:
            self.binding.bind_input("query_seqlens", self._counts)
        else:
            assert width == 1, "this graph takes one token of each sequence"

    def run(self, starts: Listing[int], tokens: Listing[Listing[int]], logits: Array) -> None:
        binding, row = self.binding, 0
        for index, (start, new) in enumerate(zip(starts, tokens, strict=True)):
            count = len(new)
            binding.input_ids[index, :count] = new
            binding.seqlens_k[index] = start + count - 1
            self._counts[index] = count
            first = index * self._width
            binding.rows[row : row + count] = np.arange(first, first + count)
            row += count
        binding.total[...] = binding.seqlens_k.max() + 1
        assert row == len(logits), "a row for each token"
        binding.run(logits)

"""How much of a prompt one run computes where heads are wider than fused kernels take.

The kernel for these stores all products of queries and keys of a run in the device's memory
(docs/decisions/0307-gemma-4-on-a-gpu.md), so far into a text a piece of a prompt is computed in
several runs. Owns how long they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from appliance.bundle.specs import DecoderSpec
from appliance.compiler.memory import table_bytes

_PRODUCT_BYTES = 8
"""Of one: as it is, in 32 bits, and what the softmax makes of it, for which as much is taken."""


class WideHeads:
    """Of a decoder whose slots have `capacity` positions; a piece of a prompt has `most` tokens.

    Attributes:
        longest: where the largest run begins, and how many tokens it has.
    """

    def __init__(self, decoder: DecoderSpec, capacity: int, most: int) -> None:
        assert isinstance(decoder.query_heads, int), "the manifest was checked"
        # Queries and what they read are stored once more, as much as so many products.
        self._beside = decoder.head_dim // 2
        room = table_bytes(decoder) // (_PRODUCT_BYTES * decoder.query_heads)
        count = min(most, capacity, max(1, room // (capacity + self._beside)))
        self.longest = capacity - count, count
        self._products = count * (capacity + self._beside)

    def pieces(self, start: int, count: int) -> Iterator[tuple[int, int]]:
        """Where each run of `count` tokens from position `start` on begins, and its tokens: none
        takes more memory than the largest, which the device keeps for all."""
        end = start + count
        while start < end:
            before = start + self._beside
            fit = (math.isqrt(before**2 + 4 * self._products) - before) // 2
            taken = min(end - start, max(1, fit))
            yield start, taken
            start += taken


def wide_heads(decoder: DecoderSpec, capacity: int, most: int) -> WideHeads | None:
    """None where no head is too wide."""
    return WideHeads(decoder, capacity, most) if table_bytes(decoder) else None

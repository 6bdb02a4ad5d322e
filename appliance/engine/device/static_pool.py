"""A cache whose slots all have the same, one of several, numbers of positions.

Attention over a static cache costs what all of it costs, however little is in it, and an engine of
TensorRT is built for one capacity (docs/decisions/0167-steps-over-a-static-cache.md). So slots
are laid out as short as what they hold allows, and all anew when one of them outgrows that:

    1,024 positions    |slot 0|slot 1|slot 2|
    4,096 positions    |slot 0      |slot 1      |slot 2      |
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from appliance.bundle.specs import DecoderSpec
from appliance.engine.cache_budget import CacheShape
from appliance.engine.device.device import Device
from appliance.engine.device.pool import DevicePool
from appliance.scheduler import Move

_ROOM = 2
"""Slots become shorter when the longest would fill no more than one part in so many."""


class StaticPool(DevicePool):
    """Slots of one model, for the longest of which `capacities` has `shape.capacity`."""

    def __init__(
        self, decoder: DecoderSpec, shape: CacheShape, device: Device, capacities: Iterable[int]
    ) -> None:
        super().__init__(decoder, shape, device)
        self._capacities = sorted(capacities)
        assert self._capacities[-1] == shape.capacity
        self._held = [0] * shape.slots
        """Positions of each slot that may be read again."""
        self.capacity = self._capacities[0]

    def move(self, move: Move) -> None:
        super().move(move)
        held = self._held
        if move.exchange:
            held[move.source], held[move.target] = held[move.target], held[move.source]
        else:
            held[move.target] = move.tokens

    def hold(self, ends: Sequence[tuple[int, int]]) -> None:
        """Make room for `ends`: slots, and the positions that each will hold."""
        longest = max([*self._held, *(end for _, end in ends)])
        if longest > self.capacity:
            self._change(next(c for c in self._capacities if c >= longest))
        for slot, end in ends:
            self._held[slot] = end
        longest = max(self._held)
        shorter = [c for c in self._capacities if _ROOM * longest <= c < self.capacity]
        if shorter:
            self._change(shorter[0])

    def _change(self, capacity: int) -> None:
        """Lay all slots out anew. Between two layouts no slot overlaps one that is still to come:

        longer slots move up from the last one on, shorter ones down from the first.
        """
        before, self.capacity = self.capacity, capacity
        order = range(len(self._held))
        slots = reversed(order) if capacity > before else order
        with self._spare(max(self._held)) as spare:
            for slot in slots:
                if not self._held[slot]:
                    continue
                for block in self._blocks.values():
                    # By way of a spare block, since the slot may overlap itself.
                    length = self._held[slot] * block.row
                    rows = (block.heads, length)
                    source, target = block.slot(slot, before), block.slot(slot, capacity)
                    self._copy(spare, source, (length, before * block.row), rows)
                    self._copy(target, spare, (capacity * block.row, length), rows)

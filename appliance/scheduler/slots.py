"""Who owns which cache slot.

    slot       0 1 2 3 4 5 6 7
               D D D D P P . .      D decoding, P in prefill, . free
               |------|---|---|
               decoding  first_free

The decode kernel reads one contiguous block of slots from 0, so both borders are kept tight:
when a sequence leaves, the last of its kind moves into the hole. What has to be copied for that
is written down as moves; nothing here touches memory.
"""

from __future__ import annotations

from appliance.scheduler.plan import Move
from appliance.scheduler.sequence import Phase, Sequence


class SlotTable:
    """Ownership of `count` slots; moves pile up until `take_moves`."""

    def __init__(self, count: int) -> None:
        assert count > 0
        self.count = count
        self._decoding: list[Sequence] = []
        self._prefilling: list[Sequence] = []
        self._moves: list[Move] = []

    @property
    def decoding(self) -> tuple[Sequence, ...]:
        """Decoding sequences; the i-th is in slot i."""
        return tuple(self._decoding)

    @property
    def prefilling(self) -> tuple[Sequence, ...]:
        """Sequences in prefill, in slot order."""
        return tuple(self._prefilling)

    @property
    def used(self) -> int:
        return len(self._decoding) + len(self._prefilling)

    @property
    def free(self) -> int:
        return self.count - self.used

    def claim(self, sequence: Sequence) -> None:
        """Give a waiting sequence the first free slot."""
        assert self.free > 0
        assert sequence.phase is Phase.WAITING
        sequence.slot = self.used
        sequence.phase = Phase.PREFILL
        self._prefilling.append(sequence)

    def promote(self, sequence: Sequence) -> None:
        """The prompt is computed: the sequence joins the decode block."""
        border = len(self._decoding)
        first = self._prefilling[0]
        if sequence is not first:
            self._exchange(sequence, first)
        assert sequence.slot == border
        self._prefilling.pop(0)
        self._decoding.append(sequence)
        sequence.phase = Phase.DECODE

    def release(self, sequence: Sequence) -> None:
        """The sequence leaves; the last decoding and the last prefilling one close the holes."""
        hole = sequence.slot
        assert hole is not None
        if sequence.phase is Phase.DECODE:
            hole = self._close(self._decoding, hole, 0)
        if self._prefilling:
            offset = len(self._decoding)
            if sequence.phase is Phase.DECODE:
                # The decode block shrank: its old last slot now is the prefill block's first.
                self._shift_last_prefill(hole)
            else:
                self._close(self._prefilling, hole, offset)
        sequence.slot = None
        sequence.phase = Phase.FINISHED

    def take_moves(self) -> tuple[Move, ...]:
        """The copies that are due before the next computation, in order."""
        moves = tuple(self._moves)
        self._moves.clear()
        return moves

    def check_integrity(self) -> None:
        """Free and used slots add up, and every owner knows the slot that it owns."""
        assert self.free + self.used == self.count
        assert self.free >= 0
        owners = self._decoding + self._prefilling
        assert [sequence.slot for sequence in owners] == list(range(self.used))
        assert all(sequence.phase is Phase.DECODE for sequence in self._decoding)
        assert all(sequence.phase is Phase.PREFILL for sequence in self._prefilling)
        for move in self._moves:
            assert 0 <= move.source < self.count
            assert 0 <= move.target < self.count

    def _close(self, block: list[Sequence], hole: int, offset: int) -> int:
        """Fill `hole` with the last of `block`, which starts at slot `offset`; the new hole."""
        last = block.pop()
        new_hole = offset + len(block)
        if new_hole != hole:
            self._move(last, hole)
            block[hole - offset] = last
        return new_hole

    def _shift_last_prefill(self, hole: int) -> None:
        """Keep the prefill block tight against the decode block, by one move."""
        last = self._prefilling.pop()
        self._move(last, hole)
        self._prefilling.insert(0, last)

    def _move(self, sequence: Sequence, target: int) -> None:
        assert sequence.slot is not None
        if sequence.computed:
            self._moves.append(Move(sequence.slot, target, sequence.computed))
        sequence.slot = target

    def _exchange(self, one: Sequence, other: Sequence) -> None:
        assert one.slot is not None
        assert other.slot is not None
        tokens = max(one.computed, other.computed)
        self._moves.append(Move(one.slot, other.slot, tokens, exchange=True))
        one.slot, other.slot = other.slot, one.slot
        places = self._prefilling
        i, j = places.index(one), places.index(other)
        places[i], places[j] = places[j], places[i]

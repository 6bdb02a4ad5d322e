"""Which tokens are in which cache slot, and who owns them.

    slot       0 1 2 3 4 5 6 7
               D D D D c P c .      D decoding, P in prefill, c cached prefix, . free
               |------|
               decoding

    slot 2     t t t t t t t t t t . . . .    capacity
               |---- computed ----|           its owner's, while there is one
               |-block-|-block-|              in the index: others may copy these
    slot 4     t t t t t t t t t
               |-block-|-block-|              nobody's: kept until the room is needed

A decode kernel that reads one contiguous block of slots from 0 has them `gathered`: before each
step the decoding sequences outside of that block change places with what is in its holes.
Everything behind may lie in any order; for a kernel that is told its slots, everything may.

What a sequence leaves behind stays as a cached prefix; the least recently used one gives way when
a slot is needed and none is free. So free + used + cached = total, always.

What has to be copied for all that is written down as moves; nothing here touches memory.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from appliance.scheduler.plan import Move
from appliance.scheduler.prefix import Match, Prefix, PrefixIndex, latest
from appliance.scheduler.promises import Promises
from appliance.scheduler.sequence import Phase, Sequence
from appliance.scheduler.snapshots import Snapshots, places


class SlotTable:
    """Contents and ownership of `count` slots; moves pile up until `take_moves`.

    Args:
        count: number of slots.
        reuse_block: shorter prefixes are not reused.
        anew: a prefix is reused but for so many of its last tokens.
        gathered: the decoding sequences have to lie in the first slots.
        snapshots: that each slot's content may have, of a running state; 0: there is none, and a
            prefix can be cut anywhere.
    """

    def __init__(
        self,
        count: int,
        reuse_block: int,
        *,
        anew: int = 0,
        gathered: bool = True,
        snapshots: int = 0,
    ) -> None:
        assert count > 0
        self.count = count
        self._gathered = gathered
        self._block = reuse_block
        self._held: list[Prefix | None] = [None] * count
        self._decoding: list[Sequence] = []
        self._prefilling: list[Sequence] = []
        self._index = PrefixIndex(reuse_block, anew)
        self._promises = Promises(reuse_block, anew, anywhere=not snapshots)
        self._moves: list[Move] = []
        self._each = snapshots
        self._numbers = list(range(count * snapshots))
        """Of snapshots that no slot's content may have."""
        self._clock = 0

    @property
    def decoding(self) -> tuple[Sequence, ...]:
        """Decoding sequences; if they are gathered, the i-th is in slot i after `arrange`."""
        return tuple(self._decoding)

    @property
    def prefilling(self) -> tuple[Sequence, ...]:
        """Sequences in prefill, in the order in which they got their slots."""
        return tuple(self._prefilling)

    @property
    def running(self) -> tuple[Sequence, ...]:
        """Everyone who has a slot."""
        return self.decoding + self.prefilling

    @property
    def used(self) -> int:
        return len(self._decoding) + len(self._prefilling)

    @property
    def cached(self) -> int:
        """Slots that hold a prefix and no running sequence."""
        return sum(prefix is not None and prefix.owner is None for prefix in self._held)

    @property
    def available(self) -> int:
        """Slots that a waiting sequence may have: free ones and cached prefixes."""
        return self.count - self.used

    def match(self, sequence: Sequence) -> Match | None:
        """The longest prefix of `sequence` that some slot holds now."""
        if not self._each:
            return self._index.longest(sequence)
        return latest(
            (match, [*_snapshots(match.prefix).at, match.prefix.computed])
            for match in self._index.sharing(sequence)
        )

    def promise(self, sequence: Sequence) -> Match | None:
        """The longest prefix of `sequence` that will be held when today's prompts are computed."""
        return self._promises.longest(sequence)

    def claim(self, sequence: Sequence, match: Match | None) -> None:
        """Give a waiting sequence a slot, and what `match` (just looked up) has of its tokens."""
        assert self.available > 0
        assert sequence.phase is Phase.WAITING
        tokens = match.tokens if match is not None else 0
        sequence.slot = self._room(match)
        held = self._held[sequence.slot]
        stops = self._places(sequence, tokens)
        if match is not None:
            self._bring(match, sequence.slot, held)
        if held is not None:
            self._index.drop(held)
            if match is None or match.prefix is not held:
                self._let_go(held)
        self._start(sequence, tokens, held if match and match.prefix is held else None, stops)

    def advance(self, sequence: Sequence, count: int) -> None:
        """`count` more of its tokens are in its slot."""
        prefix = self._content(sequence)
        prefix.computed += count
        sequence.computed = prefix.computed
        sequence.reached = max(sequence.reached, prefix.computed)
        self._index.note(prefix)

    def stops(self, sequence: Sequence) -> Iterable[int]:
        """The places in its prompt that get snapshots, in order."""
        return self._promises.stops(sequence)

    def snapshot(self, sequence: Sequence, stop: int) -> int:
        """The number under which the step that is planned sets its state at `stop` aside."""
        return _snapshots(self._content(sequence)).plan(stop)

    def promote(self, sequence: Sequence) -> None:
        """All of its tokens are computed: the sequence decodes from the next step on."""
        self._leave_prefill(sequence)
        self._decoding.append(sequence)
        sequence.phase = Phase.DECODE

    def release(self, sequence: Sequence) -> None:
        """The sequence leaves; its tokens stay as a cached prefix, if they make a block."""
        prefix = self._content(sequence)
        if sequence.phase is Phase.DECODE:
            self._decoding.remove(sequence)
        else:
            self._leave_prefill(sequence)
        prefix.owner = None
        prefix.used = self._tick()
        if not prefix.indexed:
            self._let_go(prefix)
            self._held[prefix.slot] = None
        sequence.slot = None
        sequence.phase = Phase.FINISHED

    def forget(self, namespace: Hashable) -> None:
        """Free what is cached for `namespace`: nobody can ask for it any more."""
        for slot, prefix in enumerate(self._held):
            if prefix is not None and prefix.owner is None and prefix.namespace == namespace:
                self._index.drop(prefix)
                self._let_go(prefix)
                self._held[slot] = None

    def arrange(self) -> None:
        """Bring the decoding sequences into slots 0 to D-1, if they are to be gathered."""
        if not self._gathered:
            return
        count = len(self._decoding)
        strays = [s for s in self._decoding if s.slot is not None and s.slot >= count]
        if strays:
            strays.reverse()
            for slot in range(count):
                held = self._held[slot]
                if held is None or held.owner is None or held.owner.phase is not Phase.DECODE:
                    self._move(strays.pop(), slot)
        self._decoding = [prefix.owner for prefix in self._held[:count] if prefix and prefix.owner]

    def take_moves(self) -> tuple[Move, ...]:
        """The copies that are due before the next computation, in order."""
        moves = tuple(self._moves)
        self._moves.clear()
        return moves

    def check_integrity(self) -> None:
        """free + used + cached = total; owners, contents and the index agree."""
        held = [prefix for prefix in self._held if prefix is not None]
        free = self.count - len(held)
        assert free + self.used + self.cached == self.count
        owned = [prefix for prefix in held if prefix.owner is not None]
        assert {prefix.owner for prefix in owned} == {*self._decoding, *self._prefilling}
        assert len(owned) == self.used
        for slot, prefix in enumerate(self._held):
            assert prefix is None or prefix.slot == slot
        for prefix in owned:
            assert prefix.owner is not None
            assert prefix.owner.slot == prefix.slot
            assert prefix.owner.computed == prefix.computed
            assert prefix.owner.tokens is prefix.tokens
            assert prefix.owner.namespace == prefix.namespace
        assert all(prefix.indexed for prefix in held if prefix.owner is None)
        self._index.check_integrity(held)
        numbers = list(self._numbers)
        for prefix in held if self._each else ():
            _snapshots(prefix).check_integrity()
            numbers += _snapshots(prefix).numbers
        assert sorted(numbers) == list(range(self.count * self._each))
        self._promises.check_integrity(self._prefilling)
        assert all(sequence.phase is Phase.DECODE for sequence in self._decoding)
        assert all(sequence.phase is Phase.PREFILL for sequence in self._prefilling)

    def _room(self, match: Match | None) -> int:
        """The slot to give away: a cached match's own if nothing else is lost with it, else a
        free one, else the least recently used."""
        if match is not None and match.prefix.owner is None:
            rest = match.prefix.computed - match.tokens
            if rest < self._block:
                return match.prefix.slot
        border = len(self._decoding) if self._gathered else 0
        free = [slot for slot, prefix in enumerate(self._held) if prefix is None]
        if free:
            # Not one in the decode block, if possible: that would have to move out again.
            return min(free, key=lambda slot: (slot < border, slot))
        cached = [prefix for prefix in self._held if prefix is not None and prefix.owner is None]
        return min(cached, key=lambda prefix: prefix.used).slot

    def _places(self, sequence: Sequence, tokens: int) -> tuple[int, ...]:
        """Where it gets snapshots, if it goes on behind the first `tokens`."""
        if not self._each:
            return ()
        shared = max((match.tokens for match in self._index.sharing(sequence)), default=0)
        length, opening = len(sequence.tokens), sequence.opening
        return places(length, tokens, shared, self._block, opening=opening)

    def _bring(self, match: Match, slot: int, held: Prefix | None) -> None:
        """Have the tokens of `match` in `slot`, whose content is `held`."""
        prefix, tokens, number = match.prefix, match.tokens, None
        if self._each and tokens != prefix.computed:
            number = _snapshots(prefix).at[tokens]
        if prefix is not held:
            prefix.used = self._tick()
            self._moves.append(Move(prefix.slot, slot, tokens, snapshot=number))
        elif number is not None:
            self._moves.append(Move(slot, slot, 0, snapshot=number))

    def _start(
        self,
        sequence: Sequence,
        tokens: int,
        taken: Prefix | None,
        stops: tuple[int, ...],
    ) -> None:
        """Prefill begins behind the first `tokens`, which the slot holds or gets by a move.

        `taken`: the content that it goes on with, snapshots included. `stops`: where it gets more.
        """
        assert sequence.slot is not None
        snapshots = None if taken is None else taken.snapshots
        if snapshots is not None:
            snapshots.cut(tokens)
        elif self._each:
            snapshots = Snapshots([self._numbers.pop() for _ in range(self._each)])
        prefix = Prefix(sequence, sequence.slot, tokens, snapshots)
        self._held[sequence.slot] = prefix
        self._index.note(prefix)
        self._promises.make(sequence, stops)
        sequence.computed = tokens
        sequence.reached = max(sequence.reached, tokens)
        sequence.phase = Phase.PREFILL
        self._prefilling.append(sequence)

    def _leave_prefill(self, sequence: Sequence) -> None:
        self._prefilling.remove(sequence)
        self._promises.end(sequence)

    def _move(self, sequence: Sequence, target: int) -> None:
        """Bring `sequence` to slot `target`, whose content takes its place, if there is any."""
        source = sequence.slot
        assert source is not None
        moved, other = self._held[source], self._held[target]
        assert moved is not None
        exchange = other is not None and other.computed > 0
        tokens = max(moved.computed, other.computed if other is not None else 0)
        self._moves.append(Move(source, target, tokens, exchange=exchange))
        self._place(other, source)
        self._place(moved, target)

    def _place(self, prefix: Prefix | None, slot: int) -> None:
        self._held[slot] = prefix
        if prefix is not None:
            prefix.slot = slot
            if prefix.owner is not None:
                prefix.owner.slot = slot

    def _content(self, sequence: Sequence) -> Prefix:
        """What its slot holds."""
        assert sequence.slot is not None
        prefix = self._held[sequence.slot]
        assert prefix is not None
        return prefix

    def _let_go(self, prefix: Prefix) -> None:
        """Its snapshots are nobody's."""
        if prefix.snapshots is not None:
            self._numbers += prefix.snapshots.numbers

    def _tick(self) -> int:
        self._clock += 1
        return self._clock


def _snapshots(prefix: Prefix) -> Snapshots:
    assert prefix.snapshots is not None, "kept for models with a running state"
    return prefix.snapshots

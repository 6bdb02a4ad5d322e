"""Prefixes that slots will hold once the prompts that are being computed are.

Owns what is promised, and where snapshots of a running state will stand in it. A waiting sequence
that begins alike does better to wait than to compute the same again.
"""

from __future__ import annotations

from collections.abc import Collection

from appliance.scheduler.prefix import Match, Prefix, PrefixIndex, latest
from appliance.scheduler.sequence import Sequence

_NOWHERE = -1


class Promises:
    """One for each sequence in prefill.

    Args:
        reuse_block, anew: see `SlotTable`.
        anywhere: a prefix can be cut anywhere, and not only where a snapshot stands.
    """

    def __init__(self, reuse_block: int, anew: int, *, anywhere: bool) -> None:
        self._index = PrefixIndex(reuse_block, anew)
        self._anywhere = anywhere
        self._made: dict[Sequence, Prefix] = {}
        self._stops: dict[Prefix, tuple[int, ...]] = {}

    def longest(self, sequence: Sequence) -> Match | None:
        """The longest prefix of `sequence` that is promised."""
        if self._anywhere:
            return self._index.longest(sequence)
        return latest((match, self._stops[match.prefix]) for match in self._index.sharing(sequence))

    def make(self, sequence: Sequence, stops: tuple[int, ...]) -> None:
        """All tokens of `sequence` will be in its slot, with snapshots at `stops`."""
        promise = self._made[sequence] = Prefix(sequence, _NOWHERE, len(sequence.tokens))
        self._stops[promise] = stops
        self._index.note(promise)

    def stops(self, sequence: Sequence) -> tuple[int, ...]:
        """Where in its prompt it gets snapshots, in order."""
        return self._stops[self._made[sequence]]

    def end(self, sequence: Sequence) -> None:
        """It is kept, or nobody keeps it."""
        promise = self._made.pop(sequence)
        self._index.drop(promise)
        del self._stops[promise]

    def check_integrity(self, prefilling: Collection[Sequence]) -> None:
        """There is one for each of `prefilling`; the index agrees."""
        assert self._made.keys() == set(prefilling)
        assert self._stops.keys() == set(self._made.values())
        self._index.check_integrity(list(self._made.values()))

"""Shares: a part of a model's slots and of each step's prompt tokens, kept for an owner.

    8 slots        a a b s s s s s       a has 25 % of them, b 12 %
                   |----|                kept: 2 for a, 1 for b
                         |---------|     left for everybody, at least one, always

A share says what its owner can have at any time, not what lies idle: while an owner needs less,
others use the rest, and give it back in the step in which the owner comes. What an owner runs
within its share is `reserved`: nobody takes that slot, and it moves no clock of the fair queue.
What it runs beyond is like anybody's.

    Owner has less than its share and waits, and no slot is free:
    of those that are not reserved, as many as are left for everybody keep their slots: those that
    came by age, then the highest priorities, then the oldest. One of the others gives its own.

So the oldest of the others always gets on, however many owners come and go.

Owns who has which share now; it is known from the sequences that are there and forgotten with the
last of them. Refuses to know how a share came about.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from appliance.scheduler.sequence import Sequence, Share

MOST_RESERVED = 75
"""Percent that all shares together have; a later one gets what the earlier leave."""


@dataclass(frozen=True, slots=True)
class Holding:
    """What an owner has: percent of a step's prompt tokens, and slots."""

    percent: int
    slots: int


@dataclass(frozen=True, slots=True)
class Classes:
    """How many sequences of each class run and wait, and how many slots are kept for owners."""

    running: tuple[int, int]
    """Shared, dedicated."""
    waiting: tuple[int, int]
    reserved: int


class Shares:
    """The shares of the owners of `slots` slots that have a sequence here, waiting or running."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._percents: dict[str, int] = {}
        """As the owner's latest sequence says; in the order in which owners came."""
        self._present: Counter[str] = Counter()
        self._holdings: dict[str, Holding] = {}
        self._reserved: Counter[str] = Counter()
        """How many reserved sequences run; counted anew before each step."""

    @property
    def holdings(self) -> dict[str, Holding]:
        """Of each owner."""
        return self._holdings

    @property
    def left(self) -> int:
        """Slots that are kept for nobody."""
        return self._slots - sum(holding.slots for holding in self._holdings.values())

    def unused(self, share: Share) -> int:
        """Slots of a share beyond the sequences that its owner has here, waiting or running."""
        held = _divided(self._slots, self._percents | {share.owner: share.percent})[share.owner]
        return max(0, held.slots - self._present[share.owner])

    def enter(self, sequence: Sequence) -> None:
        """It is queued."""
        if sequence.share is not None:
            owner = sequence.share.owner
            self._present[owner] += 1
            if self._percents.get(owner) != sequence.share.percent:
                self._percents[owner] = sequence.share.percent
                self._holdings = _divided(self._slots, self._percents)

    def leave(self, sequence: Sequence) -> None:
        """It has ended."""
        if sequence.share is not None:
            owner = sequence.share.owner
            self._present[owner] -= 1
            if not self._present[owner]:
                del self._present[owner], self._percents[owner]
                self._holdings = _divided(self._slots, self._percents)

    def assign(self, running: Iterable[Sequence]) -> None:
        """Say which of those that run are reserved: of each owner the oldest, as many as it has."""
        self._reserved.clear()
        theirs: dict[str, list[Sequence]] = defaultdict(list)
        for sequence in running:
            sequence.reserved = False
            if sequence.share is not None:
                theirs[sequence.share.owner].append(sequence)
        for owner, sequences in theirs.items():
            sequences.sort(key=lambda sequence: sequence.arrival)
            for sequence in sequences[: self._holdings[owner].slots]:
                self.reserve(sequence)

    def reserve(self, sequence: Sequence) -> None:
        """It has one of its owner's slots."""
        assert sequence.share is not None
        sequence.reserved = True
        self._reserved[sequence.share.owner] += 1

    def wanting(self) -> set[str]:
        """Owners who run less than is kept for them."""
        return {
            owner
            for owner, holding in self._holdings.items()
            if self._reserved[owner] < holding.slots
        }

    def borrower(self, running: Iterable[Sequence]) -> Sequence | None:
        """Who gives a slot back to its owner; None: all slots that are taken are reserved."""
        others = [sequence for sequence in running if not sequence.reserved]
        others.sort(key=_right_to_stay)
        return min(others[self.left :], key=lambda s: (s.priority, s.computed), default=None)

    def check_integrity(self, everyone: Iterable[Sequence]) -> None:
        """Exactly the owners of `everyone` are known, and what is kept leaves room for others."""
        owners = Counter(s.share.owner for s in everyone if s.share is not None)
        assert owners == self._present
        assert owners.keys() == self._percents.keys() == self._holdings.keys()
        assert sum(holding.percent for holding in self._holdings.values()) <= MOST_RESERVED
        assert 1 <= self.left <= self._slots


def _divided(slots: int, percents: Mapping[str, int]) -> dict[str, Holding]:
    """Give each owner what the earlier ones leave."""
    holdings: dict[str, Holding] = {}
    percents_left, slots_left = MOST_RESERVED, slots - 1
    for owner, percent in percents.items():
        held = min(percent, percents_left)
        kept = min(slots_left, max(1, slots * held // 100)) if held else 0
        holdings[owner] = Holding(held, kept)
        percents_left, slots_left = percents_left - held, slots_left - kept
    return holdings


def _right_to_stay(sequence: Sequence) -> tuple[int, ...]:
    """The least stays longest."""
    if sequence.keeps_slot:
        return 0, 0, sequence.arrival
    return 1, -sequence.priority, sequence.arrival

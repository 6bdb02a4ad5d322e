"""From the queue to a slot, and back for those who give theirs up.

    waiting --- takes a slot, free or somebody's --> running
       ^  |                                            |
       |  '- another computes its prefix: follows -.   | gives way: waits again
       '-------------------------------------------'---'

First come owners for whom slots are kept (see Shares), then whose turn it is (see FairQueue), who
gets a slot only in a step that has tokens for it.

Owns the waiting sequences. Refuses to know a step's tokens: who divides them is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from appliance.scheduler.fair_queue import FairQueue
from appliance.scheduler.followers import Followers, may_follow
from appliance.scheduler.preemption import victim_for
from appliance.scheduler.prefix import Match
from appliance.scheduler.sequence import Phase, Sequence
from appliance.scheduler.shares import Shares
from appliance.scheduler.slots import SlotTable

Divide = Callable[[Mapping[Sequence, int]], Mapping[Sequence, int]]
"""Tokens that prompts with a slot lack -> those that each gets in this step."""


class Admission:
    """The queue before one table of slots."""

    def __init__(self, slots: SlotTable, shares: Shares) -> None:
        self._slots = slots
        self._shares = shares
        self._waiting = FairQueue()
        self._followers = Followers()
        self._admitted: list[Sequence] = []
        self._preempted: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._waiting) + len(self._followers)

    def __iter__(self) -> Iterator[Sequence]:
        yield from self._waiting
        yield from self._followers

    def count(self, caller: str) -> int:
        """How many sequences of `caller` wait."""
        return self._waiting.count(caller) + self._followers.count(caller)

    def push(self, sequence: Sequence) -> None:
        """It waits from now on."""
        self._waiting.push(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take one out that waits."""
        if not self._followers.remove(sequence):
            self._waiting.remove(sequence)

    def release(self, sequence: Sequence) -> None:
        """One that runs gives its slot back; what it has computed stays cached while there is room.

        Its caller's clock does not count what is not computed of its prompt.
        """
        if sequence.phase is Phase.PREFILL and sequence.charged:
            self._waiting.spend(sequence.caller, -_fresh(sequence, sequence.computed))
        self._slots.release(sequence)

    def decoded(self, sequence: Sequence) -> None:
        """A token of its answer was computed."""
        if not sequence.reserved:
            self._waiting.spend(sequence.caller, 1)

    def admit(self, divide: Divide) -> tuple[tuple[Sequence, ...], tuple[Sequence, ...]]:
        """Give slots to those whose turn it is: (who got the first of its own, who lost one)."""
        self._admitted, self._preempted = [], []
        for sequence in reversed(self._followers.ready()):
            self._waiting.push_back(sequence)
        self._admit_owners()
        self._admit_others(divide)
        return tuple(self._admitted), tuple(self._preempted)

    def check_integrity(self) -> None:
        """Everybody here waits, and holds nothing."""
        self._waiting.check_integrity()
        for sequence in self:
            assert sequence.phase is Phase.WAITING
            assert sequence.slot is None
            assert sequence.computed == 0

    def _admit_owners(self) -> None:
        """Give the slots that are kept for them to owners who wait; who has borrowed one goes."""
        self._shares.assign(self._slots.running)
        while owners := self._shares.wanting():
            sequence = self._waiting.head_of(owners)
            if sequence is None:
                return
            match = self._slots.match(sequence)
            if self._follows(sequence, match):
                continue
            if not self._slots.available:
                victim = self._shares.borrower(self._slots.running)
                assert victim is not None, "not all slots are reserved while an owner lacks one"
                self._preempt(victim)
            self._waiting.take_reserved(sequence)
            self._shares.reserve(sequence)
            self._start(sequence, match)

    def _admit_others(self, divide: Divide) -> None:
        """Give slots to those in the queue who would get tokens in this step."""
        while sequence := self._waiting.head(by_age=self._slots.available > 0):
            victim = None
            if not self._slots.available:
                sequence, victim = self._with_victim(sequence)
                if victim is None:
                    break
            match = self._slots.match(sequence)
            if self._follows(sequence, match):
                continue
            held = match.tokens if match is not None else 0
            needs = {s: s.uncomputed for s in self._slots.prefilling}
            needs[sequence] = sequence.uncomputed - held
            # Whose turn came by age may have to wait for tokens; others must not wait behind it.
            if sequence not in divide(needs) and not self._waiting.aged_turn:
                break
            if victim is not None:
                self._preempt(victim)
            self._waiting.take(sequence, _fresh(sequence, held))
            self._start(sequence, match)

    def _with_victim(self, head: Sequence) -> tuple[Sequence, Sequence | None]:
        """Who may take somebody's slot, and whose; `head` and None if nobody gives way."""
        victim = victim_for(head, self._slots)
        if victim is not None:
            return head, victim
        # Whoever runs nothing need not wait until the clock of who has all is later.
        newcomer = self._waiting.newcomer({s.caller for s in self._slots.running})
        if newcomer is None:
            return head, None
        return newcomer, victim_for(newcomer, self._slots)

    def _follows(self, sequence: Sequence, match: Match | None) -> bool:
        """Whether it waits on, for another that computes more of its prompt just now."""
        promise = self._slots.promise(sequence)
        held = match.tokens if match is not None else 0
        if promise is None or promise.tokens <= held or not may_follow(sequence, promise):
            return False
        self._waiting.remove(sequence)
        self._followers.add(sequence, promise)
        return True

    def _start(self, sequence: Sequence, match: Match | None) -> None:
        self._slots.claim(sequence, match)
        if not sequence.preemptions:
            sequence.cached = sequence.computed
            self._admitted.append(sequence)

    def _preempt(self, sequence: Sequence) -> None:
        """Back into the queue."""
        self.release(sequence)
        sequence.phase = Phase.WAITING
        sequence.computed = 0
        sequence.preemptions += 1
        self._waiting.push_back(sequence)
        self._preempted.append(sequence)


def _fresh(sequence: Sequence, computed: int) -> int:
    """Tokens that were never computed for `sequence`, of those behind the first `computed`."""
    return len(sequence.tokens) - max(computed, sequence.reached)

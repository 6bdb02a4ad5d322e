"""Who gets the next slot: the highest priority first, and within one priority callers in turn.

Start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM '96) over tokens computed. Each caller has a
clock that its tokens move on: a prompt's when it gets a slot, an answer's one by one. The caller
whose clock is furthest back is next. A caller that comes anew starts at the time of the sequence
that was served last, so nobody saves up while idle and nobody pays for having been alone.

    caller    waiting           clock
    a         s s s s s s s     900    has had 900 tokens
    b         s                 640    came when 640 was being served: next

Every eighth slot goes by age instead: to the priority whose next sequence came first, and there in
turn; who gets it keeps it. So a low priority is slow and never starves.

Owns the waiting sequences that could run. Refuses to know slots.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from appliance.scheduler.sequence import Sequence

AGED_TURN = 8
"""One turn of so many goes by age, whatever the priorities."""
_MANY_CALLERS = 1024


class FairQueue:
    """Waiting sequences, each in the lane of its priority and caller."""

    def __init__(self) -> None:
        self._lanes: dict[tuple[int, str], deque[Sequence]] = {}
        self._clocks: dict[str, int] = {}
        self._now = 0
        self._taken = 0

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values()))

    def __iter__(self) -> Iterator[Sequence]:
        return (sequence for lane in self._lanes.values() for sequence in lane)

    def count(self, caller: str) -> int:
        """How many sequences of `caller` wait."""
        return sum(len(lane) for (_, owner), lane in self._lanes.items() if owner == caller)

    def push(self, sequence: Sequence) -> None:
        """A new sequence, behind its caller's others."""
        self._lane(sequence).append(sequence)

    def push_back(self, sequence: Sequence) -> None:
        """One that was taken and could not go on, before its caller's others."""
        self._lane(sequence).appendleft(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take `sequence` out, wherever it stands."""
        key = (sequence.priority, sequence.caller)
        lane = self._lanes[key]
        lane.remove(sequence)
        if not lane:
            del self._lanes[key]

    @property
    def aged_turn(self) -> bool:
        """Whether the next slot goes by age."""
        return self._taken % AGED_TURN == AGED_TURN - 1

    def head(self, *, by_age: bool = True) -> Sequence | None:
        """Whose turn it is, its `turn` set. Without `by_age` the eighth turn is like the others."""
        if not self._lanes:
            return None
        if by_age and self.aged_turn:
            priority = min(self._lanes.items(), key=lambda item: item[1][0].arrival)[0][0]
        else:
            priority = max(priority for priority, _ in self._lanes)
        heads = [lane[0] for (of, _), lane in self._lanes.items() if of == priority]
        for sequence in heads:
            sequence.turn = self._clocks[sequence.caller]
        return min(heads, key=lambda sequence: (sequence.turn, sequence.arrival))

    def take(self, sequence: Sequence, tokens: int) -> None:
        """`sequence` gets a slot, and `tokens` will be computed for it before it decodes."""
        highest = max(priority for priority, _ in self._lanes)
        sequence.keeps_slot = sequence.priority < highest
        self.remove(sequence)
        self._now = max(self._now, sequence.turn)
        self._taken += 1
        self.spend(sequence.caller, tokens)

    def spend(self, caller: str, tokens: int) -> None:
        """`tokens` were computed for `caller`; less than 0: were not, after all."""
        self._clocks[caller] = self._clocks.get(caller, self._now) + tokens

    def check_integrity(self) -> None:
        """No lane is empty, everybody is in the right one, and every caller has a clock."""
        for (priority, caller), lane in self._lanes.items():
            assert lane
            assert caller in self._clocks
            assert all((s.priority, s.caller) == (priority, caller) for s in lane)

    def _lane(self, sequence: Sequence) -> deque[Sequence]:
        caller = sequence.caller
        if not self.count(caller):
            self._clocks[caller] = max(self._clocks.get(caller, 0), self._now)
            if len(self._clocks) > _MANY_CALLERS:
                self._forget()
        return self._lanes.setdefault((sequence.priority, caller), deque())

    def _forget(self) -> None:
        """Drop clocks that say no more than a newcomer's."""
        waiting = {caller for _, caller in self._lanes}
        self._clocks = {
            caller: clock
            for caller, clock in self._clocks.items()
            if clock >= self._now or caller in waiting
        }

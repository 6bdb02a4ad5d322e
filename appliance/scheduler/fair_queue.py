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

Owners of shares come first for what is kept for them (see Shares), by priority and in turn among
their own callers. That counts as no turn and moves no clock: it takes nothing from anybody.

Owns the waiting sequences that could run. Refuses to know slots.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator

from appliance.scheduler.sequence import Sequence

AGED_TURN = 8
"""One turn of so many goes by age, whatever the priorities."""
_MANY_CALLERS = 1024
_Lane = tuple[int, str, str]


class FairQueue:
    """Waiting sequences, each in the lane of its priority, caller and share's owner."""

    def __init__(self) -> None:
        self._lanes: dict[_Lane, deque[Sequence]] = {}
        self._clocks: dict[str, int] = {}
        self._now = 0
        self._taken = 0

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values()))

    def __iter__(self) -> Iterator[Sequence]:
        return (sequence for lane in self._lanes.values() for sequence in lane)

    def count(self, caller: str) -> int:
        """How many sequences of `caller` wait."""
        return sum(len(lane) for (_, of, _), lane in self._lanes.items() if of == caller)

    def push(self, sequence: Sequence) -> None:
        """A new sequence, behind its caller's others."""
        self._lane(sequence).append(sequence)

    def push_back(self, sequence: Sequence) -> None:
        """One that was taken and could not go on, before its caller's others."""
        self._lane(sequence).appendleft(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take `sequence` out, wherever it stands."""
        key = _lane_of(sequence)
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
            priority = self._highest
        heads = [lane[0] for (of, _, _), lane in self._lanes.items() if of == priority]
        return min(heads, key=self._in_turn)

    def head_of(self, owners: Collection[str]) -> Sequence | None:
        """Whose turn it is of those who have a share of one of `owners`, its `turn` set."""
        heads = [lane[0] for (_, _, owner), lane in self._lanes.items() if owner in owners]
        return min(heads, key=lambda s: (-s.priority, *self._in_turn(s)), default=None)

    def newcomer(self, callers: Collection[str]) -> Sequence | None:
        """Whose turn it is of the highest priority's callers but `callers`, its `turn` set."""
        heads = [
            lane[0]
            for (priority, caller, _), lane in self._lanes.items()
            if priority == self._highest and caller not in callers
        ]
        return min(heads, key=self._in_turn, default=None)

    def take_reserved(self, sequence: Sequence) -> None:
        """`sequence` gets a slot that is kept for it."""
        sequence.keeps_slot = sequence.charged = False
        self.remove(sequence)

    def take(self, sequence: Sequence, tokens: int) -> None:
        """`sequence` gets a slot, and `tokens` will be computed for it before it decodes."""
        sequence.keeps_slot = sequence.priority < self._highest
        sequence.charged = True
        if sequence is self.head():
            self._now = max(self._now, sequence.turn)
        self.remove(sequence)
        self._taken += 1
        self.spend(sequence.caller, tokens)

    def spend(self, caller: str, tokens: int) -> None:
        """`tokens` were computed for `caller`; less than 0: were not, after all."""
        self._clocks[caller] = self._clocks.get(caller, self._now) + tokens

    def check_integrity(self) -> None:
        """No lane is empty, everybody is in the right one, and every caller has a clock."""
        for key, lane in self._lanes.items():
            assert lane
            assert key[1] in self._clocks
            assert all(_lane_of(sequence) == key for sequence in lane)

    @property
    def _highest(self) -> int:
        return max(priority for priority, _, _ in self._lanes)

    def _in_turn(self, sequence: Sequence) -> tuple[int, int]:
        """The least is next; notes the sequence's turn."""
        sequence.turn = self._clocks[sequence.caller]
        return sequence.turn, sequence.arrival

    def _lane(self, sequence: Sequence) -> deque[Sequence]:
        caller = sequence.caller
        if not self.count(caller):
            self._clocks[caller] = max(self._clocks.get(caller, 0), self._now)
            if len(self._clocks) > _MANY_CALLERS:
                self._forget()
        return self._lanes.setdefault(_lane_of(sequence), deque())

    def _forget(self) -> None:
        """Drop clocks that say no more than a newcomer's."""
        waiting = {caller for _, caller, _ in self._lanes}
        self._clocks = {
            caller: clock
            for caller, clock in self._clocks.items()
            if clock >= self._now or caller in waiting
        }


def _lane_of(sequence: Sequence) -> _Lane:
    return sequence.priority, sequence.caller, sequence.owner

"""How a step's prompt tokens are divided among the prompts that have a slot.

1. Each owner of a share gets its part of them, as far as its prompts need it.
2. In every eighth step half of what is left goes to the eldest, whatever else is said here. Then
   comes the highest priority.
3. Within a priority first come the prompts of callers who run no more than an equal part beside
   one who runs more: who sends a single request does not wait behind somebody's flood. They may
   have more than a step that is kept short has for all. Then the others divide what they leave.
4. Among equals the one whose turn it is gets half, so that it is never stopped, and the others come
   shortest first, so that a short prompt does not wait behind a long one.

Owns the rule. Refuses to know slots.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from appliance.scheduler.sequence import Sequence
from appliance.scheduler.shares import Holding

_Tokens = dict[Sequence, int]


@dataclass(frozen=True, slots=True)
class Budget:
    """Tokens of one step.

    Attributes:
        tokens: for all, those that decode first.
        longer: at least as many: for modest callers' prompts it may have these.
    """

    tokens: int
    longer: int

    def within(self, most: int) -> Budget:
        """With no more than `most`."""
        return Budget(min(self.tokens, most), min(self.longer, most))


def divide(
    needs: Mapping[Sequence, int],
    room: int,
    *,
    longer: int,
    holdings: Mapping[str, Holding],
    callers: Counter[str],
    by_age: bool,
) -> _Tokens:
    """Tokens of each prompt that gets some, `room` in all, or as many as are needed.

    Args:
        needs: prompts with a slot -> tokens that they lack.
        longer: what there is, at least `room`, as far as modest callers' prompts need it.
        holdings: the owners of shares.
        callers: how many sequences each caller runs, those of `needs` included.
        by_age: the eldest gets its half in this step.
    """
    given: _Tokens = {}
    for owner, holding in holdings.items():
        theirs = {s: need for s, need in needs.items() if s.share and s.share.owner == owner}
        part = room * holding.percent // 100
        given |= _by_priority(theirs, part, part, callers)
    rest = {s: need - given.get(s, 0) for s, need in needs.items() if need > given.get(s, 0)}
    left = room - sum(given.values())
    aged = _eldest(rest, max(1, left // 2)) if by_age and left > 0 else {}
    rest = {s: need - aged.get(s, 0) for s, need in rest.items() if need > aged.get(s, 0)}
    left -= sum(aged.values())
    more = _added(aged, _by_priority(rest, left, left + longer - room, callers))
    return _added(given, more)


def _eldest(needs: Mapping[Sequence, int], room: int) -> _Tokens:
    eldest = min(needs, key=lambda sequence: sequence.arrival, default=None)
    return {} if eldest is None else {eldest: min(needs[eldest], room)}


def _by_priority(
    needs: Mapping[Sequence, int], room: int, longer: int, callers: Counter[str]
) -> _Tokens:
    shares: _Tokens = {}
    for priority in sorted({sequence.priority for sequence in needs}, reverse=True):
        equals = {s: need for s, need in needs.items() if s.priority == priority}
        given = sum(shares.values())
        shares |= _among_equals(equals, max(0, room - given), longer - given, callers)
    return shares


def _among_equals(
    needs: Mapping[Sequence, int], room: int, longer: int, callers: Counter[str]
) -> _Tokens:
    first = _in_rank(_modest(needs, callers), longer, _turn)
    later = {s: need - first.get(s, 0) for s, need in needs.items() if need > first.get(s, 0)}
    return _added(first, _in_rank(later, max(0, room - sum(first.values())), _turn))


def _turn(sequence: Sequence) -> tuple[int, ...]:
    return sequence.turn, sequence.arrival


def _modest(needs: Mapping[Sequence, int], callers: Counter[str]) -> _Tokens:
    """Prompts of callers who run no more than an equal part, if somebody runs more."""
    part = callers.total() / len(callers) if callers else 0
    modest = {s: need for s, need in needs.items() if callers[s.caller] <= part}
    return modest if any(count > part for count in callers.values()) else {}


def _in_rank(
    needs: Mapping[Sequence, int], room: int, rank: Callable[[Sequence], tuple[int, ...]]
) -> _Tokens:
    """The first in rank gets half, the shortest of the others come next, what they leave is the
    first's again."""
    if not needs or not room:
        return {}
    first, *others = sorted(needs, key=rank)
    shares = {first: min(needs[first], max(1, room // 2))}
    room -= shares[first]
    for sequence in sorted(others, key=needs.__getitem__):
        shares[sequence] = min(room, needs[sequence])
        room -= shares[sequence]
    shares[first] += min(room, needs[first] - shares[first])
    return {sequence: share for sequence, share in shares.items() if share}


def _added(one: _Tokens, other: _Tokens) -> _Tokens:
    return one | {sequence: one.get(sequence, 0) + count for sequence, count in other.items()}

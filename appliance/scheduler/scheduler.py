"""Iteration-level scheduling (Orca, OSDI '22) with chunked prefill (Sarathi-Serve, OSDI '24).

Every step computes one token for each decoding sequence and spends what is left of the token
budget on prompts, so a long prompt slows the others down by a bounded amount and never stops
them. Sequences join and leave between steps.

Owns the waiting queue and, through SlotTable, the cache slots. Refuses more waiting sequences
than its bound. Not thread-safe: its owner holds a lock.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable

from appliance.errors import CapacityError
from appliance.scheduler.plan import Plan, PrefillChunk
from appliance.scheduler.sequence import Phase, Sequence
from appliance.scheduler.slots import SlotTable


class Scheduler:
    """Waiting queue, slots and the plan of the next step.

    Args:
        slots: sequences that can run at once.
        capacity: tokens that one slot holds.
        token_budget: tokens computed per step; decode first. At least one prompt token is
            computed per step even if decode takes all of it, so that prefill cannot starve.
        max_waiting: sequences that may wait beside those that find a free slot.
    """

    def __init__(self, *, slots: int, capacity: int, token_budget: int, max_waiting: int) -> None:
        assert capacity > 1
        assert token_budget > 0
        assert max_waiting >= 0
        self.capacity = capacity
        self._token_budget = token_budget
        self._max_waiting = max_waiting
        self._slots = SlotTable(slots)
        self._waiting: deque[Sequence] = deque()
        self._arrivals = itertools.count()
        self._planned = False

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return self._slots.used

    @property
    def has_work(self) -> bool:
        return bool(self._waiting) or self._slots.used > 0

    @property
    def cached_positions(self) -> int:
        """Cache positions that hold a running sequence's keys and values."""
        owners = self._slots.decoding + self._slots.prefilling
        return sum(sequence.computed for sequence in owners)

    def add(self, sequences: Iterable[Sequence]) -> None:
        """Queue `sequences`, all or none. Raises CapacityError when the queue is full."""
        arrivals = tuple(sequences)
        room = self._slots.free + self._max_waiting - len(self._waiting)
        if len(arrivals) > room:
            raise CapacityError(
                f"the queue is full: {len(self._waiting)} sequences wait",
                hint="try again when others have finished",
                code="queue_full",
            )
        for sequence in arrivals:
            assert sequence.phase is Phase.WAITING
            assert sequence.prompt_length < self.capacity, "the caller checks the prompt's length"
            sequence.arrival = next(self._arrivals)
            self._waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, finished or cancelled; its slot is free from now on."""
        assert not self._planned, "a step is under way: its slots must stay where they are"
        if sequence.phase is Phase.WAITING:
            self._waiting.remove(sequence)
            sequence.phase = Phase.FINISHED
        elif sequence.running:
            self._slots.release(sequence)

    def schedule(self) -> Plan:
        """The next step; empty if there is nothing to compute. Commit it before the next one."""
        assert not self._planned
        self._planned = True
        decodes = self._slots.decoding
        shares = self._shares(max(1, self._token_budget - len(decodes)))
        for sequence in shares:
            if sequence.phase is Phase.WAITING:
                self._waiting.remove(sequence)
                self._slots.claim(sequence)
        chunks = tuple(_chunk(sequence, count) for sequence, count in shares.items())
        return Plan(self._slots.take_moves(), chunks, decodes)

    def commit(self, plan: Plan) -> None:
        """Book what `plan` has computed; sequences whose prompt is complete start to decode."""
        assert self._planned
        self._planned = False
        for chunk in plan.prefills:
            chunk.sequence.computed += chunk.count
        for sequence in plan.decodes:
            sequence.computed += 1
        for chunk in plan.prefills:
            if chunk.sequence.uncomputed == 0:
                self._slots.promote(chunk.sequence)

    def append(self, sequence: Sequence, token: int) -> bool:
        """Add a sampled token to a decoding sequence. False if its slot is full with it."""
        assert sequence.phase is Phase.DECODE
        assert sequence.uncomputed == 0
        sequence.tokens.append(token)
        return len(sequence.tokens) < self.capacity

    def check_integrity(self) -> None:
        """Every sequence is in one place, no slot is lost, nothing exceeds its bound."""
        self._slots.check_integrity()
        assert len(self._waiting) <= self._max_waiting + self._slots.count
        for sequence in self._waiting:
            assert sequence.phase is Phase.WAITING
            assert sequence.slot is None
            assert sequence.computed == 0
        for sequence in self._slots.prefilling:
            assert sequence.computed < sequence.prompt_length
            assert sequence.generated == 0
        for sequence in self._slots.decoding:
            assert sequence.prompt_length <= sequence.computed <= len(sequence.tokens)
            assert len(sequence.tokens) <= self.capacity

    def _shares(self, room: int) -> dict[Sequence, int]:
        """Divide `room` prompt tokens, in order of arrival.

        The oldest prompt gets half, so none starves; the shortest of the others come next, so a
        short prompt does not wait behind a long one; what they leave goes to the oldest.
        """
        candidates = sorted(self._slots.prefilling, key=lambda sequence: sequence.arrival)
        candidates += itertools.islice(self._waiting, self._slots.free)
        if not candidates:
            return {}
        oldest, *others = candidates
        shares = {oldest: min(oldest.uncomputed, max(1, room // 2))}
        room -= shares[oldest]
        for sequence in sorted(others, key=lambda sequence: sequence.uncomputed):
            shares[sequence] = min(room, sequence.uncomputed)
            room -= shares[sequence]
        shares[oldest] += min(room, oldest.uncomputed - shares[oldest])
        return {sequence: shares[sequence] for sequence in candidates if shares[sequence]}


def _chunk(sequence: Sequence, count: int) -> PrefillChunk:
    assert sequence.slot is not None
    return PrefillChunk(sequence, sequence.slot, sequence.computed, count)

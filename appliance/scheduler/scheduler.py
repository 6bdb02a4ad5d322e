"""Iteration-level scheduling (Orca, OSDI '22) with chunked prefill (Sarathi-Serve, OSDI '24).

Every step computes one token for each decoding sequence and spends what is left of the token
budget on prompts, so a long prompt slows the others down by a bounded amount and never stops
them. Sequences join and leave between steps.

Owns the waiting queue and, through SlotTable, the cache slots. Refuses more waiting sequences
than its bound. Not thread-safe: its owner holds a lock.
"""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Hashable, Iterable, Mapping

from appliance.errors import CapacityError
from appliance.scheduler.followers import Followers
from appliance.scheduler.plan import Plan, PrefillChunk
from appliance.scheduler.sequence import Phase, Sequence
from appliance.scheduler.slots import SlotTable

REUSE_BLOCK = 32
"""Tokens of a cached prefix are reused in multiples of this."""


class Scheduler:
    """Waiting queue, slots and the plan of the next step.

    Args:
        slots: sequences that can run at once.
        capacity: tokens that one slot holds.
        token_budget: tokens computed per step; decode first. At least one prompt token is
            computed per step even if decode takes all of it, so that prefill cannot starve.
        max_waiting: sequences that may wait beside those that find a free slot.
        reuse_block: tokens of a cached prefix are reused in multiples of this.
    """

    def __init__(
        self,
        *,
        slots: int,
        capacity: int,
        token_budget: int,
        max_waiting: int,
        reuse_block: int = REUSE_BLOCK,
    ) -> None:
        assert capacity > 1
        assert token_budget > 0
        assert max_waiting >= 0
        self.capacity = capacity
        self._token_budget = token_budget
        self._max_waiting = max_waiting
        self._slots = SlotTable(slots, reuse_block)
        self._waiting: deque[Sequence] = deque()
        self._followers = Followers()
        self._private: Counter[Hashable] = Counter()
        self._arrivals = itertools.count()
        self._planned = False

    @property
    def waiting(self) -> int:
        return len(self._waiting) + len(self._followers)

    @property
    def running(self) -> int:
        return self._slots.used

    @property
    def has_work(self) -> bool:
        return self.waiting > 0 or self._slots.used > 0

    @property
    def cached_positions(self) -> int:
        """Cache positions that hold a running sequence's keys and values."""
        owners = self._slots.decoding + self._slots.prefilling
        return sum(sequence.computed for sequence in owners)

    def add(self, sequences: Iterable[Sequence]) -> None:
        """Queue the sequences of one request, all or none.

        Without a namespace they share with each other and with nobody else. Raises CapacityError
        when the queue is full.
        """
        arrivals = tuple(sequences)
        room = self._slots.available + self._max_waiting - self.waiting
        if len(arrivals) > room:
            raise CapacityError(
                f"the queue is full: {self.waiting} sequences wait",
                hint="try again when others have finished",
                code="queue_full",
            )
        alone = _Private()
        for sequence in arrivals:
            assert sequence.phase is Phase.WAITING
            assert sequence.prompt_length < self.capacity, "the caller checks the prompt's length"
            if not sequence.namespace:
                sequence.namespace = alone
                self._private[alone] += 1
            sequence.arrival = next(self._arrivals)
            self._waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, finished or cancelled; its slot may be given away from now on."""
        assert not self._planned, "a step is under way: its slots must stay where they are"
        if sequence.phase is Phase.WAITING:
            if not self._followers.remove(sequence):
                self._waiting.remove(sequence)
            sequence.phase = Phase.FINISHED
        elif sequence.running:
            self._slots.release(sequence)
        else:
            return
        if sequence.namespace in self._private:
            self._private[sequence.namespace] -= 1
            if not self._private[sequence.namespace]:
                del self._private[sequence.namespace]
                self._slots.forget(sequence.namespace)

    def schedule(self) -> Plan:
        """The next step; empty if there is nothing to compute. Commit it before the next one."""
        assert not self._planned
        self._planned = True
        self._waiting.extendleft(reversed(self._followers.ready()))
        room = max(1, self._token_budget - len(self._slots.decoding))
        admitted = tuple(self._admit(room))
        self._slots.arrange()
        shares = _shares({s: s.uncomputed for s in self._slots.prefilling}, room)
        chunks = tuple(_chunk(sequence, count) for sequence, count in shares.items())
        return Plan(self._slots.take_moves(), chunks, self._slots.decoding, admitted)

    def commit(self, plan: Plan) -> None:
        """Book what `plan` has computed; sequences whose prompt is complete start to decode."""
        assert self._planned
        self._planned = False
        for chunk in plan.prefills:
            self._slots.advance(chunk.sequence, chunk.count)
        for sequence in plan.decodes:
            self._slots.advance(sequence, 1)
        for chunk in plan.prefills:
            if chunk.sequence.uncomputed == 0:
                self._slots.promote(chunk.sequence)

    def append(self, sequence: Sequence, token: int) -> bool:
        """Add a sampled token to a decoding sequence. False if its slot is full with it."""
        assert sequence.phase is Phase.DECODE
        assert sequence.uncomputed == 0
        sequence.tokens.append(token)
        return len(sequence.tokens) < self.capacity

    def accept(self, sequence: Sequence) -> None:
        """The token appended last was drafted: the step has computed it already.

        What it computed of drafts that were wrong lies behind `computed`, where the next step
        writes.
        """
        assert sequence.phase is Phase.DECODE
        assert sequence.uncomputed == 1
        self._slots.advance(sequence, 1)

    def check_integrity(self) -> None:
        """Every sequence is in one place, no slot is lost, nothing exceeds its bound."""
        self._slots.check_integrity()
        assert self.waiting <= self._max_waiting + self._slots.count
        waiting = [*self._waiting, *self._followers]
        for sequence in waiting:
            assert sequence.phase is Phase.WAITING
            assert sequence.slot is None
            assert sequence.computed == 0
        for sequence in self._slots.prefilling:
            assert sequence.computed < sequence.prompt_length
            assert sequence.generated == 0
        for sequence in self._slots.decoding:
            assert sequence.prompt_length <= sequence.computed <= len(sequence.tokens)
            assert len(sequence.tokens) <= self.capacity
        everyone = [*waiting, *self._slots.prefilling, *self._slots.decoding]
        private = Counter(s.namespace for s in everyone if isinstance(s.namespace, _Private))
        assert private == self._private

    def _admit(self, room: int) -> Iterable[Sequence]:
        """Give slots to those in the queue who would get tokens in this step."""
        while self._waiting and self._slots.available:
            sequence = self._waiting[0]
            match, promise = self._slots.match(sequence), self._slots.promise(sequence)
            held = match.tokens if match is not None else 0
            if promise is not None and promise.tokens > held:
                self._followers.add(self._waiting.popleft(), promise)
                continue
            needs = {s: s.uncomputed for s in self._slots.prefilling}
            needs[sequence] = sequence.uncomputed - held
            if sequence not in _shares(needs, room):
                return
            self._waiting.popleft()
            self._slots.claim(sequence, match)
            sequence.cached = held
            yield sequence


class _Private:
    """The namespace of one request that shares with nobody."""


def _shares(needs: Mapping[Sequence, int], room: int) -> dict[Sequence, int]:
    """Divide `room` prompt tokens among those who need some.

    The oldest prompt gets half, so none starves; the shortest of the others come next, so a
    short prompt does not wait behind a long one; what they leave goes to the oldest.
    """
    if not needs:
        return {}
    oldest, *others = sorted(needs, key=lambda sequence: sequence.arrival)
    shares = {oldest: min(needs[oldest], max(1, room // 2))}
    room -= shares[oldest]
    for sequence in sorted(others, key=needs.__getitem__):
        shares[sequence] = min(room, needs[sequence])
        room -= shares[sequence]
    shares[oldest] += min(room, needs[oldest] - shares[oldest])
    return {sequence: share for sequence, share in shares.items() if share}


def _chunk(sequence: Sequence, count: int) -> PrefillChunk:
    assert sequence.slot is not None
    return PrefillChunk(sequence, sequence.slot, sequence.computed, count)

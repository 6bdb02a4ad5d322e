"""Iteration-level scheduling (Orca, OSDI '22) with chunked prefill (Sarathi-Serve, OSDI '24).

Every step computes one token for each decoding sequence and spends what is left of the token
budget on prompts, so a long prompt slows the others down by a bounded amount and never stops
them. Sequences join and leave between steps.

Owns the waiting queue and, through SlotTable, the cache slots. Refuses more waiting sequences
than its bound. Not thread-safe: its owner holds a lock.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping

from appliance.errors import CapacityError
from appliance.scheduler.fair_queue import AGED_TURN, FairQueue
from appliance.scheduler.followers import Followers, may_follow
from appliance.scheduler.plan import Plan, PrefillChunk
from appliance.scheduler.preemption import victim_for
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
        max_waiting_per_caller: how many of them may be one caller's; None: all.
        reuse_block: tokens of a cached prefix are reused in multiples of this.
    """

    def __init__(
        self,
        *,
        slots: int,
        capacity: int,
        token_budget: int,
        max_waiting: int,
        max_waiting_per_caller: int | None = None,
        reuse_block: int = REUSE_BLOCK,
    ) -> None:
        assert capacity > 1
        assert token_budget > 0
        assert max_waiting >= 0
        self.capacity = capacity
        self._token_budget = self._step_budget = token_budget
        self._max_waiting = max_waiting
        self._max_of_caller = (
            max_waiting if max_waiting_per_caller is None else max_waiting_per_caller
        )
        self._slots = SlotTable(slots, reuse_block)
        self._waiting = FairQueue()
        self._followers = Followers()
        self._private: Counter[Hashable] = Counter()
        self._arrivals = itertools.count()
        self._steps = 0
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
        self._check_room(arrivals)
        alone = _Private()
        for sequence in arrivals:
            assert sequence.phase is Phase.WAITING
            assert sequence.prompt_length < self.capacity, "the caller checks the prompt's length"
            if not sequence.namespace:
                sequence.namespace = alone
                self._private[alone] += 1
            sequence.arrival = next(self._arrivals)
            self._waiting.push(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, finished or cancelled; its slot may be given away from now on."""
        assert not self._planned, "a step is under way: its slots must stay where they are"
        if sequence.phase is Phase.WAITING:
            if not self._followers.remove(sequence):
                self._waiting.remove(sequence)
            sequence.phase = Phase.FINISHED
        elif sequence.running:
            if sequence.phase is Phase.PREFILL:
                self._waiting.spend(sequence.caller, -_fresh(sequence, sequence.computed))
            self._slots.release(sequence)
        else:
            return
        if sequence.namespace in self._private:
            self._private[sequence.namespace] -= 1
            if not self._private[sequence.namespace]:
                del self._private[sequence.namespace]
                self._slots.forget(sequence.namespace)

    def schedule(self, token_budget: int | None = None) -> Plan:
        """The next step; empty if there is nothing to compute. Commit it before the next one.

        `token_budget` is this step's, if it is to be less than usual.
        """
        assert not self._planned
        self._planned = True
        self._step_budget = min(token_budget or self._token_budget, self._token_budget)
        for sequence in reversed(self._followers.ready()):
            self._waiting.push_back(sequence)
        admitted, preempted = self._admit()
        self._slots.arrange()
        shares = self._shares({s: s.uncomputed for s in self._slots.prefilling})
        self._steps += 1
        chunks = tuple(_chunk(sequence, count) for sequence, count in shares.items())
        return Plan(
            self._slots.take_moves(),
            chunks,
            self._slots.decoding,
            tuple(admitted),
            tuple(preempted),
        )

    def commit(self, plan: Plan) -> None:
        """Book what `plan` has computed; sequences whose prompt is complete start to decode."""
        assert self._planned
        self._planned = False
        for chunk in plan.prefills:
            self._slots.advance(chunk.sequence, chunk.count)
        for sequence in plan.decodes:
            self._slots.advance(sequence, 1)
            self._waiting.spend(sequence.caller, 1)
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
        self._waiting.spend(sequence.caller, 1)

    def check_integrity(self) -> None:
        """Every sequence is in one place, no slot is lost, nothing exceeds its bound."""
        self._slots.check_integrity()
        self._waiting.check_integrity()
        assert self.waiting <= self._max_waiting + self._slots.count
        waiting = [*self._waiting, *self._followers]
        for sequence in waiting:
            assert sequence.phase is Phase.WAITING
            assert sequence.slot is None
            assert sequence.computed == 0
        for sequence in self._slots.prefilling:
            assert sequence.computed < len(sequence.tokens)
            assert sequence.generated == 0 or sequence.preemptions
        for sequence in self._slots.decoding:
            assert sequence.prompt_length <= sequence.computed <= len(sequence.tokens)
            assert len(sequence.tokens) <= self.capacity
        everyone = [*waiting, *self._slots.prefilling, *self._slots.decoding]
        private = Counter(s.namespace for s in everyone if isinstance(s.namespace, _Private))
        assert private == self._private

    def _check_room(self, arrivals: Collection[Sequence]) -> None:
        """Raises CapacityError, which says whose bound it is."""
        free, hint = self._slots.available, "try again when others have finished"
        if len(arrivals) > free + self._max_waiting - self.waiting:
            raise CapacityError(
                f"the queue is full: {self.waiting} sequences wait", hint=hint, code="queue_full"
            )
        for caller, count in Counter(sequence.caller for sequence in arrivals).items():
            waiting = self._waiting.count(caller) + self._followers.count(caller)
            if count > free + self._max_of_caller - waiting:
                raise CapacityError(
                    f"this caller's part of the queue is full: {waiting} of its sequences wait",
                    hint=hint,
                    code="caller_queue_full",
                )

    def _admit(self) -> tuple[list[Sequence], list[Sequence]]:
        """Give slots to those in the queue who would get tokens in this step.

        Returns those who got their first one, and those who had to give theirs.
        """
        admitted: list[Sequence] = []
        preempted: list[Sequence] = []
        while sequence := self._waiting.head(by_age=self._slots.available > 0):
            victim = None
            if not self._slots.available:
                victim = victim_for(sequence, self._slots)
                if victim is None:
                    break
            match, promise = self._slots.match(sequence), self._slots.promise(sequence)
            held = match.tokens if match is not None else 0
            if promise is not None and promise.tokens > held and may_follow(sequence, promise):
                self._waiting.remove(sequence)
                self._followers.add(sequence, promise)
                continue
            needs = {s: s.uncomputed for s in self._slots.prefilling}
            needs[sequence] = sequence.uncomputed - held
            # Whose turn came by age may have to wait for tokens; others must not wait behind it.
            if sequence not in self._shares(needs) and not self._waiting.aged_turn:
                break
            if victim is not None:
                self._preempt(victim)
                preempted.append(victim)
            self._waiting.take(sequence, _fresh(sequence, held))
            self._slots.claim(sequence, match)
            if not sequence.preemptions:
                sequence.cached = held
                admitted.append(sequence)
        return admitted, preempted

    def _preempt(self, sequence: Sequence) -> None:
        """Back into the queue; what it has computed stays cached while there is room."""
        self._slots.release(sequence)
        sequence.phase = Phase.WAITING
        sequence.computed = 0
        sequence.preemptions += 1
        self._waiting.push_back(sequence)

    def _shares(self, needs: Mapping[Sequence, int]) -> dict[Sequence, int]:
        """Divide this step's prompt tokens: to a priority what the higher ones leave.

        In every eighth step by age alone.
        """
        room = max(1, self._step_budget - len(self._slots.decoding))
        if self._steps % AGED_TURN == AGED_TURN - 1:
            return _divide(needs, room, lambda sequence: (sequence.arrival,))
        shares: dict[Sequence, int] = {}
        for priority in sorted({sequence.priority for sequence in needs}, reverse=True):
            equals = {s: need for s, need in needs.items() if s.priority == priority}
            shares |= _divide(equals, room - sum(shares.values()), lambda s: (s.turn, s.arrival))
        return shares


class _Private:
    """The namespace of one request that shares with nobody."""


def _fresh(sequence: Sequence, computed: int) -> int:
    """Tokens that were never computed for `sequence`, of those behind the first `computed`."""
    return len(sequence.tokens) - max(computed, sequence.reached)


def _divide(
    needs: Mapping[Sequence, int], room: int, rank: Callable[[Sequence], tuple[int, ...]]
) -> dict[Sequence, int]:
    """Divide `room` prompt tokens among those who need some.

    The first in rank gets half, so none starves; the shortest of the others come next, so a
    short prompt does not wait behind a long one; what they leave goes to the first.
    """
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


def _chunk(sequence: Sequence, count: int) -> PrefillChunk:
    assert sequence.slot is not None
    return PrefillChunk(sequence, sequence.slot, sequence.computed, count)

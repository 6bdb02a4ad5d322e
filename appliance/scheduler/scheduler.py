"""Iteration-level scheduling (Orca, OSDI '22) with chunked prefill (Sarathi-Serve, OSDI '24).

Every step computes one token for each decoding sequence and spends what is left of the token
budget on prompts, so a long prompt slows the others down by a bounded amount and never stops
them. Sequences join and leave between steps.

Owns the waiting queue, through Admission, and the cache slots, through SlotTable. Refuses more
waiting sequences than its bound. Not thread-safe: its owner holds a lock.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping

from appliance.errors import CapacityError
from appliance.scheduler.admission import Admission
from appliance.scheduler.division import Budget, divide
from appliance.scheduler.fair_queue import AGED_TURN
from appliance.scheduler.plan import Plan, PrefillChunk
from appliance.scheduler.sequence import Phase, Sequence
from appliance.scheduler.shares import Classes, Shares
from appliance.scheduler.slots import SlotTable

REUSE_BLOCK = 32
"""Tokens; what is shorter costs less to compute than to look for."""


class Scheduler:
    """Waiting queue, slots and the plan of the next step.

    Args:
        slots: sequences that can run at once.
        capacity: tokens that one slot holds.
        token_budget: tokens computed per step; decode first. At least one prompt token is
            computed per step even if decode takes all of it, so that prefill cannot starve.
        max_waiting: sequences that may wait beside those that find a free slot.
        max_waiting_per_caller: how many of them may be one caller's; None: all.
        reuse_block: cached prefixes are reused if they have so many tokens.
        anew: of a reused prefix's tokens, how many are computed again; less than a block.
        gathered: the decoding sequences have to lie in the first slots.
        snapshots: of a running state, that can be set aside for each slot; 0: the model has none.
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
        anew: int = 0,
        gathered: bool = True,
        snapshots: int = 0,
    ) -> None:
        assert capacity > 1
        assert token_budget > 0
        assert max_waiting >= 0
        self.capacity = capacity
        self._token_budget = token_budget
        self._budget = Budget(token_budget, token_budget)
        self._max_waiting = max_waiting
        self._max_of_caller = (
            max_waiting if max_waiting_per_caller is None else max_waiting_per_caller
        )
        self._slots = SlotTable(
            slots, reuse_block, anew=anew, gathered=gathered, snapshots=snapshots
        )
        self._shares = Shares(slots)
        self._queue = Admission(self._slots, self._shares)
        self._private: Counter[Hashable] = Counter()
        self._arrivals = itertools.count()
        self._steps = 0
        self._planned = False

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def running(self) -> int:
        return self._slots.used

    @property
    def classes(self) -> Classes:
        """The same by class of capacity."""
        dedicated = sum(sequence.share is not None for sequence in self._slots.running)
        waiting = sum(s.share is not None for s in self._queue)
        return Classes(
            (self.running - dedicated, dedicated),
            (self.waiting - waiting, waiting),
            self._slots.count - self._shares.left,
        )

    @property
    def has_work(self) -> bool:
        return self.waiting > 0 or self._slots.used > 0

    @property
    def cached_positions(self) -> int:
        """Cache positions that hold a running sequence's keys and values."""
        return sum(sequence.computed for sequence in self._slots.running)

    def known_tokens(self, sequence: Sequence) -> int:
        """How many of the first tokens of a sequence that is not here are in the cache, or will be
        when the prompts that have a slot are computed."""
        matches = self._slots.match(sequence), self._slots.promise(sequence)
        return max((match.tokens for match in matches if match is not None), default=0)

    def add(self, sequences: Iterable[Sequence]) -> None:
        """Queue the sequences of one request, all or none.

        Without a namespace they share with each other and with nobody else. Raises CapacityError
        when the queue is full; what finds room in its owner's share does not count there.
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
            self._shares.enter(sequence)
            self._queue.push(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, finished or cancelled; its slot may be given away from now on."""
        assert not self._planned, "a step is under way: its slots must stay where they are"
        if sequence.phase is Phase.WAITING:
            self._queue.remove(sequence)
            sequence.phase = Phase.FINISHED
        elif sequence.running:
            self._queue.release(sequence)
        else:
            return
        self._shares.leave(sequence)
        if sequence.namespace in self._private:
            self._private[sequence.namespace] -= 1
            if not self._private[sequence.namespace]:
                del self._private[sequence.namespace]
                self._slots.forget(sequence.namespace)

    def schedule(self, budget: Budget | None = None) -> Plan:
        """The next step; empty if there is nothing to compute. Commit it before the next one.

        `budget` is this step's, if it is to be less than usual.
        """
        assert not self._planned
        self._planned = True
        most = self._token_budget
        self._budget = Budget(most, most) if budget is None else budget.within(most)
        admitted, preempted = self._queue.admit(self._divided)
        self._slots.arrange()
        shares = self._divided({s: s.uncomputed for s in self._slots.prefilling})
        self._steps += 1
        chunks = tuple(
            chunk
            for sequence, count in shares.items()
            for chunk in self._chunks(sequence, sequence.computed + count)
        )
        return Plan(self._slots.take_moves(), chunks, self._slots.decoding, admitted, preempted)

    def commit(self, plan: Plan) -> None:
        """Book what `plan` has computed; sequences whose prompt is complete start to decode."""
        assert self._planned
        self._planned = False
        for chunk in plan.prefills:
            self._slots.advance(chunk.sequence, chunk.count)
        for sequence in plan.decodes:
            self._decoded(sequence)
        for chunk in plan.prefills:
            if chunk.completes:
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
        self._decoded(sequence)

    def check_integrity(self) -> None:
        """Every sequence is in one place, no slot is lost, nothing exceeds its bound."""
        self._slots.check_integrity()
        self._queue.check_integrity()
        # Those that found a free slot, and owners that found their own, wait for the next step.
        assert self.waiting <= self._max_waiting + 2 * self._slots.count
        for sequence in self._slots.prefilling:
            assert sequence.computed < len(sequence.tokens)
            assert sequence.generated == 0 or sequence.preemptions
        for sequence in self._slots.decoding:
            assert sequence.prompt_length <= sequence.computed <= len(sequence.tokens)
            assert len(sequence.tokens) <= self.capacity
        everyone = [*self._queue, *self._slots.running]
        self._shares.check_integrity(everyone)
        private = Counter(s.namespace for s in everyone if isinstance(s.namespace, _Private))
        assert private == self._private

    def _check_room(self, arrivals: Collection[Sequence]) -> None:
        """Raises CapacityError, which says whose bound it is."""
        free, hint = self._slots.available, "try again when others have finished"
        if arrivals and len(arrivals) <= self._unused(arrivals):
            return
        if len(arrivals) > free + self._max_waiting - self.waiting:
            raise CapacityError(
                f"the queue is full: {self.waiting} sequences wait", hint=hint, code="queue_full"
            )
        for caller, count in Counter(sequence.caller for sequence in arrivals).items():
            waiting = self._queue.count(caller)
            if count > free + self._max_of_caller - waiting:
                raise CapacityError(
                    f"this caller's part of the queue is full: {waiting} of its sequences wait",
                    hint=hint,
                    code="caller_queue_full",
                )

    def _unused(self, arrivals: Collection[Sequence]) -> int:
        """Slots of their owner's share that nobody has or waits for."""
        (share,) = {sequence.share for sequence in arrivals}
        return 0 if share is None else self._shares.unused(share)

    def _divided(self, needs: Mapping[Sequence, int]) -> dict[Sequence, int]:
        """This step's prompt tokens for those who have a slot or would get one."""
        callers = Counter(sequence.caller for sequence in {*self._slots.running, *needs})
        decoding = len(self._slots.decoding)
        return divide(
            needs,
            max(1, self._budget.tokens - decoding),
            longer=max(1, self._budget.longer - decoding),
            holdings=self._shares.holdings,
            callers=callers,
            by_age=self._steps % AGED_TURN == AGED_TURN - 1,
        )

    def _chunks(self, sequence: Sequence, end: int) -> Iterator[PrefillChunk]:
        """What is computed of a prompt up to `end`, apart where its state is set aside."""
        assert sequence.slot is not None
        start = sequence.computed
        for stop in self._slots.stops(sequence):
            if start < stop <= end:
                number = self._slots.snapshot(sequence, stop)
                yield PrefillChunk(sequence, sequence.slot, start, stop - start, number)
                start = stop
        if start < end:
            yield PrefillChunk(sequence, sequence.slot, start, end - start)

    def _decoded(self, sequence: Sequence) -> None:
        """One more token of its answer is computed."""
        self._slots.advance(sequence, 1)
        self._queue.decoded(sequence)


class _Private:
    """The namespace of one request that shares with nobody."""

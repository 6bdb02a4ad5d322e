"""The scheduler against a simulated cache: what is planned must be computable and complete."""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Hashable
from collections.abc import Sequence as Listing
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from appliance.errors import CapacityError
from appliance.scheduler import Budget, Phase, Plan, Scheduler, Sequence
from appliance.scheduler.plan import Move
from appliance.scheduler.preemption import MOST_PREEMPTIONS

SLOTS, CAPACITY, BUDGET, MAX_WAITING, MAX_OF_CALLER, BLOCK = 4, 24, 8, 5, 3, 2
# hash(-1) == hash(-2): blocks that differ in these only have one hash, as an attacker would want.
TOKENS = st.sampled_from([-1, -2, 7])
NAMESPACES = st.sampled_from(["", "a", "b"])
CALLERS, PRIORITIES = st.sampled_from(["x", "y", "z"]), st.integers(0, 1)
OPENINGS = st.integers(0, CAPACITY)
"""What is said of a prompt's opening, true or not."""
Cell = tuple[Hashable, tuple[int, ...]]
BUDGETS = st.builds(
    lambda tokens, more: Budget(tokens, tokens + more),
    st.integers(1, BUDGET),
    st.integers(0, BUDGET),
)


class SimulatedCache:
    """Does what a model runner does with a plan, on lists of cells instead of tensors.

    A position's keys and values depend on all tokens up to it, and must stay within the
    namespace that computed them. A cell is just that, so a wrong or missing move, a stale slot or
    a prefix of somebody else's shows up where it is read.
    """

    def __init__(self, *, gathered: bool = True, snapshots: int = 0) -> None:
        self.gathered = gathered
        self.slots: list[list[Cell | None]] = [[None] * CAPACITY for _ in range(SLOTS)]
        self.states: list[Cell | None] | None = [None] * SLOTS if snapshots else None
        """What each slot's running state has read, in models that have one."""
        self.snapshots: list[Cell | None] = [None for _ in range(SLOTS * snapshots)]

    def run(self, plan: Plan) -> None:
        for move in plan.moves:
            source, target = self.slots[move.source], self.slots[move.target]
            kept = target[: move.tokens]
            target[: move.tokens] = source[: move.tokens]
            if move.exchange:
                source[: move.tokens] = kept
            self._move_state(move)
        for chunk in plan.prefills:
            assert chunk.slot == chunk.sequence.slot
            self._compute(chunk.sequence, chunk.slot, chunk.start, chunk.count)
            if chunk.snapshot is not None:
                assert self.states is not None
                self.snapshots[chunk.snapshot] = self.states[chunk.slot]
        for number, sequence in enumerate(plan.decodes):
            slot = sequence.slot
            assert slot is not None
            assert slot == number or not self.gathered
            self._compute(sequence, slot, sequence.computed, 1)
            for index in range(len(plan.drafts[number]) if plan.drafts else 0):
                guessed = (*sequence.tokens, *plan.drafts[number][: index + 1])
                place = sequence.computed + 1 + index
                self.slots[slot][place] = sequence.namespace, guessed

    def _compute(self, sequence: Sequence, slot: int, start: int, count: int) -> None:
        row = self.slots[slot]
        assert row[:start] == [cell(sequence, i) for i in range(start)]
        row[start : start + count] = [cell(sequence, i) for i in range(start, start + count)]
        if self.states is not None:
            assert start == 0 or self.states[slot] == cell(sequence, start - 1)
            self.states[slot] = cell(sequence, start + count - 1)

    def _move_state(self, move: Move) -> None:
        if self.states is None:
            return
        kept, source = self.states[move.target], self.states[move.source]
        self.states[move.target] = source
        if move.snapshot is not None:
            assert not move.exchange
            self.states[move.target] = self.snapshots[move.snapshot]
        if move.exchange:
            self.states[move.source] = kept


def cell(sequence: Sequence, position: int) -> Cell:
    return sequence.namespace, tuple(sequence.tokens[: position + 1])


class Churn(RuleBasedStateMachine):
    """Sequences arrive, step, finish, are preempted and are cancelled in any order.

    The end of a deadline is a cancel to the scheduler, which knows no clock.
    """

    gathered = True
    anew = 0
    snapshots = 0

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(
            slots=SLOTS,
            capacity=CAPACITY,
            token_budget=BUDGET,
            max_waiting=MAX_WAITING,
            max_waiting_per_caller=MAX_OF_CALLER,
            reuse_block=BLOCK,
            anew=self.anew,
            gathered=self.gathered,
            snapshots=self.snapshots,
        )
        self.cache = SimulatedCache(gathered=self.gathered, snapshots=self.snapshots)
        self.alive: list[Sequence] = []
        self.said: list[list[int]] = []

    @rule(
        prompts=st.lists(
            st.lists(TOKENS, min_size=1, max_size=CAPACITY - 1), min_size=1, max_size=3
        ),
        namespace=NAMESPACES,
        caller=CALLERS,
        priority=PRIORITIES,
        opening=OPENINGS,
    )
    def arrive(
        self,
        prompts: list[list[int]],
        namespace: str,
        caller: str,
        priority: int,
        opening: int = 0,
    ) -> None:
        about: dict[str, Any] = {"namespace": namespace, "caller": caller, "priority": priority}
        group = [Sequence(prompt, **about, opening=opening) for prompt in prompts]
        waiting = [s for s in self.alive if s.phase is Phase.WAITING]
        free = SLOTS - self.scheduler.running
        theirs = sum(sequence.caller == caller for sequence in waiting)
        refusal = None
        if len(group) > free + MAX_OF_CALLER - theirs:
            refusal = "caller_queue_full"
        if len(group) > free + MAX_WAITING - len(waiting):
            refusal = "queue_full"
        if refusal is not None:
            with pytest.raises(CapacityError) as refused:
                self.scheduler.add(group)
            assert refused.value.code == refusal
            assert self.scheduler.waiting == len(waiting)
        else:
            self.scheduler.add(group)
            self.alive += group

    @precondition(lambda self: self.said)
    @rule(
        data=st.data(),
        more=st.lists(TOKENS, min_size=1),
        n=st.integers(1, 3),
        namespace=NAMESPACES,
        caller=CALLERS,
        priority=PRIORITIES,
        opening=OPENINGS,
    )
    def go_on(
        self,
        data: st.DataObject,
        more: list[int],
        n: int,
        namespace: str,
        caller: str,
        priority: int,
        opening: int,
    ) -> None:
        """A conversation's next turn, in its own or in another namespace."""
        prompt = (data.draw(st.sampled_from(self.said)) + more)[: CAPACITY - 1]
        self.arrive([prompt] * n, namespace, caller, priority, opening)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        victim = data.draw(st.sampled_from(self.alive))
        free = SLOTS - self.scheduler.running
        held = victim.running
        self._remove(victim)
        assert SLOTS - self.scheduler.running == free + held

    @rule(
        ends=st.lists(st.booleans(), min_size=SLOTS, max_size=SLOTS),
        tokens=st.lists(TOKENS, min_size=SLOTS, max_size=SLOTS),
        drafts=st.lists(st.lists(TOKENS, max_size=3), min_size=SLOTS, max_size=SLOTS),
        right=st.lists(st.integers(0, 3), min_size=SLOTS, max_size=SLOTS),
        budget=st.none() | BUDGETS,
        given_up=st.none() | st.integers(0, 2),
    )
    def step(
        self,
        ends: list[bool],
        tokens: list[int],
        drafts: Listing[list[int]] = (),
        right: Listing[int] = (),
        budget: Budget | None = None,
        given_up: int | None = None,
    ) -> None:
        """One step; of each draft the first tokens are right, as many as `right` says.

        `given_up`: so many pieces of its prompts are computed, and the rest is not after all.
        """
        before = {sequence: list(sequence.tokens) for sequence in self.alive}
        plan = self.scheduler.schedule(budget)
        for sequence in plan.preempted:
            assert 1 <= sequence.preemptions <= MOST_PREEMPTIONS
            assert sequence.phase is not Phase.DECODE
        assert {sequence: sequence.tokens for sequence in self.alive} == before
        budget = (budget or Budget(BUDGET, BUDGET)).within(BUDGET)
        assert plan.token_count <= max(budget.longer, len(plan.decodes) + 1)
        if plan.token_count > max(budget.tokens, len(plan.decodes) + 1):
            running = Counter(sequence.caller for sequence in self.alive if sequence.running)
            most = max(running.values())
            assert any(running[chunk.sequence.caller] < most for chunk in plan.prefills)
        assert bool(plan.token_count) == self.scheduler.has_work
        for sequence in plan.admitted:
            assert sequence.cached == 0 or sequence.cached >= BLOCK - self.anew
            assert sequence.cached == sequence.computed < sequence.prompt_length
        if given_up is not None:
            plan = dataclasses.replace(plan, prefills=plan.prefills[:given_up])
        accepted: dict[Sequence, tuple[int, ...]] = {}
        if drafts and not self.snapshots:
            plan = _with_drafts(plan, drafts)
            accepted = {
                sequence: draft[:count]
                for sequence, draft, count in zip(plan.decodes, plan.drafts, right, strict=False)
            }
        self.cache.run(plan)
        self.scheduler.commit(plan)
        self.scheduler.check_integrity()
        sampled = plan.sampled
        for sequence, end, token in zip(sampled, ends, tokens, strict=False):
            for guessed in accepted.get(sequence, ()):
                assert self.scheduler.append(sequence, guessed)
                self.scheduler.accept(sequence)
                self.scheduler.check_integrity()
            room = self.scheduler.append(sequence, token)
            self.scheduler.check_integrity()
            if end or not room:
                self._remove(sequence)
        for sequence in sampled[len(ends) :]:
            self._remove(sequence)

    def _remove(self, sequence: Sequence) -> None:
        self.said.append(sequence.tokens)
        self.scheduler.remove(sequence)
        self.alive.remove(sequence)
        self.scheduler.check_integrity()

    @invariant()
    def integrity(self) -> None:
        self.scheduler.check_integrity()
        assert self.scheduler.running + self.scheduler.waiting == len(self.alive)

    def teardown(self) -> None:
        """Whatever was left ends in a bounded number of steps: nobody starves."""
        bound = sum((CAPACITY + 1) * (1 + MOST_PREEMPTIONS) for _ in self.alive) + 1
        for _ in range(bound):
            if not self.scheduler.has_work:
                break
            self.step([False] * SLOTS, [7] * SLOTS)
        assert not self.scheduler.has_work
        assert self.scheduler.cached_positions == 0


class Scattered(Churn):
    """The same where the decoding sequences may lie in any slots."""

    gathered = False


class Shortened(Scattered):
    """The same where the last token of a reused prefix is computed again."""

    anew = 1


class Recurring(Churn):
    """The same for a model with a running state, which stands where it stands."""

    snapshots = 2


TestRecurring = Recurring.TestCase
TestChurn = Churn.TestCase
TestScattered = Scattered.TestCase
TestShortened = Shortened.TestCase


def _with_drafts(plan: Plan, drafts: Listing[list[int]]) -> Plan:
    """`plan` with a draft for each decoding sequence, as far as its slot has room."""
    fitting = (
        tuple(draft[: CAPACITY - len(sequence.tokens) - 1])
        for sequence, draft in zip(plan.decodes, drafts, strict=False)
    )
    return dataclasses.replace(plan, drafts=tuple(fitting))


def make(**changes: int) -> Scheduler:
    settings: dict[str, Any] = {
        "slots": 4,
        "capacity": 4096,
        "token_budget": 64,
        "max_waiting": 8,
    }
    return Scheduler(**(settings | changes))


def step(scheduler: Scheduler, token: int = 7) -> Plan:
    plan = scheduler.schedule()
    scheduler.commit(plan)
    for sequence in plan.sampled:
        scheduler.append(sequence, token)
    scheduler.check_integrity()
    return plan


def test_a_long_prompt_never_stops_decoding() -> None:
    scheduler = make()
    short, long = Sequence([1]), Sequence(range(1000))
    scheduler.add([short])
    step(scheduler)
    scheduler.add([long])
    while long.phase is not Phase.DECODE:
        plan = step(scheduler)
        assert plan.decodes == (short,)
        assert plan.token_count <= 64


def test_a_short_prompt_does_not_wait_behind_a_long_one() -> None:
    scheduler = make()
    long, short = Sequence(range(1000)), Sequence(range(20))
    scheduler.add([long])
    step(scheduler)
    scheduler.add([short])
    step(scheduler)
    assert short.phase is Phase.DECODE
    assert long.phase is Phase.PREFILL


def test_the_oldest_prompt_progresses_under_a_stream_of_short_ones() -> None:
    scheduler = make(slots=64, max_waiting=1000)
    long = Sequence(range(1000))
    scheduler.add([long])
    shorts: deque[Sequence] = deque()
    for _ in range(64):
        if long.phase is Phase.DECODE:
            break
        arrivals = [Sequence(range(30)) for _ in range(2)]
        shorts.extend(arrivals)
        scheduler.add(arrivals)
        step(scheduler)
        while len(shorts) > 20:
            scheduler.remove(shorts.popleft())
    assert long.phase is Phase.DECODE


def test_a_cancelled_slot_is_taken_in_the_very_next_step() -> None:
    scheduler = make(slots=1)
    running, next_one = Sequence([1, 2]), Sequence([3])
    scheduler.add([running, next_one])
    step(scheduler)
    assert next_one.phase is Phase.WAITING
    scheduler.remove(running)
    step(scheduler)
    assert next_one.slot == 0


def test_a_group_is_queued_all_or_none() -> None:
    scheduler = make(slots=1, max_waiting=1)
    with pytest.raises(CapacityError) as refused:
        scheduler.add([Sequence([1]) for _ in range(3)])
    assert refused.value.code == "queue_full"
    assert not scheduler.has_work


def test_a_full_slot_is_reported_with_its_last_token() -> None:
    scheduler = make(capacity=4)
    sequence = Sequence([1, 2])
    scheduler.add([sequence])
    plan = scheduler.schedule()
    scheduler.commit(plan)
    assert scheduler.append(sequence, 3)
    plan = scheduler.schedule()
    scheduler.commit(plan)
    assert not scheduler.append(sequence, 4)


def test_a_rejected_draft_leaves_the_cache_where_it_was() -> None:
    scheduler, cache = make(slots=1, capacity=CAPACITY), SimulatedCache()
    sequence = Sequence([1, 2])
    scheduler.add([sequence])
    plan = scheduler.schedule()
    cache.run(plan)
    scheduler.commit(plan)
    scheduler.append(sequence, 3)
    plan = dataclasses.replace(scheduler.schedule(), drafts=((4, 9, 9),))
    assert plan.token_count == 4
    assert plan.rows == (4,)
    cache.run(plan)
    scheduler.commit(plan)
    scheduler.append(sequence, 4)
    scheduler.accept(sequence)
    scheduler.append(sequence, 5)
    assert (sequence.computed, sequence.tokens) == (4, [1, 2, 3, 4, 5])
    cache.run(scheduler.schedule())
    assert cache.slots[0][:5] == [cell(sequence, index) for index in range(5)]

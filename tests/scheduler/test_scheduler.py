"""The scheduler against a simulated cache: what is planned must be computable and complete."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from appliance.errors import CapacityError
from appliance.scheduler import Phase, Plan, Scheduler, Sequence

SLOTS, CAPACITY, BUDGET, MAX_WAITING = 4, 24, 8, 5


class SimulatedCache:
    """Does what a model runner does with a plan, on lists of token ids instead of tensors.

    Reading a slot gives the tokens whose keys and values are in it, so a wrong or missing move
    shows up as a wrong prefix.
    """

    def __init__(self) -> None:
        self.slots: list[list[int | None]] = [[None] * CAPACITY for _ in range(SLOTS)]

    def run(self, plan: Plan) -> None:
        for move in plan.moves:
            source, target = self.slots[move.source], self.slots[move.target]
            kept = target[: move.tokens]
            target[: move.tokens] = source[: move.tokens]
            if move.exchange:
                source[: move.tokens] = kept
        for chunk in plan.prefills:
            row = self.slots[chunk.slot]
            assert row[: chunk.start] == chunk.sequence.tokens[: chunk.start]
            row[chunk.start : chunk.start + chunk.count] = chunk.tokens
        for slot, sequence in enumerate(plan.decodes):
            assert sequence.slot == slot
            row = self.slots[slot]
            assert row[: sequence.computed] == sequence.tokens[: sequence.computed]
            row[sequence.computed] = sequence.tokens[sequence.computed]


class Churn(RuleBasedStateMachine):
    """Sequences arrive, step, finish and are cancelled in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(
            slots=SLOTS, capacity=CAPACITY, token_budget=BUDGET, max_waiting=MAX_WAITING
        )
        self.cache = SimulatedCache()
        self.alive: list[Sequence] = []
        self.names = iter(range(10**9))

    @rule(lengths=st.lists(st.integers(1, CAPACITY - 1), min_size=1, max_size=4))
    def arrive(self, lengths: list[int]) -> None:
        group = [Sequence([next(self.names) for _ in range(n)]) for n in lengths]
        waiting = self.scheduler.waiting
        room = MAX_WAITING + SLOTS - self.scheduler.running - waiting
        if len(group) > room:
            with pytest.raises(CapacityError):
                self.scheduler.add(group)
            assert self.scheduler.waiting == waiting
        else:
            self.scheduler.add(group)
            self.alive += group

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        victim = data.draw(st.sampled_from(self.alive))
        free = SLOTS - self.scheduler.running
        held = victim.running
        self.scheduler.remove(victim)
        self.alive.remove(victim)
        assert SLOTS - self.scheduler.running == free + held

    @rule(ends=st.lists(st.booleans(), min_size=SLOTS, max_size=SLOTS))
    def step(self, ends: list[bool]) -> None:
        plan = self.scheduler.schedule()
        assert plan.token_count <= max(BUDGET, len(plan.decodes) + 1)
        assert bool(plan.token_count) == self.scheduler.has_work
        self.cache.run(plan)
        self.scheduler.commit(plan)
        self.scheduler.check_integrity()
        sampled = plan.sampled
        for sequence, end in zip(sampled, ends, strict=False):
            room = self.scheduler.append(sequence, next(self.names))
            self.scheduler.check_integrity()
            if end or not room:
                self.scheduler.remove(sequence)
                self.alive.remove(sequence)
        for sequence in sampled[len(ends) :]:
            self.scheduler.remove(sequence)
            self.alive.remove(sequence)

    @invariant()
    def integrity(self) -> None:
        self.scheduler.check_integrity()
        assert self.scheduler.running + self.scheduler.waiting == len(self.alive)

    def teardown(self) -> None:
        """Whatever was left ends in a bounded number of steps: nobody starves."""
        bound = sum(CAPACITY + 1 for _ in self.alive) + 1
        for _ in range(bound):
            if not self.scheduler.has_work:
                break
            self.step([False] * SLOTS)
        assert not self.scheduler.has_work
        assert self.scheduler.cached_positions == 0


TestChurn = Churn.TestCase


def make(**changes: int) -> Scheduler:
    settings = {"slots": 4, "capacity": 4096, "token_budget": 64, "max_waiting": 8} | changes
    return Scheduler(**settings)


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

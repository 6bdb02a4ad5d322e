"""Dedicated capacity: an owner finds its part at once, others use the rest and never starve."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from appliance.errors import CapacityError
from appliance.scheduler import MOST_RESERVED, Phase, Plan, Sequence, Share
from tests.scheduler.test_fairness import Load, make

A, B = Share("a", 50), Share("b", 25)


def dedicated(load: Load, share: Share | None, count: int = 1, length: int = 8) -> list[Sequence]:
    caller = "" if share is None else share.owner
    sent = [Sequence(range(length), caller=caller, share=share) for _ in range(count)]
    for sequence in sent:
        load.scheduler.add([sequence])
    return sent


def test_an_owner_has_its_slots_in_the_next_step_however_many_wait_before_it() -> None:
    load = Load(make())
    load.send("flood", 200)
    for _ in range(5):
        load.step()
    mine = dedicated(load, A, 3)
    plan = load.step()
    assert [sequence.running for sequence in mine] == [True, True, False]
    assert len(plan.preempted) == 2
    assert all(sequence.generated for sequence in mine[:2])


def test_a_slot_is_taken_back_from_a_prompt_and_from_a_higher_priority_too() -> None:
    load = Load(make(slots=2, token_budget=8))
    long = Sequence(range(200), caller="x", priority=1)
    other = Sequence(range(200), caller="y", priority=1)
    load.scheduler.add([long])
    load.scheduler.add([other])
    load.until(lambda: long.running and other.running)
    (mine,) = dedicated(load, A)
    assert load.step().preempted == (other,), "the older one keeps what is left for everybody"
    assert mine.running
    assert long.running


def test_what_an_owner_does_not_use_others_do() -> None:
    load = Load(make())
    load.send("flood", 200)
    (mine,) = dedicated(load, A)
    load.until(lambda: mine.phase is Phase.FINISHED)
    load.send("x")
    load.step()
    assert load.scheduler.running == 4


def test_what_runs_within_a_share_gives_way_to_nobody_but_its_own_owner() -> None:
    load = Load(make())
    mine = dedicated(load, A, 2)
    load.step()
    load.send("vip", 8, priority=1)
    for _ in range(3):
        assert not {*load.step().preempted} & {*mine}
    urgent = Sequence(range(8), caller="a", priority=2, share=A)
    load.scheduler.add([urgent])
    load.step()
    assert urgent.running


def test_an_owner_gets_its_part_of_the_prompt_tokens_first_and_the_rest_is_divided() -> None:
    load = Load(make(slots=8, capacity=4096, token_budget=100))
    for _ in range(5):
        load.scheduler.add([Sequence(range(1000), caller="x", priority=1)])
    load.step()
    dedicated(load, A, length=1000)
    for _ in range(12):
        given: Counter[str] = Counter()
        for chunk in load.step().prefills:
            given[chunk.sequence.owner] += chunk.count
        assert given["a"] >= 50
        assert given[""] >= 25
        assert given.total() == 100


def test_a_full_queue_refuses_no_owner_its_own_part() -> None:
    load = Load(make(max_waiting=2, max_waiting_per_caller=2))
    load.send("flood", 4)
    load.step()
    load.send("flood", 2)
    mine = dedicated(load, A, 2)
    with pytest.raises(CapacityError):
        dedicated(load, A)
    load.step()
    assert all(sequence.running for sequence in mine)


def test_moving_a_caller_to_dedicated_and_back_costs_it_no_turn() -> None:
    load = Load(make(slots=2))
    load.send("other", 100)
    dedicated(load, Share("a", 50), 40)
    load.until(lambda: sum(s.caller == "a" for s in load.ended) == 40)
    start = len(load.ended)
    load.send("other", 40)
    load.send("a", 40)
    load.until(lambda: len(load.ended) >= start + 40)
    parts = Counter(sequence.caller for sequence in load.ended[start:])
    assert 16 <= parts["a"] <= 24


def test_owners_together_leave_a_quarter_and_a_slot_for_everybody() -> None:
    for slots in range(1, 9):
        load = Load(make(slots=slots))
        (one,) = load.send("x")
        for owner in "abcdef":
            dedicated(load, Share(owner, 40), 4)
        load.until(lambda one=one: one.phase is Phase.FINISHED)  # type: ignore[misc]
        while load.scheduler.has_work:
            load.step()


def test_the_oldest_of_the_others_gets_on_however_often_owners_come() -> None:
    load = Load(make(slots=4, token_budget=8))
    others = [Sequence(range(60), caller="x") for _ in range(6)]
    for sequence in others:
        load.scheduler.add([sequence])
    for _ in range(600):
        if all(sequence.phase is Phase.FINISHED for sequence in others):
            break
        dedicated(load, Share("a", MOST_RESERVED), 1)
        load.step()
        load.step()
    assert all(sequence.phase is Phase.FINISHED for sequence in others)


SLOTS = 8


class Churn(RuleBasedStateMachine):
    """Sequences with and without shares come, run, end and are cancelled in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.load = Load(make(slots=SLOTS, token_budget=32, max_waiting=40))
        self.shares: dict[str, Share] = {}

    @initialize(percents=st.lists(st.integers(1, 37), min_size=2, max_size=2))
    def reserve(self, percents: list[int]) -> None:
        self.shares = {owner: Share(owner, p) for owner, p in zip("ab", percents, strict=True)}

    @rule(
        owner=st.sampled_from(["a", "b", ""]),
        caller=st.sampled_from("xyz"),
        count=st.integers(1, 6),
        length=st.integers(1, 60),
        priority=st.integers(0, 1),
    )
    def arrive(self, owner: str, caller: str, count: int, length: int, priority: int) -> None:
        share = self.shares.get(owner)
        for _ in range(count):
            sequence = Sequence(range(length), caller=caller, priority=priority, share=share)
            unused = self.kept(owner) - sum(s.owner == owner for s in self.everyone())
            try:
                self.load.scheduler.add([sequence])
            except CapacityError:
                assert not owner or unused <= 0, "within its share an owner is never refused"

    @precondition(lambda self: self.everyone())
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.load.scheduler.remove(data.draw(st.sampled_from(self.everyone())))

    @rule()
    def step(self) -> None:
        before = Counter(sequence.owner for sequence in self.everyone())
        running = [s for s in self.everyone() if s.running]
        reserved = self.oldest_of_each_owner(running)
        plan = self.load.step()
        ran = self.running_during(plan)
        started = ran.difference(running).union(ran.intersection(plan.preempted))
        admitted = Counter(s.owner for s in ran)
        for owner in self.shares:
            assert admitted[owner] >= min(before[owner], self.kept(owner))
        for victim in plan.preempted:
            own = any(s.owner == victim.owner for s in started)
            assert victim not in reserved or own, "but for its owner's own"
        assert admitted.total() <= SLOTS
        given: Counter[str] = Counter()
        for chunk in plan.prefills:
            given[chunk.sequence.owner] += chunk.count
        assert given.total() <= max(1, 32 - len(plan.decodes))

    def oldest_of_each_owner(self, running: list[Sequence]) -> set[Sequence]:
        """What is reserved in the next step, whichever of an owner's were when they came."""
        return {
            sequence
            for owner in self.shares
            for sequence in [s for s in running if s.owner == owner][: self.kept(owner)]
        }

    def running_during(self, plan: Plan) -> set[Sequence]:
        ran = {*plan.decodes, *(chunk.sequence for chunk in plan.prefills)}
        return ran | {s for s in self.everyone() if s.running}

    def kept(self, owner: str) -> int:
        share = self.shares.get(owner)
        return 0 if share is None else max(1, SLOTS * share.percent // 100)

    def everyone(self) -> list[Sequence]:
        scheduler = self.load.scheduler
        return sorted((*scheduler._queue, *scheduler._slots.running), key=lambda s: s.arrival)

    @invariant()
    def integrity(self) -> None:
        self.load.scheduler.check_integrity()
        classes = self.load.scheduler.classes
        assert sum(classes.running) == self.load.scheduler.running
        assert sum(classes.waiting) == self.load.scheduler.waiting
        assert 0 <= classes.reserved < SLOTS

    def teardown(self) -> None:
        """Nobody starves: what is there ends, also beside an owner who always comes anew."""
        old = [sequence for sequence in self.everyone() if sequence.share is None]
        for _ in range(60 * (len(old) + 1)):
            if all(sequence.phase is Phase.FINISHED for sequence in old):
                break
            if self.load.scheduler.waiting < 20:
                dedicated(self.load, self.shares.get("a"))
            self.load.step()
        assert all(sequence.phase is Phase.FINISHED for sequence in old)
        self.load.until(lambda: not self.load.scheduler.has_work, 5000)
        assert self.load.scheduler.classes.reserved == 0


TestChurn = Churn.TestCase

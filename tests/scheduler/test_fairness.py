"""Whose turn it is: callers, priorities, bounds and preemption, in whole scenarios."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from appliance.errors import CapacityError
from appliance.scheduler import Budget, Phase, Plan, Scheduler, Sequence
from appliance.scheduler.preemption import MOST_PREEMPTIONS

PROMPT, ANSWER = 8, 8


def make(**changes: int) -> Scheduler:
    settings: dict[str, Any] = {
        "slots": 4,
        "capacity": 256,
        "token_budget": 64,
        "max_waiting": 1000,
    }
    return Scheduler(**(settings | {"reuse_block": 4} | changes))


class Load:
    """Steps a scheduler; each sequence ends after `ANSWER` tokens."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.ended: list[Sequence] = []
        self.plans: list[Plan] = []

    def send(self, caller: str, count: int = 1, priority: int = 0) -> list[Sequence]:
        """`count` requests of one sequence. Without a namespace no two share a prefix."""
        sent = [Sequence(range(PROMPT), caller=caller, priority=priority) for _ in range(count)]
        for sequence in sent:
            self.scheduler.add([sequence])
        return sent

    def step(self) -> Plan:
        plan = self.scheduler.schedule()
        self.scheduler.commit(plan)
        for sequence in plan.sampled:
            self.scheduler.append(sequence, 7)
            if sequence.generated == ANSWER:
                self.scheduler.remove(sequence)
                self.ended.append(sequence)
        self.scheduler.check_integrity()
        self.plans.append(plan)
        return plan

    def until(self, condition: Callable[[], bool], steps: int = 2000) -> int:
        """Step until `condition` holds; the number of steps. Fails if it never does."""
        for count in range(steps):
            if condition():
                return count
            self.step()
        raise AssertionError("it never came true")


def test_two_hundred_requests_do_not_keep_anothers_first_one_waiting() -> None:
    load = Load(make())
    load.send("flood", 200)
    for _ in range(5):
        load.step()
    (single,) = load.send("single")
    assert load.until(lambda: single.generated > 0) <= 2


def test_singles_are_served_at_once_as_long_as_the_flood_lasts() -> None:
    load = Load(make())
    load.send("flood", 200)
    load.step()
    waits = []
    while load.scheduler.waiting > 20:
        (single,) = load.send("single")
        waits.append(load.until(lambda s=single: s.generated > 0))  # type: ignore[misc]
        load.until(lambda s=single: s.phase is Phase.FINISHED)  # type: ignore[misc]
    assert len(waits) > 10
    # A caller that was served a moment ago is a newcomer no more; it still waits for few steps.
    assert sorted(waits)[len(waits) * 9 // 10] <= 2
    assert max(waits) <= ANSWER + 2


@pytest.mark.parametrize("before", range(5, 40))
def test_a_single_prompt_of_several_steps_has_all_but_one_in_eight(before: int) -> None:
    load = Load(make(token_budget=16))
    for _ in range(50):
        load.scheduler.add([Sequence(range(100), caller="flood")])
    for _ in range(before):
        load.step()
    single = Sequence(range(100, 140), caller="single")
    load.scheduler.add([single])
    assert load.until(lambda: single.generated > 0) <= -(-40 // 13) + 1, "beside three at most"
    load.until(lambda: len(load.ended) > 20)


def test_callers_who_all_wait_get_equal_parts_whatever_they_queued() -> None:
    load = Load(make(slots=3))
    for caller, count in (("a", 200), ("b", 60), ("c", 60)):
        load.send(caller, count)
    load.until(lambda: len(load.ended) >= 120)
    parts = Counter(sequence.caller for sequence in load.ended)
    assert all(38 <= parts[caller] <= 42 for caller in "abc"), parts


def test_who_was_alone_for_long_owes_nothing() -> None:
    load = Load(make(slots=2))
    load.send("early", 100)
    load.until(lambda: len(load.ended) >= 60)
    load.send("late", 100)
    start = len(load.ended)
    load.until(lambda: len(load.ended) >= start + 40)
    parts = Counter(sequence.caller for sequence in load.ended[start:])
    assert 17 <= parts["early"] <= 23


def test_who_was_idle_for_long_has_saved_nothing() -> None:
    load = Load(make(slots=2))
    load.send("busy", 100)
    load.send("idle", 1)
    load.until(lambda: len(load.ended) >= 60)
    load.send("idle", 100)
    start = len(load.ended)
    load.until(lambda: len(load.ended) >= start + 40)
    parts = Counter(sequence.caller for sequence in load.ended[start:])
    assert 17 <= parts["busy"] <= 23


def test_a_prompt_that_was_cancelled_is_not_charged() -> None:
    load = Load(make(slots=1, token_budget=2))
    first = Sequence(range(200), caller="a")
    load.scheduler.add([first])
    load.step()
    (mine,) = load.send("a")
    others = load.send("b", 3)
    load.scheduler.remove(first)
    load.until(lambda: mine.phase is Phase.FINISHED)
    assert [other.phase is Phase.FINISHED for other in others] == [True, False, False]


def test_the_higher_priority_goes_first_and_the_lower_gets_every_eighth_slot() -> None:
    load = Load(make(slots=1))
    load.send("a", 30)
    load.send("b", 60, priority=1)
    load.until(lambda: len(load.ended) >= 80)
    admitted = [s.priority for plan in load.plans for s in plan.admitted]
    assert admitted[:16].count(1) == 14
    firsts = [place for place, priority in enumerate(admitted) if priority == 0]
    gaps = [after - before for before, after in itertools.pairwise(firsts)]
    assert max(gaps) <= 8


def test_a_higher_priority_takes_a_slot_at_once_and_the_lower_goes_on_later() -> None:
    load = Load(make())
    low = load.send("a", 4)
    load.step()
    load.step()
    (high,) = load.send("b", priority=1)
    plan = load.step()
    (victim,) = plan.preempted
    assert victim in low
    assert victim.generated == 2, "it keeps what it has said"
    assert high.generated == 1
    load.until(lambda: len(load.ended) >= 5)
    assert all(sequence.generated == ANSWER for sequence in low)
    assert high in load.ended[:4]


def test_the_lowest_priority_with_the_fewest_tokens_gives_way() -> None:
    load = Load(make(slots=3))
    load.send("a", priority=1)
    load.step()
    load.send("a", priority=0)
    load.step()
    (newest,) = load.send("a", priority=0)
    load.step()
    load.send("b", priority=2)
    assert load.step().preempted == (newest,)


def test_equals_do_not_preempt_each_other_without_need() -> None:
    load = Load(make())
    for caller in "abcd":
        load.send(caller)
    load.step()
    load.step()
    load.send("e")
    load.send("a", 3)
    assert load.step().preempted == (), "nobody has more than an equal part"


def test_nobody_is_preempted_more_than_twice() -> None:
    load = Load(make(slots=1))
    (low,) = load.send("a")
    load.step()
    while low.phase is not Phase.FINISHED:
        if low.phase is Phase.DECODE:
            load.send("b", priority=1)
        load.step()
    assert low.preemptions == MOST_PREEMPTIONS
    assert low.generated == ANSWER


def test_a_preempted_sequence_reuses_what_is_still_cached() -> None:
    scheduler = make(slots=2)
    low = Sequence(range(100), namespace="n")
    other = Sequence(range(100), namespace="n")
    scheduler.add([low])
    load = Load(scheduler)
    load.step()
    load.step()
    scheduler.add([other])
    load.until(lambda: other.phase is Phase.DECODE)
    load.send("b", priority=1)
    (victim,) = load.step().preempted
    load.until(lambda: victim.phase is Phase.DECODE)
    resumed = [c for plan in load.plans for c in plan.prefills if c.sequence is victim][-1]
    assert resumed.start >= 96


def test_a_higher_priority_does_not_wait_for_a_lower_one_to_compute_its_prefix() -> None:
    load = Load(make(token_budget=8))
    low = Sequence(range(200), namespace="n")
    high = Sequence(range(200), namespace="n", priority=1)
    load.scheduler.add([low])
    load.step()
    load.scheduler.add([high])
    load.step()
    assert high.phase is Phase.PREFILL
    assert high.cached == 8
    load.until(lambda: high.generated > 0)
    assert low.generated == 0


def test_a_short_step_is_longer_for_a_modest_callers_prompt_and_for_no_other() -> None:
    load = Load(make(slots=8))
    load.send("flood", 4)
    load.step()
    single, long = Sequence(range(40), caller="single"), Sequence(range(100), caller="flood")
    load.scheduler.add([long])
    load.scheduler.add([single])
    short = Budget(tokens=10, longer=50)
    plan = load.scheduler.schedule(short)
    assert len(plan.decodes) == 4
    assert {c.sequence: c.count for c in plan.prefills} == {single: 40}
    load.scheduler.commit(plan)
    for sequence in plan.sampled:
        load.scheduler.append(sequence, 7)
    plan = load.scheduler.schedule(short)
    assert len(plan.decodes) == 5
    assert {c.sequence: c.count for c in plan.prefills} == {long: 5}


def test_the_aged_turn_of_a_lower_priority_holds_nobody_up() -> None:
    load = Load(make(slots=16, token_budget=96))
    load.scheduler.add([Sequence(range(200), caller="b", priority=1)])
    load.send("b", 6, priority=1)
    (low,) = load.send("a")
    last = Sequence(range(4), caller="b", priority=1)
    load.scheduler.add([last])
    load.step()
    assert (low.phase, low.computed) == (Phase.PREFILL, 0)
    assert last.generated == 1


def test_bounds_say_whose_they_are() -> None:
    load = Load(make(slots=1, max_waiting=4, max_waiting_per_caller=2))
    load.send("a", 3)
    with pytest.raises(CapacityError, match="this caller's") as refused:
        load.send("a")
    assert refused.value.code == "caller_queue_full"
    load.send("b", 2)
    with pytest.raises(CapacityError) as refused:
        load.send("c")
    assert refused.value.code == "queue_full"


def test_who_runs_nothing_need_not_wait_for_the_clock_of_who_has_all() -> None:
    load = Load(make(slots=4, token_budget=256))
    for _ in range(100):
        load.scheduler.add([Sequence(range(8), caller="flood")])
    load.step()
    for _ in range(6):
        single = Sequence(range(100), caller="single")
        load.scheduler.add([single])
        # A step more if all others are in their prompts, which give way to nobody's turn.
        assert load.until(lambda s=single: s.generated > 0) <= 2  # type: ignore[misc]
        load.until(lambda s=single: s.phase is Phase.FINISHED)  # type: ignore[misc]

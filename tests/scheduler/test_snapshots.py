"""Where a model with a running state can go on: in which slot, from which place, by which moves."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.scheduler import Plan, Scheduler, Sequence
from appliance.scheduler.plan import Move
from appliance.scheduler.snapshots import Snapshots, places

BLOCK = 4
PROMPT = list(range(100, 150))
BEFORE_ITS_END = 40


def make(**changes: int) -> Scheduler:
    settings: dict[str, Any] = {
        "slots": 3,
        "capacity": 256,
        "token_budget": 256,
        "max_waiting": 8,
        "reuse_block": BLOCK,
        "snapshots": 2,
    }
    return Scheduler(**(settings | changes))


def step(scheduler: Scheduler) -> Plan:
    plan = scheduler.schedule()
    scheduler.commit(plan)
    scheduler.check_integrity()
    return plan


def run(scheduler: Scheduler, prompt: list[int], answer: int = 0) -> tuple[Sequence, Plan]:
    """The sequence, and the plan in which its prompt was computed."""
    sequence = Sequence(prompt, namespace="a")
    scheduler.add([sequence])
    first = step(scheduler)
    scheduler.append(sequence, 7)
    for token in range(answer):
        step(scheduler)
        scheduler.append(sequence, token)
    scheduler.remove(sequence)
    scheduler.check_integrity()
    return sequence, first


@pytest.mark.parametrize(
    ("begun", "shared", "opening", "wanted"),
    [
        (0, 0, 0, (88,)),
        (0, 50, 0, (48, 88)),
        (0, 15, 0, (88,)),
        (72, 72, 0, (88,)),
        (76, 80, 0, ()),
        (0, 0, 50, (48, 88)),
        (0, 0, 15, (88,)),
        (0, 30, 50, (28, 88)),
        (0, 15, 50, (48, 88)),
        (40, 50, 50, (88,)),
        (0, 0, 97, (88, 96)),
    ],
)
def test_snapshots_stand_before_the_end_and_at_a_fork_if_they_are_worth_it(
    begun: int, shared: int, opening: int, wanted: tuple[int, ...]
) -> None:
    """A fork that is known, or else the one that is likely."""
    assert places(97, begun, shared, BLOCK, opening=opening) == wanted


def test_a_prompt_is_computed_up_to_its_snapshot_and_then_the_rest_in_the_same_step() -> None:
    _, plan = run(make(), PROMPT)
    assert [(c.start, c.count, c.snapshot is None) for c in plan.prefills] == [
        (0, BEFORE_ITS_END, False),
        (BEFORE_ITS_END, 10, True),
    ]


def test_what_goes_on_behind_the_answer_takes_the_slot_as_it_is() -> None:
    scheduler = make()
    first, _ = run(scheduler, PROMPT, answer=3)
    second, plan = run(scheduler, [*first.tokens, 5, 6])
    assert second.cached == len(first.tokens) - 1
    assert plan.moves == ()


def test_what_parts_from_the_answer_gets_the_state_before_the_prompts_end() -> None:
    scheduler = make()
    _, before = run(scheduler, PROMPT, answer=9)
    (kept,) = [c.snapshot for c in before.prefills if c.snapshot is not None]
    second, plan = run(scheduler, [*PROMPT, 1, 2, 3])
    assert second.cached == BEFORE_ITS_END
    assert plan.moves == (Move(0, 1, BEFORE_ITS_END, snapshot=kept),)


def test_a_slot_whose_last_tokens_are_of_no_use_gets_its_own_snapshot_back() -> None:
    scheduler = make(slots=1)
    _, before = run(scheduler, PROMPT)
    (kept,) = [c.snapshot for c in before.prefills if c.snapshot is not None]
    second, plan = run(scheduler, [*PROMPT[:-5], 1, 2, 3])
    assert second.cached == BEFORE_ITS_END
    assert plan.moves == (Move(0, 0, 0, snapshot=kept),)


def test_nobody_goes_on_between_two_states() -> None:
    scheduler = make()
    run(scheduler, PROMPT)
    second, plan = run(scheduler, [*PROMPT[: BEFORE_ITS_END - 1], 1, 2, 3])
    assert second.cached == 0
    assert plan.moves == ()


def test_the_third_with_a_common_beginning_goes_on_where_the_second_parted_from_the_first() -> None:
    scheduler = make()
    common, cached = list(range(30)), []
    for own in range(3):
        sequence, _ = run(scheduler, [*common, *range(1000 * (own + 1), 1000 * (own + 1) + 30)])
        cached.append(sequence.cached)
    assert cached == [0, 0, 28]


def ask(scheduler: Scheduler, own: int, opening: int) -> Sequence:
    """One of many prompts that begin alike for 30 tokens, and are said to for `opening`."""
    prompt = [*range(30), *range(1000 * own, 1000 * own + 30)]
    sequence = Sequence(prompt, namespace="a", opening=opening)
    scheduler.add([sequence])
    step(scheduler)
    scheduler.append(sequence, 7)
    scheduler.remove(sequence)
    scheduler.check_integrity()
    return sequence


def test_the_second_with_an_opening_that_was_told_goes_on_behind_it() -> None:
    scheduler = make()
    assert [ask(scheduler, own, 30).cached for own in (1, 2, 3)] == [0, 28, 28]


def test_an_opening_that_differs_after_all_leaves_where_it_does_to_the_third() -> None:
    scheduler = make()
    assert [ask(scheduler, own, 45).cached for own in (1, 2, 3)] == [0, 0, 28]


def test_those_that_come_together_wait_until_one_has_computed_their_opening() -> None:
    scheduler = make(token_budget=20)
    prompts = [[*range(30), *range(1000 * own, 1000 * own + 30)] for own in (1, 2, 3)]
    sequences = [Sequence(prompt, namespace="a", opening=30) for prompt in prompts]
    scheduler.add(sequences)
    while scheduler.has_work:
        for sequence in step(scheduler).sampled:
            scheduler.append(sequence, 7)
            scheduler.remove(sequence)
    assert [sequence.cached for sequence in sequences] == [0, 28, 28]


def test_who_follows_waits_for_a_state_and_not_for_the_whole_prompt() -> None:
    scheduler = make(token_budget=44)
    leader, follower = (Sequence(PROMPT, namespace="a") for _ in range(2))
    scheduler.add([leader, follower])
    assert {chunk.sequence for chunk in step(scheduler).prefills} == {leader}
    step(scheduler)
    assert follower.cached == 44, "where the other one's own state stands"


def test_of_more_places_than_numbers_the_last_one_gives_way() -> None:
    snapshots = Snapshots([5, 6])
    assert [snapshots.plan(place) for place in (8, 16, 8)] == [5, 6, 5]
    assert snapshots.plan(24) == 6
    assert snapshots.at == {8: 5, 24: 6}
    snapshots.cut(23)
    assert snapshots.at == {8: 5}
    snapshots.check_integrity()


def test_a_model_without_running_states_has_no_snapshots() -> None:
    _, plan = run(make(snapshots=0), PROMPT)
    assert [(chunk.count, chunk.snapshot) for chunk in plan.prefills] == [(50, None)]

"""What is reused of earlier work, and what never is. Tokens here are numbers without meaning."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.scheduler import Plan, Scheduler, Sequence

BLOCK = 4
SYSTEM = list(range(100, 120))


def make(**changes: int) -> Scheduler:
    settings: dict[str, Any] = {
        "slots": 4,
        "capacity": 256,
        "token_budget": 64,
        "max_waiting": 99,
    }
    return Scheduler(**(settings | {"reuse_block": BLOCK} | changes))


def step(scheduler: Scheduler) -> Plan:
    plan = scheduler.schedule()
    scheduler.commit(plan)
    for sequence in plan.sampled:
        scheduler.append(sequence, 7)
    scheduler.check_integrity()
    return plan


def run(scheduler: Scheduler, prompt: list[int], namespace: str = "a") -> Sequence:
    """Serve one sequence to its end, with nobody beside it."""
    sequence = Sequence(prompt, namespace=namespace)
    scheduler.add([sequence])
    while sequence.generated < 3:
        step(scheduler)
    scheduler.remove(sequence)
    return sequence


def test_a_second_identical_prompt_computes_its_last_tokens_only() -> None:
    scheduler = make()
    assert run(scheduler, SYSTEM).cached == 0
    assert run(scheduler, SYSTEM).cached == len(SYSTEM) - 1
    assert run(scheduler, [*SYSTEM, 1]).cached == len(SYSTEM)


@pytest.mark.parametrize("shared", range(len(SYSTEM)))
def test_what_is_shared_is_reused_to_the_token_once_it_is_a_block(shared: int) -> None:
    scheduler = make()
    run(scheduler, SYSTEM)
    other = [*SYSTEM[:shared], *range(8)]
    assert run(scheduler, other).cached == (shared if shared >= BLOCK else 0)


@pytest.mark.parametrize("shared", range(len(SYSTEM)))
def test_but_for_tokens_that_are_to_be_computed_anew(shared: int) -> None:
    scheduler = make(anew=1)
    run(scheduler, SYSTEM)
    other = [*SYSTEM[:shared], *range(8)]
    assert run(scheduler, other).cached == (shared - 1 if shared >= BLOCK else 0)
    assert run(scheduler, SYSTEM).cached == len(SYSTEM) - 2


def test_of_two_prefixes_the_one_that_shares_more_is_reused() -> None:
    for order in (1, -1):
        scheduler = make()
        for more in [(1, 1, 1), (1, 2, 2)][::order]:
            run(scheduler, [*SYSTEM, *more, *range(200, 230)])
        assert run(scheduler, [*SYSTEM, 1, 2, 3]).cached == len(SYSTEM) + 2


def test_the_next_turn_finds_the_answer_too_and_takes_the_slot_without_a_copy() -> None:
    scheduler = make()
    first = run(scheduler, SYSTEM)
    second = Sequence([*first.tokens, 1, 2], namespace="a")
    scheduler.add([second])
    plan = step(scheduler)
    # Of the 23 tokens the last was sampled and never computed.
    assert second.cached == 22
    assert plan.moves == ()


@pytest.mark.parametrize("namespaces", [("a", "b"), ("", ""), ("a", ""), ("", "a")])
def test_nothing_crosses_a_namespace(namespaces: tuple[str, str]) -> None:
    scheduler = make()
    run(scheduler, SYSTEM, namespaces[0])
    assert run(scheduler, SYSTEM, namespaces[1]).cached == 0


def test_sequences_of_one_request_compute_their_prompt_once() -> None:
    for namespace in ("", "a"):
        scheduler = make(token_budget=8)
        group = [Sequence(SYSTEM, namespace=namespace) for _ in range(3)]
        scheduler.add(group)
        computed = 0
        while any(sequence.generated == 0 for sequence in group):
            computed += sum(chunk.count for chunk in step(scheduler).prefills)
        assert [sequence.cached for sequence in group] == [0, 19, 19]
        assert computed == len(SYSTEM) + 2


def test_a_request_without_a_namespace_leaves_nothing_behind() -> None:
    scheduler = make()
    run(scheduler, SYSTEM, "a")
    for _ in range(10):
        run(scheduler, list(range(50)), "")
    assert run(scheduler, SYSTEM, "a").cached == 19, "it was not pushed out"


def test_a_prompt_that_shares_with_one_under_way_waits_for_the_shared_part_only() -> None:
    scheduler = make(token_budget=8)
    long, short = [Sequence([*SYSTEM, *range(n)], namespace="a") for n in (200, 1)]
    scheduler.add([long, short])
    while short.generated == 0:
        step(scheduler)
    assert short.cached == len(SYSTEM)
    assert long.computed < 64


def test_whoever_follows_goes_on_when_the_one_ahead_is_cancelled() -> None:
    scheduler = make(token_budget=8)
    leader, follower = [Sequence(SYSTEM, namespace="a") for _ in range(2)]
    scheduler.add([leader, follower])
    step(scheduler)
    scheduler.remove(leader)
    step(scheduler)
    assert follower.cached == 8, "what the other had computed is used"


def test_a_follower_can_be_cancelled_while_it_follows() -> None:
    scheduler = make(token_budget=8)
    leader, follower = [Sequence(SYSTEM, namespace="a") for _ in range(2)]
    scheduler.add([leader, follower])
    step(scheduler)
    assert scheduler.waiting == 1
    scheduler.remove(follower)
    scheduler.check_integrity()
    assert scheduler.waiting == 0


def test_the_least_recently_used_prefix_gives_way() -> None:
    scheduler = make(slots=2)
    one, two, three = ([first, *range(30)] for first in (1001, 1002, 1003))
    run(scheduler, one)
    run(scheduler, two)
    assert run(scheduler, one).cached > 0
    run(scheduler, three)
    assert run(scheduler, one).cached > 0
    assert run(scheduler, two).cached == 0


def test_a_shared_beginning_is_copied_so_that_both_ends_stay() -> None:
    scheduler = make()
    one, two = [*SYSTEM, *range(20)], [*SYSTEM, *range(50, 70)]
    run(scheduler, one)
    assert run(scheduler, two).cached == len(SYSTEM)
    assert run(scheduler, one).cached == len(one) - 1
    assert run(scheduler, two).cached == len(two) - 1


def test_cached_prefixes_never_keep_anybody_waiting() -> None:
    scheduler = make(slots=4)
    for number in range(4):
        run(scheduler, [number, *range(30)])
    group = [Sequence([1000 + number, *range(30)], namespace="b") for number in range(4)]
    scheduler.add(group)
    while any(sequence.generated == 0 for sequence in group):
        step(scheduler)
    assert scheduler.running == 4


def test_hashes_that_collide_are_no_match() -> None:
    assert hash((1, -1)) == hash((1, -2)), "else this test shows nothing"
    scheduler = make()
    run(scheduler, [-1, *range(40)])
    assert run(scheduler, [-2, *range(40)]).cached == 0

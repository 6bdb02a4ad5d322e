"""No interleaving of requests spends more than a budget, or starts more than a minute allows."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from appliance.access import Limits
from appliance.errors import QuotaError, RateLimitError
from appliance.metering import (
    FREE,
    Clock,
    Demand,
    Limiter,
    Reservation,
    Spent,
    Standing,
    Subject,
    Tariff,
)
from appliance.metering.window import SECONDS, Window

NOON = 1_795_392_000 + 43_200
"""2026-11-23 12:00:00 UTC."""
DAY = 86_400
PENNY = Tariff(1_000_000, 1_000_000, 1_000_000)
"""One micro-unit for each token."""


@dataclass
class FakeClock:
    """A clock that a test moves."""

    now: float = 0.0
    clock: Clock = field(init=False)

    def __post_init__(self) -> None:
        self.clock = Clock(wall=lambda: NOON + self.now, steady=lambda: self.now)


@pytest.fixture
def time() -> FakeClock:
    return FakeClock()


@pytest.fixture
def limiter(time: FakeClock) -> Limiter:
    return Limiter(time.clock)


def key(**limits: int) -> list[Subject]:
    return [Subject("key", "the key", Limits(**limits))]


def take(limiter: Limiter, subjects: list[Subject], prompt: int, most: int) -> Reservation:
    return limiter.reserve(subjects, Demand(PENNY, prompt, 1, most))


def test_a_budget_is_reserved_and_what_is_not_used_comes_back(
    limiter: Limiter, time: FakeClock
) -> None:
    subjects = key(tokens_per_day=100)
    first = take(limiter, subjects, 10, 50)
    with pytest.raises(RateLimitError) as caught:
        take(limiter, subjects, 10, 50)
    assert caught.value.wait_ms == 1000
    first.settle(15, 15, NOON)
    second = take(limiter, subjects, 10, 75)
    second.settle(85, 85, NOON)
    with pytest.raises(QuotaError):
        take(limiter, subjects, 1, 1)
    time.now = DAY
    take(limiter, subjects, 10, 90)


def test_a_request_that_can_never_fit_into_what_is_left_is_told_so(limiter: Limiter) -> None:
    subjects = key(money_per_month=100)
    take(limiter, subjects, 10, 50)
    with pytest.raises(QuotaError, match="may need"):
        take(limiter, subjects, 10, 91)


def test_a_free_model_needs_no_money(limiter: Limiter) -> None:
    subjects = key(money_per_day=0)
    with pytest.raises(QuotaError):
        take(limiter, subjects, 1, 1)
    limiter.reserve(subjects, Demand(FREE, 10, 1, 10)).settle(20, 0, NOON)


def test_a_month_is_a_calendar_month(limiter: Limiter, time: FakeClock) -> None:
    subjects = key(tokens_per_month=100)
    take(limiter, subjects, 10, 90).settle(100, 100, NOON)
    time.now = 7 * DAY
    with pytest.raises(QuotaError):
        take(limiter, subjects, 1, 1)
    time.now = 8 * DAY  # the first of December
    take(limiter, subjects, 10, 90)


def test_an_answer_that_ended_before_midnight_is_charged_to_its_day(
    limiter: Limiter, time: FakeClock
) -> None:
    subjects = key(tokens_per_day=100)
    running = take(limiter, subjects, 10, 90)
    time.now = DAY
    running.settle(100, 100, NOON + DAY / 2 - 1)
    take(limiter, subjects, 10, 90)


def test_a_key_and_its_project_are_asked_together_or_not_at_all(limiter: Limiter) -> None:
    mine = Subject("key", "the key", Limits(tokens_per_day=1000))
    ours = Subject("project", "the project", Limits(tokens_per_day=100))
    with pytest.raises(QuotaError, match="the project"):
        limiter.reserve([mine, ours], Demand(PENNY, 10, 1, 200))
    assert limiter.account("key").reserved.tokens == 0
    reserved = limiter.reserve([mine, ours], Demand(PENNY, 10, 1, 50))
    assert limiter.account("key").reserved.tokens == 60
    assert limiter.account("project").reserved.tokens == 60
    reserved.settle(20, 20, NOON)
    for subject in ("key", "project"):
        account = limiter.account(subject)
        assert (account.reserved.tokens, account.spent(NOON)[0].tokens) == (0, 20)


def test_an_open_ended_request_takes_what_there_is(limiter: Limiter) -> None:
    def allowance(sequences: int = 1, **limits: int) -> int:
        subjects = [Subject(str(limits), "the key", Limits(**limits))]
        demand = Demand(PENNY, 10, sequences, 4000, open_ended=True)
        reservation = limiter.reserve(subjects, demand)
        reservation.release()
        return reservation.allowance

    assert allowance() == 4000
    assert allowance(tokens_per_day=10_000) == 4000
    assert allowance(tokens_per_day=100) == 90
    assert allowance(tokens_per_day=100, sequences=4) == 22
    assert allowance(money_per_month=50) == 40
    assert allowance(tokens_per_minute=30) == 20
    with pytest.raises(QuotaError):
        allowance(tokens_per_day=10)


def test_an_open_ended_request_does_not_shrink_to_what_others_hold(limiter: Limiter) -> None:
    subjects = key(tokens_per_day=100)
    demand = Demand(PENNY, 10, 1, 4000, open_ended=True)
    assert limiter.reserve(subjects, demand).allowance == 90
    with pytest.raises(RateLimitError):
        limiter.reserve(subjects, demand)


def test_a_reservation_ends_once(limiter: Limiter) -> None:
    reservation = take(limiter, key(tokens_per_day=100), 10, 50)
    reservation.settle(20, 20, NOON)
    reservation.settle(20, 20, NOON)
    reservation.release()
    account = limiter.account("key")
    assert (account.running, account.reserved.tokens, account.spent(NOON)[0].tokens) == (0, 0, 20)


def test_a_longer_prompt_than_was_measured_must_fit_too(limiter: Limiter) -> None:
    subjects = key(tokens_per_day=100, tokens_per_minute=1000)
    reservation = take(limiter, subjects, 10, 50)
    reservation.require(10)
    assert limiter.account("key").reserved.tokens == 60
    reservation.require(30)
    assert limiter.account("key").reserved.tokens == 80
    with pytest.raises(QuotaError):
        reservation.require(200)
    reservation.release()
    assert limiter.account("key").reserved.tokens == 0
    assert limiter.account("key").tokens.used(0) == 0


def test_parallel_requests_are_counted_until_they_end(limiter: Limiter) -> None:
    subjects = key(parallel_requests=2)
    running = [limiter.reserve(subjects, Demand(FREE)) for _ in range(2)]
    with pytest.raises(RateLimitError, match="2 parallel"):
        limiter.reserve(subjects, Demand(FREE))
    running[0].release()
    limiter.reserve(subjects, Demand(FREE))


def test_requests_per_minute_say_when_to_come_back(limiter: Limiter, time: FakeClock) -> None:
    subjects = key(requests_per_minute=2)
    limiter.reserve(subjects, Demand(FREE)).release()
    time.now = 20.5
    limiter.reserve(subjects, Demand(FREE)).release()
    with pytest.raises(RateLimitError) as caught:
        limiter.reserve(subjects, Demand(FREE))
    assert caught.value.wait_ms == 39_500
    assert limiter.standing(subjects) == (Standing(2, 0, 60_000), None)
    time.now = 60.0
    limiter.reserve(subjects, Demand(FREE))


def test_tokens_per_minute_count_what_was_used_once_that_is_known(
    limiter: Limiter, time: FakeClock
) -> None:
    subjects = key(tokens_per_minute=100)
    first = take(limiter, subjects, 10, 80)
    assert limiter.standing(subjects) == (None, Standing(100, 10, 60_000))
    time.now = 1.0
    first.settle(30, 30, NOON)
    assert limiter.standing(subjects) == (None, Standing(100, 70, 59_000))
    with pytest.raises(RateLimitError) as caught:
        take(limiter, subjects, 10, 70)
    assert caught.value.wait_ms == 59_000
    with pytest.raises(RateLimitError) as caught:
        take(limiter, subjects, 10, 91)
    assert caught.value.wait_ms is None


def test_the_standing_is_that_of_the_tightest_limit(limiter: Limiter) -> None:
    subjects = [
        Subject("key", "the key", Limits(requests_per_minute=50)),
        Subject("project", "the project", Limits(requests_per_minute=5)),
    ]
    limiter.reserve(subjects, Demand(FREE))
    assert limiter.standing(subjects)[0] == Standing(5, 4, 60_000)


def test_a_limit_that_is_set_counts_what_was_used_before(limiter: Limiter) -> None:
    take(limiter, key(), 10, 50).settle(60, 60, NOON)
    with pytest.raises(QuotaError):
        take(limiter, key(tokens_per_day=100), 10, 50)


def test_a_new_process_knows_what_was_used(limiter: Limiter) -> None:
    rows = [
        Spent("old", "project", NOON // DAY, 40, 4),
        Spent("new", "project", NOON // DAY, 30, 3),
        Spent("new", "project", NOON // DAY - 1, 20, 2),
    ]
    limiter.seed(rows, {"old": "old", "new": "old"})
    day, month = limiter.account("old").spent(NOON)
    assert (day.tokens, day.money, month.tokens, month.money) == (70, 7, 90, 9)
    assert limiter.account("project").spent(NOON)[1].tokens == 90
    assert limiter.seed_since == 1_795_392_000 - 22 * DAY


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 10)), max_size=60), st.integers(1, 25))
@example([(3.133, 1), (19.979, 1)], 1)  # 60 seconds from the first, as floats subtract, are short
def test_no_minute_of_any_position_holds_more_than_its_limit(
    arrivals: list[tuple[float, int]], limit: int
) -> None:
    window, now, admitted = Window(), 0.0, deque[tuple[float, int]]()
    for pause, amount in arrivals:
        now += pause
        wait = window.wait(now, limit, amount)
        if wait == 0.0:
            window.add(now, amount)
            admitted.append((now, amount))
        elif wait is not None:
            assert wait > 0
            assert window.wait(now + wait, limit, amount) == 0.0
            now += wait
    for start, _ in admitted:
        inside = [amount for at, amount in admitted if start <= at < start + SECONDS]
        assert sum(inside) <= limit


class AnyInterleaving(RuleBasedStateMachine):
    """Requests of two keys in one project, in any order, over several days."""

    @initialize(mine=st.integers(1, 2000), ours=st.integers(1, 3000), money=st.integers(1, 3000))
    def begin(self, mine: int, ours: int, money: int) -> None:
        self.time = FakeClock()
        self.limiter = Limiter(self.time.clock)
        project = Subject(
            "project", "the project", Limits(tokens_per_day=ours, money_per_month=money)
        )
        self.subjects = [
            [Subject(f"key-{i}", "the key", Limits(tokens_per_day=mine)), project] for i in (0, 1)
        ]
        self.running: list[tuple[Reservation, int, int, int]] = []

    @rule(
        who=st.integers(0, 1),
        prompt=st.integers(1, 200),
        sequences=st.integers(1, 4),
        most=st.integers(1, 800),
        open_ended=st.booleans(),
    )
    def arrive(self, who: int, prompt: int, sequences: int, most: int, open_ended: bool) -> None:
        demand = Demand(PENNY, prompt, sequences, most, open_ended)
        try:
            reservation = self.limiter.reserve(self.subjects[who], demand)
        except (QuotaError, RateLimitError):
            return
        assert 1 <= reservation.allowance <= most
        assert open_ended or reservation.allowance == most
        self.running.append((reservation, prompt, sequences, reservation.allowance))

    @precondition(lambda self: bool(getattr(self, "running", None)))
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(self.running) - 1))
        reservation, prompt, sequences, allowance = self.running.pop(number)
        if data.draw(st.booleans()):
            used = prompt + data.draw(st.integers(0, sequences * allowance))
            reservation.settle(used, used, self.time.clock.wall())
        reservation.release()

    @rule(hours=st.integers(1, 300))
    def wait(self, hours: int) -> None:
        self.time.now += hours * 3600

    @invariant()
    def nothing_is_overspent(self) -> None:
        for subject in {s.id: s for pair in getattr(self, "subjects", []) for s in pair}.values():
            account = self.limiter.account(subject.id)
            day, month = account.spent(self.time.clock.wall())
            held, limits = account.reserved, subject.limits
            if limits.tokens_per_day is not None:
                assert day.tokens + held.tokens <= limits.tokens_per_day
            if limits.money_per_month is not None:
                assert month.money + held.money <= limits.money_per_month

    def teardown(self) -> None:
        for reservation, *_ in getattr(self, "running", []):
            reservation.release()
        for subject in ("key-0", "key-1", "project"):
            account = self.limiter.account(subject)
            assert (account.running, account.reserved.tokens, account.reserved.money) == (0, 0, 0)


TestAnyInterleaving = AnyInterleaving.TestCase
TestAnyInterleaving.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)

"""The soak's own judgement: what it calls growth, what it excuses, in which order it strikes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from installer.supervise import MAX_STARTS, MAX_STARTS_SECONDS
from tests.soak.ask import LOST, Answer
from tests.soak.faults import Fault, catalogue
from tests.soak.ledger import GRACE_SECONDS, Entry, Ledger, documented
from tests.soak.plan import LAST_START, Strike, plan
from tests.soak.watch import MEMORY_BOUND, Sample, growth

SECONDS, EVERY = 1800.0, 20.0
AWAY = frozenset({"engine_unavailable"})


def samples(memory: Sequence[float], *, process: int = 1, start: float = 0.0) -> list[Sample]:
    return [Sample(start + at, process, 0.0, held, 40) for at, held in enumerate(memory)]


def test_a_leak_is_growth_and_peaks_and_other_lives_are_not() -> None:
    rng = random.Random(1)
    peaks = [100 + rng.random() + (50 if rng.random() < 0.1 else 0) for _ in range(900)]
    leak = [held + at / 60 for at, held in enumerate(peaks)]
    before = samples([held * 3 for held in leak])
    steady = growth([*before, *samples(peaks, process=2, start=900)], 180)
    assert not steady.grows
    assert steady.seconds == 719
    grown = growth([*before, *samples(leak, process=2, start=900)], 180)
    assert grown.grows
    assert grown.memory == pytest.approx(1.0, abs=0.1 * MEMORY_BOUND)


def test_one_descriptor_a_minute_is_growth() -> None:
    lived = [Sample(float(at), 1, 0.0, 100.0, 40 + at // 60) for at in range(900)]
    assert growth(lived, 180).grows


def answer(code: str, status: int, began: float = 0.0, ended: float = 1.0) -> Answer:
    return Answer("/v1", began, ended, status=status, code=code)


def test_an_error_is_excused_by_a_fault_that_explains_it_and_only_meanwhile() -> None:
    ledger = Ledger()
    window = ledger.open("engine killed", AWAY)
    window.began, window.ended = 10.0, 20.0
    after = 20.0 + GRACE_SECONDS
    for entry in (
        Entry(answer("engine_unavailable", 503, 5, 11), "a"),
        Entry(answer("engine_unavailable", 503, after, after + 1), "a"),
        Entry(answer("insufficient_quota", 429), "a", wanted=frozenset({"insufficient_quota"})),
        Entry(answer("", 200), "a"),
    ):
        ledger.note(entry)
    assert ledger.unexplained() == []
    for number, entry in enumerate(
        (
            Entry(answer("engine_unavailable", 503, 8, 9), "a"),
            Entry(answer("engine_unavailable", 503, after + 0.1, after + 1), "b"),
            Entry(answer("engine_unavailable", 500, 11, 12), "c"),
            Entry(answer("internal_error", 500, 11, 12), "d"),
            Entry(answer(LOST, 0, 11, 12), "e"),
            Entry(answer("", 200), "f", wanted=frozenset({"invalid_api_key"})),
        ),
        1,
    ):
        ledger.note(entry)
        assert len(ledger.unexplained()) == number


def test_a_refusal_for_ending_the_engine_takes_two_ends() -> None:
    ledger = Ledger()
    refused = Entry(answer("request_ends_engine", 400, 50, 51), "a", work="same")
    for began in (10.0, 20.0):
        ledger.note(refused)
        assert len(ledger.unexplained()) == 1
        ledger.entries.remove(refused)
        window = ledger.open("engine killed", AWAY)
        window.began, window.ended = began, began + 4
        for _ in range(2):  # twice at the same end
            ended = answer("engine_unavailable", 503, began, began + 1)
            ledger.note(Entry(ended, "a", work="same"))
    ledger.note(refused)
    assert ledger.unexplained() == []


def test_the_documentation_has_the_codes_of_faults() -> None:
    known = documented()
    codes = {code for fault in catalogue(errors=True, clock=True) for code in fault.codes}
    assert codes - set(known) == {LOST, "server_error"}  # the latter inside a response


@given(st.integers(0, 1 << 32))
def test_a_plan_strikes_as_often_as_it_may_and_never_more_often_than_a_supervisor_bears(
    seed: int,
) -> None:
    known = catalogue(errors=True, clock=True)
    made = plan(known, random.Random(seed), seconds=SECONDS, every=EVERY)
    assert [strike.at for strike in made] == [EVERY * n for n in range(1, 90)]
    assert {strike.fault.name for strike in made} == {fault.name for fault in known}
    for daemon, share in LAST_START.items():
        starting = [strike for strike in made if daemon in strike.fault.starts]
        assert all(s.at + s.fault.takes < share * SECONDS for s in starting)
        _assert_bearable(starting, daemon)
    for one, other in pairwise(made):
        if one.fault.has and one.fault.has == other.fault.has:
            assert other.at >= one.at + one.fault.takes


def _assert_bearable(starting: Sequence[Strike], daemon: str) -> None:
    for last in starting:
        recent: list[Fault] = [
            strike.fault
            for strike in starting
            if last.at - MAX_STARTS_SECONDS < strike.at <= last.at
        ]
        begun = sum(fault.starts[daemon] for fault in recent)
        assert begun + (last.at < MAX_STARTS_SECONDS) < MAX_STARTS

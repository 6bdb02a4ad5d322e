"""Money is whole micro-units: in, out, and in between."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.audit.event import Tokens
from appliance.errors import UsageError
from appliance.metering import FREE, MICRO, Tariff, format_money, no_price, parse_money

PRICES = st.integers(0, 10**8)
TARIFFS = st.builds(Tariff, PRICES, PRICES, PRICES)
COUNTS = st.integers(0, 10**7)


@st.composite
def bills(draw: st.DrawFn) -> Tokens:
    prompt = draw(COUNTS)
    return Tokens(
        prompt=prompt, cached=draw(st.integers(0, prompt)), generated=draw(COUNTS), reasoning=0
    )


def exact(tariff: Tariff, tokens: Tokens) -> Fraction:
    """Micro-units, unrounded."""
    fresh = tokens.prompt - tokens.cached
    return Fraction(
        fresh * tariff.input + tokens.cached * tariff.cached + tokens.generated * tariff.output,
        10**6,
    )


@given(st.integers(0, 10**15 - 1))
def test_an_amount_that_is_shown_is_read_back(micro: int) -> None:
    assert parse_money(format_money(micro)) == micro
    assert parse_money(format_money(micro, places=0)) == micro


@pytest.mark.parametrize(
    ("text", "micro"), [("0", 0), ("0.28", 280_000), ("12", 12 * MICRO), ("0.000001", 1)]
)
def test_a_decimal_is_read_exactly(text: str, micro: int) -> None:
    assert parse_money(text) == micro


@pytest.mark.parametrize("text", ["", "-1", "1.", ".5", "0.1234567", "1e3", "1,5", "\u0663", " 1"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="amount"):
        parse_money(text)


def test_amounts_are_shown_with_two_places_or_as_many_as_they_need() -> None:
    assert [format_money(m) for m in (0, 280_000, 1, 12_500_000, -1)] == [
        "0.00", "0.28", "0.000001", "12.50", "-0.000001",
    ]  # fmt: skip


def test_published_prices_give_the_cost_that_one_expects() -> None:
    """DeepSeek's: 0.28, 0.028 and 0.42 a million."""
    tariff = Tariff(280_000, 28_000, 420_000)
    assert tariff.cost(Tokens(prompt=10**6, generated=10**6)) == 700_000
    assert tariff.cost(Tokens(prompt=10**6, cached=10**6)) == 28_000
    assert tariff.cost(Tokens(prompt=1)) == 0
    assert tariff.cost(Tokens(prompt=2)) == 1


@given(TARIFFS, bills())
def test_a_cost_is_rounded_once_half_up(tariff: Tariff, tokens: Tokens) -> None:
    difference = tariff.cost(tokens) - exact(tariff, tokens)
    assert Fraction(-1, 2) < difference <= Fraction(1, 2)


@given(TARIFFS, st.lists(bills(), max_size=20))
def test_a_bill_of_parts_is_the_bill_of_the_whole_to_half_a_micro_unit_a_part(
    tariff: Tariff, parts: list[Tokens]
) -> None:
    whole = sum((exact(tariff, part) for part in parts), Fraction(0))
    assert abs(sum(map(tariff.cost, parts)) - whole) <= Fraction(len(parts), 2)


@given(TARIFFS, bills(), COUNTS)
def test_a_bound_holds_whatever_the_cache_has_and_however_long_the_answer_is(
    tariff: Tariff, tokens: Tokens, more: int
) -> None:
    assert tariff.cost(tokens) <= tariff.bound(tokens.prompt, tokens.generated + more)


@given(TARIFFS, st.integers(0, 10**12), COUNTS, st.integers(1, 128))
def test_what_is_affordable_is_the_most_that_fits(
    tariff: Tariff, money: int, prompt: int, sequences: int
) -> None:
    tokens = tariff.affordable(money, prompt, sequences)
    if tokens is None:
        assert tariff.output == 0
        assert tariff.bound(prompt, 10**9) <= money
    elif tokens >= 0:
        assert tariff.bound(prompt, sequences * tokens) <= money
        # One more micro-unit is the most that rounding can hide.
        assert (
            exact(tariff, Tokens(prompt=0, generated=sequences * (tokens + 1)))
            + Fraction(prompt * max(tariff.input, tariff.cached), 10**6)
            > money
        )
    else:
        assert prompt * max(tariff.input, tariff.cached) > money * MICRO or (
            tariff.output == 0 and tariff.bound(prompt, 0) > money
        )


def test_a_model_without_a_price_is_free() -> None:
    price = no_price("guide")
    assert price.version == 0
    assert price.tariff(batch=True) == price.tariff(batch=False) == FREE
    assert FREE.cost(Tokens(prompt=10**9, generated=10**9)) == 0

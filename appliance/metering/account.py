"""What one key or project has used and has reserved, and whether more fits.

The invariant, for each budget of each period: spent + reserved <= limit, as long as nobody lowers
the limit and no request costs more than was reserved for it. It holds because `check` and `hold`
happen without anything between them, and a reservation covers the most that a request can cost.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from appliance.access import Limits
from appliance.errors import QuotaError, RateLimitError
from appliance.metering.money import format_money
from appliance.metering.price import Tariff
from appliance.metering.window import Window

_DAY_SECONDS = 86_400
_KEPT_PERIODS = 4
"""More than one, because an answer may be settled after midnight that ended before it."""
_SHORTLY_MS = 1000
"""When running requests may have given back what they reserved and did not need."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request may use at most: its prompt, and `most` tokens for each sequence.

    `open_ended` requests named no number: they take what there is, and `most` is the context.
    """

    tariff: Tariff
    prompt: int = 0
    sequences: int = 0
    most: int = 0
    open_ended: bool = False

    def amount(self, allowance: int) -> Amount:
        """The most that is used with `allowance` tokens for each sequence."""
        output = self.sequences * allowance
        return Amount(self.prompt + output, self.tariff.bound(self.prompt, output))


@dataclass(slots=True)
class Amount:
    """Tokens, and money in micro-units."""

    tokens: int = 0
    money: int = 0

    def add(self, other: Amount, sign: int = 1) -> None:
        self.tokens += sign * other.tokens
        self.money += sign * other.money


@dataclass(slots=True)
class Account:
    """One subject of limits, for example the key `name`."""

    name: str
    running: int = 0
    reserved: Amount = field(default_factory=Amount)
    requests: Window = field(default_factory=Window)
    tokens: Window = field(default_factory=Window)
    _days: dict[int, Amount] = field(default_factory=dict)
    _months: dict[int, Amount] = field(default_factory=dict)

    def spent(self, wall: float) -> tuple[Amount, Amount]:
        """What was used on the day, and in the month, of `wall`."""
        day, month = periods(wall)
        return self._days.get(day, Amount()), self._months.get(month, Amount())

    def charge(self, amount: Amount, at: float) -> None:
        """`amount` was used by a request that ended at `at`."""
        day, month = periods(at)
        _add(self._days, day, amount)
        _add(self._months, month, amount)

    def allowance(self, limits: Limits, demand: Demand, wall: float) -> int:
        """Tokens for each sequence of an open-ended `demand` that every limit has room for."""
        fits = demand.most
        if limits.tokens_per_minute is not None:
            fits = min(fits, (limits.tokens_per_minute - demand.prompt) // demand.sequences)
        for limit, unit, used in self._budgets(limits, wall):
            if unit == "tokens":
                left = limit - used.tokens - self.reserved.tokens
                fits = min(fits, (left - demand.prompt) // demand.sequences)
            else:
                left = limit - used.money - self.reserved.money
                pays = demand.tariff.affordable(left, demand.prompt, demand.sequences)
                fits = fits if pays is None else min(fits, pays)
        return fits

    def check(self, limits: Limits, need: Amount, wall: float, steady: float) -> None:
        """Raise QuotaError or RateLimitError unless one more request with `need` fits."""
        self._check_budgets(limits, need, wall)
        if limits.parallel_requests is not None and self.running >= limits.parallel_requests:
            raise self._too_fast(f"{limits.parallel_requests} parallel requests", _SHORTLY_MS)
        for limit, window, amount, unit in (
            (limits.requests_per_minute, self.requests, 1, "requests"),
            (limits.tokens_per_minute, self.tokens, need.tokens, "tokens"),
        ):
            if limit is not None:
                wait = window.wait(steady, limit, amount)
                if wait:
                    raise self._too_fast(f"{limit} {unit} per minute", milliseconds(wait))
                if wait is None:
                    raise RateLimitError(
                        f"the request may need {amount} {unit}, and {self.name} is limited to"
                        f" {limit} {unit} per minute",
                        wait_ms=None,
                        hint="ask for less at once, or have the limit raised",
                    )

    def check_more(self, limits: Limits, more: Amount, wall: float, steady: float) -> None:
        """The same for `more` of a request that is counted already."""
        self.check(
            replace(limits, parallel_requests=None, requests_per_minute=None), more, wall, steady
        )

    def _check_budgets(self, limits: Limits, need: Amount, wall: float) -> None:
        reserved = False
        for limit, unit, used in self._budgets(limits, wall):
            spent, held, more = (getattr(amount, unit) for amount in (used, self.reserved, need))
            if not more:
                continue  # a free model, beside a budget of money
            if spent + more > limit:
                raise self._used_up(unit, limit, limit - spent, more)
            reserved = reserved or spent + held + more > limit
        if reserved:
            # What is reserved is mostly more than what will be used: it is worth another try.
            raise self._too_fast("what running requests leave of its budget", _SHORTLY_MS)

    def _budgets(self, limits: Limits, wall: float) -> Iterator[tuple[int, str, Amount]]:
        day, month = self.spent(wall)
        for limit, unit, used in (
            (limits.tokens_per_day, "tokens", day),
            (limits.tokens_per_month, "tokens", month),
            (limits.money_per_day, "money", day),
            (limits.money_per_month, "money", month),
        ):
            if limit is not None:
                yield limit, unit, used

    def _too_fast(self, what: str, wait_ms: int) -> RateLimitError:
        return RateLimitError(
            f"{self.name} is limited to {what}", wait_ms=wait_ms, hint="try again shortly"
        )

    def _used_up(self, unit: str, limit: int, left: int, more: int) -> QuotaError:
        shown = [format_money(n) if unit == "money" else str(n) for n in (limit, left, more)]
        return QuotaError(
            f"{self.name} has {shown[1]} of its {unit} budget of {shown[0]} left, and the request"
            f" may need {shown[2]}",
            hint="ask for fewer tokens, wait for the next day or month, or have the budget raised",
        )


def periods(wall: float) -> tuple[int, int]:
    """Numbers of the day and of the month of `wall`, UTC."""
    moment = time.gmtime(wall)
    return int(wall // _DAY_SECONDS), moment.tm_year * 12 + moment.tm_mon


def month_start(wall: float) -> int:
    """Unix seconds at which the month of `wall` began, UTC."""
    days = time.gmtime(wall).tm_mday - 1
    return (int(wall // _DAY_SECONDS) - days) * _DAY_SECONDS


def milliseconds(seconds: float) -> int:
    """Whole milliseconds, rounded up: a caller that waits so long is not too early."""
    return -(-round(seconds * 1_000_000) // 1000)


def _add(spent: dict[int, Amount], period: int, amount: Amount) -> None:
    spent.setdefault(period, Amount()).add(amount)
    while len(spent) > _KEPT_PERIODS:
        del spent[min(spent)]

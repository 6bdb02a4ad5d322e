"""Limits: what a request may use is reserved before it is admitted, and settled when it ended.

Owns the accounts of all keys and projects, in the memory of the one endpoint process, seeded from
the usage database when it starts. A crash loses the reservations, which is right: the requests
that held them are recorded as aborted and cost nothing. Refuses to wait: a caller is told when to
try again.

One call decides about a key and its project together, and nothing runs between the decision and
the reservation: requests of one event loop cannot both take the last of a budget.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from appliance.access import Limits
from appliance.metering.account import Account, Amount, Demand, milliseconds, month_start
from appliance.metering.report import Spent
from appliance.metering.window import Entry


@dataclass(frozen=True, slots=True)
class Clock:
    """`wall` for days and months, in Unix seconds; `steady` for minutes, never going back."""

    wall: Callable[[], float] = time.time
    steady: Callable[[], float] = time.monotonic


@dataclass(frozen=True, slots=True)
class Subject:
    """Somebody who has limits."""

    id: str
    name: str
    """In the words of a message, for example "the key"."""
    limits: Limits


@dataclass(frozen=True, slots=True)
class Standing:
    """One limit per minute: how much of it is left, and when all of it is, in milliseconds."""

    limit: int
    remaining: int
    reset_ms: int


class Limiter:
    """Accounts by the subject's id."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or Clock()
        self._accounts: dict[str, Account] = {}

    @property
    def seed_since(self) -> int:
        """Usage from here on matters to a budget of today."""
        return month_start(self._clock.wall())

    def seed(self, spent: Iterable[Spent], lineages: Mapping[str, str]) -> None:
        """Charge what was used before this process began; `lineages` is of each key id."""
        for row in spent:
            amount, at = Amount(row.tokens, row.cost), row.day * 86_400
            for subject in (lineages.get(row.key_id, row.key_id), row.project):
                self._account(subject).charge(amount, at)

    def reserve(self, subjects: Sequence[Subject], demand: Demand) -> Reservation:
        """Reserve `demand` for all of `subjects` or for none.

        Raises QuotaError if a budget is used up, RateLimitError if another limit is reached.
        """
        wall, steady = self._clock.wall(), self._clock.steady()
        held = [(self._account(subject.id, subject.name), subject.limits) for subject in subjects]
        allowance = demand.most
        if demand.open_ended:
            fits = [account.allowance(limits, demand, wall) for account, limits in held]
            allowance = max(1, min([allowance, *fits]))
        need = demand.amount(allowance)
        for account, limits in held:
            account.check(limits, need, wall, steady)
        return Reservation(self._clock, held, demand, allowance, need)

    def standing(self, subjects: Sequence[Subject]) -> tuple[Standing | None, Standing | None]:
        """(requests, tokens) per minute, of whichever subject has the least left."""
        now = self._clock.steady()
        requests: list[Standing] = []
        tokens: list[Standing] = []
        for subject in subjects:
            account, limits = self._account(subject.id), subject.limits
            for limit, window, found in (
                (limits.requests_per_minute, account.requests, requests),
                (limits.tokens_per_minute, account.tokens, tokens),
            ):
                if limit is not None:
                    left = max(0, limit - window.used(now))
                    found.append(Standing(limit, left, milliseconds(window.reset(now))))
        return _least(requests), _least(tokens)

    def account(self, subject: str) -> Account:
        """The account of `subject`, for those who want to look."""
        return self._account(subject)

    def _account(self, subject: str, name: str = "") -> Account:
        account = self._accounts.get(subject)
        if account is None:
            account = self._accounts[subject] = Account(name)
        if name:
            account.name = name
        return account


class Reservation:
    """What one request holds, until `settle` or `release`; the first of them counts."""

    def __init__(
        self,
        clock: Clock,
        held: Sequence[tuple[Account, Limits]],
        demand: Demand,
        allowance: int,
        need: Amount,
    ) -> None:
        self._clock = clock
        self._held = held
        self._demand = demand
        self._need = need
        self._entries: list[Entry | None] = []
        self._open = True
        self.allowance = allowance
        """Tokens that each sequence may generate."""
        steady = clock.steady()
        for account, limits in held:
            account.running += 1
            account.reserved.add(need)
            if limits.requests_per_minute is not None:
                account.requests.add(steady, 1)
            counted = limits.tokens_per_minute is not None
            self._entries.append(account.tokens.add(steady, need.tokens) if counted else None)

    def require(self, prompt: int) -> None:
        """The prompt turned out to have `prompt` tokens: reserve what is missing.

        Raises QuotaError or RateLimitError if that does not fit; what was reserved stays so.
        """
        missing = prompt - self._demand.prompt
        if missing <= 0 or not self._demand.sequences:
            return
        more = Amount(missing, self._demand.tariff.bound(missing, 0) + 1)
        wall, steady = self._clock.wall(), self._clock.steady()
        for account, limits in self._held:
            account.check_more(limits, more, wall, steady)
        self._need.add(more)
        for (account, _), entry in zip(self._held, self._entries, strict=True):
            account.reserved.add(more)
            if entry is not None:
                account.tokens.change(steady, entry, entry.amount + more.tokens)

    def settle(self, tokens: int, money: int, at: float) -> None:
        """The request ended at `at` (wall clock) and used this much."""
        if self._close(tokens):
            for account, _ in self._held:
                account.charge(Amount(tokens, money), at)

    def release(self) -> None:
        """The request used nothing; harmless after `settle`."""
        self._close(0)

    def _close(self, tokens: int) -> bool:
        if not self._open:
            return False
        self._open = False
        steady = self._clock.steady()
        for (account, _), entry in zip(self._held, self._entries, strict=True):
            account.running -= 1
            account.reserved.add(self._need, -1)
            if entry is not None:
                account.tokens.change(steady, entry, tokens)
        return True


def _least(standings: Sequence[Standing]) -> Standing | None:
    return min(standings, key=lambda standing: standing.remaining, default=None)

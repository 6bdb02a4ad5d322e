"""How much a key or a project may use."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from appliance.errors import UsageError

MOST = 2**53
"""Largest limit: what JSON readers keep exactly."""


@dataclass(frozen=True, slots=True)
class Limits:
    """None is no limit. Days and months are those of UTC; money is in micro-units."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    parallel_requests: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    money_per_day: int | None = None
    money_per_month: int | None = None

    @property
    def counts_tokens(self) -> bool:
        """Whether a request's tokens must be known before it is admitted."""
        return any(
            limit is not None
            for limit in (
                self.tokens_per_minute,
                self.tokens_per_day,
                self.tokens_per_month,
                self.money_per_day,
                self.money_per_month,
            )
        )

    def changed(self, changes: dict[str, int | None]) -> Limits:
        """These limits with `changes` by name. Raises UsageError."""
        for name, value in changes.items():
            if value is not None and not 0 <= value <= MOST:
                raise UsageError(
                    f"{name} cannot be {value}", hint=f"use a number from 0 to {MOST}, or `none`"
                )
        return replace(self, **changes)


LIMIT_NAMES = tuple(field.name for field in fields(Limits))
NO_LIMITS = Limits()

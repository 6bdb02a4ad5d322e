"""What a token costs.

Owns the arithmetic: prices are whole micro-units for a million tokens, a request's cost is their
exact sum over its tokens, rounded once, half up, to a whole micro-unit. So a total is the sum of
its requests however they are grouped, and differs from the unrounded sum by at most half a
micro-unit for each request. Refuses floats.
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.audit.event import Tokens

MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Tariff:
    """Micro-units for a million tokens of each kind."""

    input: int
    cached: int
    """Prompt tokens that the prefix cache had."""
    output: int

    def cost(self, tokens: Tokens) -> int:
        """Micro-units for `tokens`; reasoning is output."""
        return rounded(
            (tokens.prompt - tokens.cached) * self.input
            + tokens.cached * self.cached
            + tokens.generated * self.output
        )

    def bound(self, prompt: int, output: int) -> int:
        """The most that a request can cost with so many tokens, whatever the cache has."""
        return rounded(prompt * max(self.input, self.cached) + output * self.output)

    def affordable(self, money: int, prompt: int, sequences: int) -> int | None:
        """Tokens that each of `sequences` may generate for `money`; None if they are free.

        Negative if `money` does not pay for the prompt.
        """
        if not self.output:
            return None if self.bound(prompt, 0) <= money else -1
        rest = money * MILLION - prompt * max(self.input, self.cached)
        return rest // (sequences * self.output)


@dataclass(frozen=True, slots=True)
class Price:
    """One version of one model's price, in force since `since` (Unix seconds); never edited."""

    version: int
    model: str
    since: int
    ordinary: Tariff
    batch: Tariff

    def tariff(self, *, batch: bool) -> Tariff:
        """The tariff of a request."""
        return self.batch if batch else self.ordinary


FREE = Tariff(0, 0, 0)


def no_price(model: str) -> Price:
    """Version 0: what a model costs that has no price."""
    return Price(0, model, 0, FREE, FREE)


def rounded(millionths: int) -> int:
    """Micro-units of `millionths` of one, half up."""
    return (millionths + MILLION // 2) // MILLION

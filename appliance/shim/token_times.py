"""When one request's tokens came, for /metrics.

Owns the first token's time and the times between those of each choice. Tokens that came together
share the time since the ones before: a histogram of them has each token once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from appliance.shim.exchange import Exchange
from appliance.shim.metrics import Metrics


class TokenTimes:
    """Tell it of tokens as they come."""

    def __init__(self, metrics: Metrics, exchange: Exchange) -> None:
        self._metrics = metrics
        self._exchange = exchange
        self._between = metrics.between_tokens(exchange.model)
        self._last: dict[int, float] = {}

    def note(self, tokens: Mapping[int, int]) -> None:
        """So many tokens of each choice came now."""
        now = time.monotonic()
        for choice, count in tokens.items():
            if not count:
                continue
            before = self._last.get(choice)
            if before is not None:
                self._between.observe((now - before) / count, count)
            elif not self._last:
                self._note_first(now)
            self._last[choice] = now

    def _note_first(self, now: float) -> None:
        exchange = self._exchange
        seconds = now - exchange.started
        self._metrics.first_token(exchange.model, seconds, dedicated=exchange.dedicated)

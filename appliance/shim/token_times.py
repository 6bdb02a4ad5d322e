"""When one request's tokens came, for /metrics.

Owns the first token's time and the times between those of each choice. Tokens that came together
share the time since the ones before: a histogram of them has each token once.
"""

from __future__ import annotations

import asyncio
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

    def note(self, choice: int, count: int) -> None:
        """So many tokens of a choice came now, at least one."""
        now = time.monotonic()
        before = self._last.get(choice)
        if before is not None:
            self._between.observe((now - before) / count, count)
        elif not self._last:
            # Behind the token itself, which is still on its way out.
            asyncio.get_running_loop().call_soon(self._note_first, now)
        self._last[choice] = now

    def note_all(self, tokens: Mapping[int, int]) -> None:
        """The same of several choices; some may have none."""
        for choice, count in tokens.items():
            if count:
                self.note(choice, count)

    def _note_first(self, now: float) -> None:
        exchange = self._exchange
        seconds = now - exchange.started
        self._metrics.first_token(exchange.model, seconds, dedicated=exchange.dedicated)

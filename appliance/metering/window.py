"""What happened in the last 60 seconds, exactly: no minute of any position holds more."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

SECONDS = 60.0


@dataclass(slots=True)
class Entry:
    """One thing that counts until `until`."""

    until: float
    amount: int


class Window:
    """Amounts that each count for 60 seconds. Times are of a clock that never goes back."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque()
        self._total = 0

    def used(self, now: float) -> int:
        """What counts at `now`."""
        while self._entries and self._entries[0].until <= now:
            self._total -= self._entries.popleft().amount
        return self._total

    def add(self, now: float, amount: int) -> Entry:
        """Count `amount` from `now` on."""
        self.used(now)
        entry = Entry(now + SECONDS, amount)
        self._entries.append(entry)
        self._total += amount
        return entry

    def change(self, now: float, entry: Entry, amount: int) -> None:
        """Let `entry` count as `amount`; nothing if it counts no more."""
        self.used(now)
        if entry.until > now:
            self._total += amount - entry.amount
            entry.amount = amount

    def wait(self, now: float, limit: int, amount: int) -> float | None:
        """Seconds until `amount` more fits under `limit`; None if it never does."""
        if amount > limit:
            return None
        over = self.used(now) + amount - limit
        if over <= 0:
            return 0.0
        for entry in self._entries:
            over -= entry.amount
            if over <= 0:
                return _from(now, entry.until)
        raise AssertionError("an empty window has room for what does not exceed the limit")

    def reset(self, now: float) -> float:
        """Seconds until nothing counts any more."""
        self.used(now)
        for entry in reversed(self._entries):
            if entry.amount:
                return _from(now, entry.until)
        return 0.0


def _from(now: float, moment: float) -> float:
    """Seconds from `now` to `moment`: who waits as long is not early by a rounding error."""
    seconds = moment - now
    while now + seconds < moment:
        seconds = math.nextafter(seconds, math.inf)
    return seconds

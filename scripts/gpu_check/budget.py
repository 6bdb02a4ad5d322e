"""The time that a card is lent for.

Owns the end: a run is interrupted there wherever it is, so that what was measured is still
written. A signal does that, since most of the time goes by in other processes and in libraries.
What is raised while an object is being finalized is lost, so it comes again until it is heard.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

_SHARE = 0.06
"""Of all the time, for one workload: a dozen of them, and as much again for preparations."""

_LONGEST = 0.15
"""Of all the time, for one answer of a worker: who hangs must not take the rest."""

_AGAIN = 5.0
"""Seconds until a run is ended once more that did not hear of it. What it does last, such as ending
its processes, has as long."""


class OutOfTimeError(BaseException):
    """The time is over. No Exception: who takes those of a library for a failure lets it pass."""


class Budget:
    """So many minutes from now on; None is as many as it takes."""

    def __init__(self, minutes: float | None) -> None:
        self._seconds = None if minutes is None else 60 * minutes
        self._start = time.monotonic()
        self._ended = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """Raises OutOfTimeError in what it encloses when the time is over."""
        if self._seconds is None:
            yield
            return
        self._ended = False
        handler, timer = signal.signal(signal.SIGALRM, self._over), (0.0, 0.0)
        left = max(1e-3, self._seconds - self._spent)
        try:
            timer = signal.setitimer(signal.ITIMER_REAL, left, _AGAIN)
            yield
        finally:
            self._ended = True  # or an alarm of now would leave itself behind
            signal.setitimer(signal.ITIMER_REAL, *timer)
            signal.signal(signal.SIGALRM, handler)

    def allows_another(self, spent: float, last: float) -> bool:
        """Whether a workload that took `spent` seconds may have a turn as long as its `last`."""
        return self._seconds is None or spent + last <= _SHARE * self._seconds

    @property
    def longest(self) -> float | None:
        """Seconds that one answer may take. Raises OutOfTimeError if there are none left."""
        if self._seconds is None:
            return None
        if self._spent >= self._seconds:
            raise OutOfTimeError
        return _LONGEST * self._seconds

    @property
    def _spent(self) -> float:
        return time.monotonic() - self._start

    def _over(self, *_: object) -> None:
        if not self._ended:
            raise OutOfTimeError

"""How many tokens a step may have, so that nobody waits long for it.

Owns the estimate of what a prompt token costs on this machine. A sequence that is alone may have
the whole budget: larger pieces of a prompt are computed faster. Beside others a step is kept
short, since each of them gets nothing before it ends; shorter still where several callers are
served, since a newcomer waits for the step that it finds under way.
"""

from __future__ import annotations

_LEAST = 16
"""Tokens; smaller pieces cost nearly as much."""
_WEIGHT = 0.3
"""Of the latest step in the estimate: what else the machine does changes."""
_WEIGHT_OF_FASTER = 0.7
"""Of one that was faster: it shows what the machine can do.

A slow one may show only that weights or kernels had to be loaded: on a GPU the first step takes a
second, those after it milliseconds."""


class Pace:
    """The token budget of the next step.

    Args:
        most: tokens of a step at most.
        seconds: that a step beside others should take at most; 0 for as long as it takes.
        shared_seconds: the same beside others' requests; 0 for no shorter one.
    """

    def __init__(self, most: int, seconds: float, shared_seconds: float = 0.0) -> None:
        self._most = most
        self._seconds = seconds
        self._shared_seconds = min(filter(None, (seconds, shared_seconds)), default=0.0)
        self._each = 0.0

    def measured(self, tokens: int, seconds: float) -> None:
        """A step that computed so many prompt tokens took so long."""
        if tokens >= _LEAST:
            each = seconds / tokens
            weight = _WEIGHT_OF_FASTER if each < self._each else _WEIGHT
            self._each += (weight if self._each else 1.0) * (each - self._each)

    def tokens(self, *, alone: bool, shared: bool = False) -> int:
        """Of the next step at most; `shared`: there are several callers."""
        seconds = self._shared_seconds if shared else self._seconds
        if alone or not seconds or not self._each:
            return self._most
        return int(min(self._most, max(_LEAST, seconds / self._each)))

"""How many tokens a step may have, so that nobody waits long for it.

Owns the estimate of what a prompt token costs on this machine. A sequence that is alone may have
the whole budget: larger pieces of a prompt are computed faster. Beside others a step is kept
short, since each of them gets nothing before it ends. Where several callers are served prompts add
less to it, since a newcomer waits for the step that it finds under way. What a step takes without
prompts is told apart: with many streams it may be more than either.
"""

from __future__ import annotations

import math

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
        shared_seconds: that prompts should add to a step at most where there are several callers;
            0 for no other bound.
    """

    def __init__(self, most: int, seconds: float, shared_seconds: float = 0.0) -> None:
        self._most = most
        self._seconds = seconds
        self._shared_seconds = shared_seconds
        self._each = 0.0
        """What a token of a prompt adds to a step."""
        self._decoding = 0.0
        """What a step without prompts takes."""

    def measured(self, tokens: int, seconds: float) -> None:
        """A step that computed so many prompt tokens took so long."""
        if not tokens:
            self._decoding += (_WEIGHT if self._decoding else 1.0) * (seconds - self._decoding)
        elif tokens >= _LEAST:
            # How many decode changes; at least half of the step is the prompts'.
            each = max(seconds - self._decoding, seconds / 2) / tokens
            weight = _WEIGHT_OF_FASTER if each < self._each else _WEIGHT
            self._each += (weight if self._each else 1.0) * (each - self._each)

    def tokens(self, *, alone: bool, shared: bool = False) -> int:
        """Of the next step at most; `shared`: there are several callers."""
        if alone or not self._each:
            return self._most
        bounds = []
        if self._seconds:
            bounds.append(max(self._seconds - self._decoding, self._seconds / 2))
        if shared and self._shared_seconds:
            bounds.append(self._shared_seconds)
        tokens = min(bounds, default=math.inf) / self._each
        return int(min(self._most, max(_LEAST, tokens)))

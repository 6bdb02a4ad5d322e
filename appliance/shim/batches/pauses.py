"""How long to wait after something went wrong: longer each time that nothing goes well between."""

from __future__ import annotations

_FIRST, _LONGEST = 0.5, 30.0
"""Seconds; they double."""


class Pauses:
    """The waits between tries in vain."""

    def __init__(self) -> None:
        self._vain = 0

    def next(self) -> float:
        """Seconds until the next try."""
        self._vain += 1
        return float(min(_LONGEST, _FIRST * 2 ** min(self._vain - 1, 10)))

    def went_well(self) -> None:
        self._vain = 0

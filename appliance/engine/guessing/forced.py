"""What the grammars of a batch leave no choice about, and how much of it a step computes.

A forced token is no guess. It has to be computed for the cache like any other and costs least
together with others, so as many are computed as there is room for
(docs/decisions/0235-forced-tokens.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import wait
from typing import Final

from appliance.engine.grammar.constraint import Constraint

Run = tuple[int, ...]

PATIENCE_SECONDS: Final = 0.002
"""So long a step waits to know what is forced; a mask that takes longer is computed beside it."""
_FREE: Final = 16
"""Tokens without a forced one after which nobody waits: a long text has no runs inside it."""


def forced_runs(constraints: Sequence[Constraint | None], room: Sequence[int]) -> list[Run]:
    """What must come next of each sequence, up to its `room`; nothing where that is not known."""
    pending = (c.pending for c in constraints if c is not None and c.free < _FREE)
    wait([mask for mask in pending if mask is not None], PATIENCE_SECONDS)
    return [
        () if constraint is None else constraint.forced(max(0, most))
        for constraint, most in zip(constraints, room, strict=True)
    ]


def divided(runs: Sequence[Run], rows: int) -> Iterator[tuple[int, int]]:
    """How much of `runs` a step with `rows` rows to spare computes: (place, tokens, at least one).

    The rows are shared out evenly; what a short run leaves is for the longer ones.
    """
    places = sorted((place for place, run in enumerate(runs) if run), key=lambda p: len(runs[p]))
    for left, place in enumerate(places):
        count = min(len(runs[place]), rows // (len(places) - left))
        rows -= count
        if count:
            yield place, count

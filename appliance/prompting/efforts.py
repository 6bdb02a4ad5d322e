"""Templates that are told by `reasoning_effort` alone whether the model is to reason, and how much.

Owns the words by which they are told: Mistral Small 4 knows none and high, Hunyuan 3 no_think, low
and high, and both refuse any other. Which ones a template knows is observed when its bundle is
built.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from appliance.bundle.specs import Effort

OFF: Final[tuple[Effort, ...]] = ("none", "no_think")
"""Words that switch reasoning off."""
DEGREES: Final[tuple[Effort, ...]] = ("low", "medium", "high")
"""Words that ask for it, from little to much."""


def told(words: Sequence[str], *, thinking: bool, effort: str) -> str:
    """Which of `words`, the first of which is one of OFF and the rest of DEGREES, says it: the
    degree that was asked for or the next higher one; the highest if none was."""
    off, *degrees = words
    if not thinking:
        return off
    asked = DEGREES.index(effort or DEGREES[-1])
    return next((word for word in degrees if DEGREES.index(word) >= asked), degrees[-1])

"""Who guesses what a model says next: a small model, or a head of the model's own.

Owns no more than what both can be asked, and why a bundle's is not. What they guess is verified, so
that none of it can be wrong in an answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from appliance.bundle.manifest import Manifest
from appliance.compiler import Provider
from appliance.config import EngineSettings
from appliance.scheduler import Move, Plan, Sequence


class Guesser(Protocol):
    """Guesses for all sequences of one engine.

    Attributes:
        ready: tokens that one run may compute of a sequence to guess behind them.
        anew: tokens of a cached prefix, its last ones, that the model has to compute again before
            there can be guesses for who reuses it.
    """

    ready: int
    anew: int

    def follow(self, moves: Iterable[Move]) -> None:
        """The model that verifies has moved its slots."""
        ...

    def observe(self, plan: Plan) -> None:
        """The model that verifies has just computed `plan`; nothing is sampled of it yet."""
        ...

    def forget(self) -> None:
        """What is in the slots cannot be trusted any more."""
        ...

    def behind(self, slot: int, sequence: Sequence) -> int | None:
        """Tokens of `sequence`, in slot `slot`, that are to be computed before its first guess.

        At least 1. None if it cannot be guessed for.
        """
        ...

    def room(self, sequence: Sequence) -> int:
        """Tokens that can be guessed behind it."""
        ...

    def catch_up(self, sequences: Mapping[int, Sequence], most: int) -> int:
        """Compute what `sequences` (by slot) said, in their order, `most` tokens at most.

        Returns how many were computed. All but the last one of each, which is computed with the
        first guess.
        """
        ...

    def guess(self, sequences: Mapping[int, Sequence], width: int) -> dict[int, tuple[int, ...]]:
        """`width` tokens that may follow each of `sequences` (by slot).

        Each has at most `ready` tokens behind, and room for the guesses.
        """
        ...

    def check_integrity(self) -> None:
        """No slot holds more than it can, or what its sequence did not say."""
        ...


def why_unused(manifest: Manifest, provider: Provider, settings: EngineSettings) -> str:
    """What of a bundle does not guess here, and why; "" if there is nothing that could."""
    if not manifest.has_head and manifest.of_draft is None:
        return ""
    who = "its head that predicts further tokens" if manifest.has_head else "its draft model"
    if not settings.draft_tokens:
        return f"{who} is not used: engine.draft_tokens is 0"
    if provider != "cpu":
        return f"{who} is not used: a GPU computes this model"
    return f"{who} is not used: this processor lacks what native operators need"

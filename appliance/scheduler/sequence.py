"""One sequence: a prompt and what was generated for it, as far as scheduling needs to know.

Owns the token ids and how many of them are in the cache. Refuses to know text, sampling or
where its slot's memory is.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable


class Phase(enum.Enum):
    """Where a sequence stands; it only ever moves down this list."""

    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    FINISHED = "finished"


class Sequence:
    """Prompt plus generated tokens.

    tokens:   p p p p p p p p g g g
              |-- computed --|          keys and values of these are in slot `slot`
              |--- prompt ---|

    In decode exactly one token, the last sampled one, is not computed yet.

    Attributes:
        tokens: prompt and generated ids.
        prompt_length: how many of `tokens` are the prompt; at least 1.
        computed: how many of `tokens` have their keys and values in the cache.
        slot: cache slot while running, else None.
        arrival: rank in the order of arrival, given by the scheduler.
    """

    __slots__ = ("arrival", "computed", "phase", "prompt_length", "slot", "tokens")

    def __init__(self, prompt: Iterable[int]) -> None:
        self.tokens = list(prompt)
        assert self.tokens, "an empty prompt has no last position to sample from"
        self.prompt_length = len(self.tokens)
        self.computed = 0
        self.phase = Phase.WAITING
        self.slot: int | None = None
        self.arrival = -1

    @property
    def generated(self) -> int:
        """Number of tokens sampled so far."""
        return len(self.tokens) - self.prompt_length

    @property
    def uncomputed(self) -> int:
        """Tokens whose keys and values are still to be computed."""
        return len(self.tokens) - self.computed

    @property
    def running(self) -> bool:
        return self.phase in (Phase.PREFILL, Phase.DECODE)

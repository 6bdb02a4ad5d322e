"""What one step computes: moves, then prefill chunks, then one decode batch, in this order."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.scheduler.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Move:
    """Copy the first `tokens` positions of slot `source` to slot `target`.

    With `exchange` the target's go to the source as well. Moves of a plan are done in order.

    A running state goes along, or comes from the `snapshot` of that number. With the target for
    its source it is all that moves.
    """

    source: int
    target: int
    tokens: int
    exchange: bool = False
    snapshot: int | None = None


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Compute tokens `start` to `start + count` of one sequence in its slot.

    `start` is above 0 also in a sequence's first chunk if its first tokens came from another
    slot. Once the chunk is computed, moves may copy all tokens of the slot before its end, even
    if the prompt goes on.

    The running state at its end is set aside under the number `snapshot`, if there is one.
    """

    sequence: Sequence
    slot: int
    start: int
    count: int
    snapshot: int | None = None

    @property
    def completes(self) -> bool:
        """Whether the sequence's last token is in this chunk, so that its logits are sampled."""
        return self.start + self.count == len(self.sequence.tokens)

    @property
    def tokens(self) -> list[int]:
        return self.sequence.tokens[self.start : self.start + self.count]


@dataclass(frozen=True, slots=True)
class Plan:
    """One step. `decodes[i]` is in slot i, if the scheduler gathers them.

    `admitted` got their first slot with this plan, `preempted` lost theirs and wait again.

    `drafts[i]` are tokens that may follow those of `decodes[i]`; they are computed behind them, to
    be verified. The scheduler plans none: whoever guesses puts them in.
    """

    moves: tuple[Move, ...] = ()
    prefills: tuple[PrefillChunk, ...] = ()
    decodes: tuple[Sequence, ...] = ()
    admitted: tuple[Sequence, ...] = ()
    preempted: tuple[Sequence, ...] = ()
    drafts: tuple[tuple[int, ...], ...] = ()

    @property
    def sampled(self) -> tuple[Sequence, ...]:
        """The sequences that get a token from this step: ended prefills, then decodes."""
        return tuple(c.sequence for c in self.prefills if c.completes) + self.decodes

    @property
    def decoded(self) -> list[list[int]]:
        """What is computed of each of `decodes`: what is not in its slot yet, and its draft."""
        drafts = self.drafts or ((),) * len(self.decodes)
        return [
            [*sequence.tokens[sequence.computed :], *draft]
            for sequence, draft in zip(self.decodes, drafts, strict=True)
        ]

    @property
    def token_count(self) -> int:
        drafted = sum(map(len, self.drafts))
        return sum(chunk.count for chunk in self.prefills) + len(self.decodes) + drafted

    @property
    def rows(self) -> tuple[int, ...]:
        """How many rows of logits each of `sampled` gets: one, and one for each drafted token."""
        ended = len(self.sampled) - len(self.decodes)
        drafted = tuple(map(len, self.drafts)) or (0,) * len(self.decodes)
        return (1,) * ended + tuple(1 + count for count in drafted)

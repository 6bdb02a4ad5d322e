"""What one step computes: moves, then prefill chunks, then one decode batch, in this order."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.scheduler.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Move:
    """Copy the first `tokens` positions of slot `source` to slot `target`.

    With `exchange` the target's go to the source as well. Moves of a plan are done in order.
    """

    source: int
    target: int
    tokens: int
    exchange: bool = False


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Compute tokens `start` to `start + count` of one sequence's prompt in its slot."""

    sequence: Sequence
    slot: int
    start: int
    count: int

    @property
    def completes(self) -> bool:
        """Whether the prompt's last token is in this chunk, so that its logits are sampled."""
        return self.start + self.count == len(self.sequence.tokens)

    @property
    def tokens(self) -> list[int]:
        return self.sequence.tokens[self.start : self.start + self.count]


@dataclass(frozen=True, slots=True)
class Plan:
    """One step. `decodes[i]` is in slot i."""

    moves: tuple[Move, ...] = ()
    prefills: tuple[PrefillChunk, ...] = ()
    decodes: tuple[Sequence, ...] = ()

    @property
    def sampled(self) -> tuple[Sequence, ...]:
        """The sequences that get a token from this step: ended prefills, then decodes."""
        return tuple(c.sequence for c in self.prefills if c.completes) + self.decodes

    @property
    def token_count(self) -> int:
        return sum(chunk.count for chunk in self.prefills) + len(self.decodes)

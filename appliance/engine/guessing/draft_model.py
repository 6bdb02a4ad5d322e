"""A small model that guesses for another one, for all of its sequences at once.

Owns the small model's runner and the tokens in its slots, which are those of the model that
verifies: the same number, the same sequence in each, moved together. What it guesses is what it
finds likeliest. Refuses nothing: a sequence that it cannot guess for is told apart beforehand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Listing
from typing import Protocol

from appliance.engine.guessing.draft_slots import DraftSlots, Held
from appliance.engine.slot_pool import Array
from appliance.scheduler import Move, Plan, PrefillChunk, Sequence

READY = 2
"""Tokens that one run may compute of a sequence to guess behind them: the last one of its answer,
and the one before, which a draft that was right to its end leaves uncomputed."""


class DraftRunner(Protocol):
    """Computes the small model's plans, as the engine's `Runner` does."""

    def run(self, plan: Plan) -> Array: ...


class DraftModel:
    """The small model of one engine.

    Args:
        slots: of the model that verifies.
        capacity: tokens that a slot holds; no longer sequence is guessed for.
        vocab_size: tokens that both models know, which are the first of each.
        gathered: the runner wants a batch to be the first slots of all.
    """

    ready = READY
    anew = 0

    def __init__(
        self,
        runner: DraftRunner,
        *,
        slots: int,
        capacity: int,
        vocab_size: int,
        gathered: bool = True,
    ) -> None:
        self._runner = runner
        self._gathered = gathered
        self._slots = DraftSlots(slots)
        self._capacity = capacity
        self._vocab_size = vocab_size

    def follow(self, moves: Iterable[Move]) -> None:
        """The model that verifies has moved its slots."""
        own = self._slots.follow(moves)
        if own:
            self._runner.run(Plan(moves=tuple(own)))

    def observe(self, plan: Plan) -> None:
        """It reads what sequences say, and nothing of how the other model comes to it."""

    def forget(self) -> None:
        """What is in the slots cannot be trusted any more."""
        self._slots.clear()

    def behind(self, slot: int, sequence: Sequence) -> int | None:
        """Tokens of `sequence` that are not computed, at least 1: it has slot `slot`.

        None if the small model cannot guess for it: it is too long, or has a token that only the
        other model knows.
        """
        if len(sequence.tokens) >= self._capacity:
            return None
        agreed = self._slots.agree(slot, sequence)
        if max(sequence.tokens[agreed:]) >= self._vocab_size:
            return None
        return len(sequence.tokens) - agreed

    def room(self, sequence: Sequence) -> int:
        """Tokens that can be guessed behind it."""
        return self._capacity - len(sequence.tokens)

    def catch_up(self, sequences: Mapping[int, Sequence], most: int) -> int:
        """Compute what `sequences` (by slot) said, in their order, `most` tokens at most.

        Returns how many were computed. All but the last one of each, which is computed with the
        first guess.
        """
        chunks: list[PrefillChunk] = []
        left = most
        for slot, sequence in sequences.items():
            held, said = self._slots[slot], sequence.tokens
            start = len(held.tokens)
            count = min(left, len(said) - 1 - start)
            if count > 0:
                chunks.append(PrefillChunk(Sequence(said), slot, start, count))
                left -= count
        if chunks:
            self._runner.run(Plan(prefills=tuple(chunks)))
        for chunk in chunks:
            held = self._slots[chunk.slot]
            held.tokens.extend(chunk.tokens)
            held.agreed = len(held.tokens)
        return most - left

    def guess(self, sequences: Mapping[int, Sequence], width: int) -> dict[int, tuple[int, ...]]:
        """`width` tokens that may follow each of `sequences` (by slot).

        Each has at most `READY` tokens behind, and room for the guesses.
        """
        guessed: dict[int, list[int]] = {slot: [] for slot in sequences}
        coming = {
            slot: sequence.tokens[len(self._slots[slot].tokens) :]
            for slot, sequence in sequences.items()
        }
        for _ in range(width):
            for slot, token in self._likeliest(coming).items():
                guessed[slot].append(token)
                coming[slot] = [token]
        return {slot: tuple(tokens) for slot, tokens in guessed.items()}

    def check_integrity(self) -> None:
        """No slot holds more than it can, or what its sequence did not say."""
        self._slots.check_integrity(self._capacity)

    def _likeliest(self, coming: Mapping[int, Listing[int]]) -> dict[int, int]:
        """Compute the tokens `coming` in each slot; the likeliest behind the last of them.

        What is idle in a batch of the first slots of all computes its first token again.
        """
        slots = range(max(coming) + 1) if self._gathered else sorted(coming)
        rows, rest = [], []
        for slot in slots:
            new = coming.get(slot, ())
            assert len(new) <= READY
            rows.append(_row(slot, self._slots[slot], new))
            rest.append(tuple(new[1:]))
        logits = self._runner.run(Plan(decodes=tuple(rows), drafts=tuple(rest)))
        likeliest, last = {}, -1
        for slot, more in zip(slots, rest, strict=True):
            last += 1 + len(more)
            if slot in coming:
                self._slots[slot].tokens.extend(coming[slot])
                likeliest[slot] = int(logits[last][: self._vocab_size].argmax())
        return likeliest


def _row(slot: int, held: Held, new: Listing[int]) -> Sequence:
    """A sequence in `slot` of which the first of `new`, if there is any, is to be computed."""
    row = Sequence([*held.tokens, new[0]] if new else held.tokens[:1] or [0])
    row.computed = len(held.tokens) if new else 0
    row.slot = slot
    return row

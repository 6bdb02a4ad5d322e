"""A head that guesses for its own model: a layer that predicts from the states of the last one.

Owns the head's runner, and through HeadSlots what its cache holds. The states of a prompt are
computed on at once, since keeping them would take more memory than the head's cache has; those of
an answer are kept until somebody asks for guesses, or there are too many. So it is never behind,
and reads nothing again. What it guesses is what it finds likeliest; fed with its own state and
token it guesses on. Refuses nothing: what it cannot guess for is told apart beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from appliance.engine.guessing.head_runner import HeadRunner
from appliance.engine.guessing.head_slots import HeadSlots
from appliance.engine.native_runner import Piece, Step, pieces
from appliance.engine.slot_pool import Array
from appliance.scheduler import Move, Plan, Sequence

KEPT = 32
"""States of an answer in a slot. When there are more, they are computed on: as often as a run of
one layer costs nothing beside so many steps of all."""


class Head:
    """The head of one engine's model.

    Args:
        runner: computes it.
        states: of the model's last run.
        slots: of the model.
        capacity: tokens that a slot holds.
    """

    ready = 1 << 31
    anew = 1

    def __init__(
        self, runner: HeadRunner, states: Callable[[], Array], *, slots: int, capacity: int
    ) -> None:
        self._runner = runner
        self._states = states
        self._slots = HeadSlots(slots)
        self._capacity = capacity

    def follow(self, moves: Iterable[Move]) -> None:
        """The model has moved its slots."""
        for move in self._slots.follow(moves):
            self._runner.move(move)

    def observe(self, plan: Plan) -> None:
        """The model has just computed `plan`; nothing is sampled of it yet."""
        states, first, due = self._states(), 0, dict[int, Sequence]()
        for piece in pieces(plan):
            own = states[first : first + len(piece.tokens)]
            first += len(piece.tokens)
            self._slots.tell(piece.slot, piece.sequence, piece.start, piece.tokens, own)
            if len(self._slots[piece.slot].states) > KEPT:
                due[piece.slot] = piece.sequence
        self._fill(due | {chunk.slot: chunk.sequence for chunk in plan.prefills})

    def forget(self) -> None:
        """What is in the slots cannot be trusted any more."""
        self._slots.clear()

    def behind(self, slot: int, sequence: Sequence) -> int | None:
        """Positions to compute for a first guess behind `sequence`, which has slot `slot`.

        None if it was not told the model's states throughout.
        """
        needed = len(sequence.tokens) - 1
        if self._slots.agree(slot, sequence) < needed:
            return None
        return needed - self._slots[slot].filled or None

    def room(self, sequence: Sequence) -> int:
        """Tokens that can be guessed behind it."""
        return self._capacity - len(sequence.tokens)

    def catch_up(self, sequences: Mapping[int, Sequence], most: int) -> int:
        """Nothing: what a sequence lacks is computed with its first guess."""
        return 0

    def guess(self, sequences: Mapping[int, Sequence], width: int) -> dict[int, tuple[int, ...]]:
        """`width` tokens that may follow each of `sequences` (by slot)."""
        guessed: dict[int, list[int]] = {slot: [] for slot in sorted(sequences)}
        batch = _Batch()
        for slot in guessed:
            sequence = sequences[slot]
            count = len(sequence.tokens) - 1 - self._slots[slot].filled
            self._take(batch, slot, sequence, count, rows=1)
        for _ in range(width):
            logits, states = batch.run(self._runner)
            batch = _Batch()
            for row, (slot, tokens) in enumerate(guessed.items()):
                tokens.append(int(logits[row].argmax()))
                sequence = sequences[slot]
                start = len(sequence.tokens) - 2 + len(tokens)
                batch.add(Piece(sequence, slot, start, tokens[-1:], 1), states[row : row + 1])
        return {slot: tuple(tokens) for slot, tokens in guessed.items()}

    def check_integrity(self) -> None:
        """Books and cache agree."""
        self._slots.check_integrity(self._capacity)

    def _fill(self, sequences: Mapping[int, Sequence]) -> None:
        """Compute on what is kept for them (by slot), as far as it is known what came next."""
        batch = _Batch()
        for slot, sequence in sequences.items():
            told = self._slots[slot]
            count = min(len(told.tokens), len(sequence.tokens) - 1) - told.filled
            if count > 0:
                self._take(batch, slot, sequence, count, rows=0)
        if batch.states:
            batch.run(self._runner)

    def _take(self, batch: _Batch, slot: int, sequence: Sequence, count: int, *, rows: int) -> None:
        """Put the next `count` positions of a slot into `batch`; they count as filled."""
        told = self._slots[slot]
        start = told.filled
        tokens = sequence.tokens[start + 1 : start + 1 + count]
        batch.add(Piece(sequence, slot, start, tokens, rows), told.states[:count])
        del told.states[:count]
        told.filled += count


class _Batch:
    """One run in the making."""

    def __init__(self) -> None:
        self._step = Step()
        self.states: list[Array] = []

    def add(self, piece: Piece, states: Iterable[Array]) -> None:
        """Compute `piece` too, with a state [hidden] for each of its tokens."""
        self._step.add(piece)
        self.states.extend(states)

    def run(self, runner: HeadRunner) -> tuple[Array, Array]:
        """As the runner does."""
        assert len(self.states) == len(self._step.tokens)
        return runner.run(self._step, np.stack(self.states))

"""The memory of running states, of layers that keep one in place of keys and values.

    states[layer]  float32 [rows, heads, key_dim, value_dim]
    tails[layer]   float32 [rows, tail, channels]
    further[n]     the same, of the layers that have a second convolution

    rows           0 1 2 3   4   5 6 7 8 9 ..
                   |-----|   |   |---------|
                   a slot's  |   snapshots, by the scheduler's numbers
                   own       what is being computed of a prompt

A step that decodes extends the slots' own in place. A piece of a prompt may be given up half way,
when some layers have read it and others not: it is computed beside the slot's own, which is
replaced when all have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from appliance.bundle.specs import RecurrentSpec, TailSpec
from appliance.engine.cache_budget import CacheShape
from appliance.engine.zeros import zeros
from appliance.scheduler import Move

Floats = npt.NDArray[np.float32]


class RecurrentPool:
    """States of one model; the arrays never move while the pool lives."""

    def __init__(self, spec: RecurrentSpec, shape: CacheShape) -> None:
        self.pending = shape.slots
        """The row of what is being computed."""
        state = (shape.states, spec.heads, spec.key_dim, spec.value_dim)
        tail = (shape.states, spec.tail, spec.channels)
        floats = np.dtype(np.float32)
        self.states = [zeros(state, floats) for _ in range(spec.layers if spec.heads else 0)]
        """None of layers that remember their last inputs alone."""
        self.tails = [zeros(tail, floats) for _ in range(spec.layers)]
        own = spec.further
        count, sizes = (
            (own.layers, (own.tail, own.channels)) if isinstance(own, TailSpec) else (0, ())
        )
        self.further = [zeros((shape.states, *sizes), floats) for _ in range(count)]
        self._arrays = (*self.states, *self.tails, *self.further)

    @property
    def parts(self) -> Mapping[str, Sequence[Floats]]:
        """By what graphs call them."""
        return {"state": self.states, "tail": self.tails, "further": self.further}

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self._arrays)

    def begin(self, slot: int) -> None:
        """Nothing was read in `slot`."""
        for array in self._arrays:
            array[slot] = 0

    def settle(self, slot: int) -> None:
        """What was being computed is the state of `slot` now."""
        self._copy(self.pending, slot)

    def keep(self, slot: int, snapshot: int) -> None:
        """Set the state of `slot` aside."""
        self._copy(slot, self._row(snapshot))

    def move(self, move: Move) -> None:
        """Give the target the state that the move says; with `exchange` both each other's."""
        source = move.source if move.snapshot is None else self._row(move.snapshot)
        if move.exchange:
            for array in self._arrays:
                array[[source, move.target]] = array[[move.target, source]]
        else:
            self._copy(source, move.target)

    def _row(self, snapshot: int) -> int:
        return self.pending + 1 + snapshot

    def _copy(self, source: int, target: int) -> None:
        for array in self._arrays:
            array[target] = array[source]

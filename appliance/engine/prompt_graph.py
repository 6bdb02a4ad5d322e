"""Computes pieces of prompts over the slots, one sequence at a time.

Owns the bindings for that. `SlotPrompts` uses the graph that extends float slots in place;
`BytePrompts` the second graph of a model with an 8-bit cache, which reads the slot and gives the
new integers back. Either way the slot alone says what was computed before: a prompt can go on
from any slot that holds its beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import numpy as np
import onnxruntime as ort

from appliance.engine.binding import PAIR, GraphBinding, Ids
from appliance.engine.interruption import Interrupted, Interruption
from appliance.engine.slot_pool import Array, CacheArray, SlotPool


class Prompts(Protocol):
    """Computes prompt tokens."""

    def compute(self, slot: int, start: int, tokens: Sequence[int], logits: Array) -> None:
        """Compute `tokens` from position `start` on in `slot`, whose first `start` are there.

        `logits` [k, vocab], k at most len(tokens), gets those of the last k tokens. Raises
        Interrupted if it was given up; then the first `start` positions are as before.
        """
        ...

    def interrupt(self) -> None:
        """Give up what is being computed. From any thread."""
        ...


class SlotPrompts:
    """Over the graph that extends its slots in place.

    Args:
        most: tokens of a piece at most.
        ready: is given each binding before it runs, for inputs beside those of every graph.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        pool: SlotPool,
        most: int,
        ready: Callable[[GraphBinding], None] | None = None,
    ) -> None:
        self._session = session
        self._pool = pool
        self._most = most
        self._ready = ready or _as_it_is
        self._bindings: dict[int, GraphBinding] = {}
        self._interruption = Interruption()

    def compute(self, slot: int, start: int, tokens: Sequence[int], logits: Array) -> None:
        binding = self._bindings.get(slot)
        if binding is None:
            binding = self._bindings[slot] = GraphBinding(self._session, 1, self._most)
            binding.bind_slots(self._pool, slice(slot, slot + 1), extended=True)
            _bind_states(binding, self._pool, slot)
        self._ready(binding)
        binding.set_width(len(tokens))
        _fill(binding, start, tokens, len(logits))
        with _state_of(self._pool, slot, start):
            run_interruptibly(partial(binding.run, logits), self._interruption)

    def interrupt(self) -> None:
        self._interruption.interrupt()


class BytePrompts:
    """Over the graph that reads 8-bit slots.

    Args:
        most: tokens of a piece at most.
        ready: is given each binding before it runs, for inputs beside those of every graph.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        pool: SlotPool,
        most: int,
        ready: Callable[[GraphBinding], None] | None = None,
    ) -> None:
        self._session = session
        self._pool = pool
        self._most = most
        self._ready = ready or _as_it_is
        self._bindings: dict[int, GraphBinding] = {}
        self._interruption = Interruption()
        self._start: Ids = np.zeros(1, np.int64)
        self._new = {
            f"new_{name}_{layer}": (
                array,
                np.zeros((1, most, array.shape[1] * array.shape[3]), np.int8),
            )
            for name, arrays in zip(PAIR, (pool.keys, pool.values), strict=True)
            for layer, array in enumerate(arrays)
        }
        """Name of an output -> the pool's array it belongs to, and where it is written."""

    def compute(self, slot: int, start: int, tokens: Sequence[int], logits: Array) -> None:
        binding = self._bindings.get(slot)
        if binding is None:
            binding = self._bindings[slot] = GraphBinding(self._session, 1, self._most)
            binding.bind_slots(self._pool, slice(slot, slot + 1), extended=False)
            _bind_states(binding, self._pool, slot)
            binding.bind_input("start", self._start)
        self._ready(binding)
        if binding.set_width(len(tokens)):
            for name, (_, new) in self._new.items():
                binding.bind_first(name, new, len(tokens))
        self._start[0] = start
        _fill(binding, start, tokens, len(logits))
        with _state_of(self._pool, slot, start):
            run_interruptibly(partial(binding.run, logits), self._interruption)
        for array, new in self._new.values():
            _store(array[slot], start, new[0, : len(tokens)])

    def interrupt(self) -> None:
        self._interruption.interrupt()


def _bind_states(binding: GraphBinding, pool: SlotPool, slot: int) -> None:
    """A slot's running state, which is computed anew beside it."""
    own = pool.recurrent
    if own is not None:
        pending = slice(own.pending, own.pending + 1)
        binding.bind_states(own, slice(slot, slot + 1), pending)


@contextmanager
def _state_of(pool: SlotPool, slot: int, start: int) -> Iterator[None]:
    """Around a run: nothing was read before the first token; what was read by all layers holds."""
    if pool.recurrent is not None and start == 0:
        pool.recurrent.begin(slot)
    yield
    if pool.recurrent is not None:
        pool.recurrent.settle(slot)


def _as_it_is(_binding: GraphBinding) -> None: ...


def run_interruptibly(run: Callable[[ort.RunOptions], None], interruption: Interruption) -> None:
    """Run a graph with the options that can end it. Raises Interrupted if it was given up."""
    interruption.begin()
    try:
        run(interruption.options)
    except Exception:  # the runtime's own have no common base but this
        if interruption.asked:
            raise Interrupted from None
        raise


def _fill(binding: GraphBinding, start: int, tokens: Sequence[int], rows: int) -> None:
    count = len(tokens)
    binding.input_ids[0, :count] = tokens
    binding.seqlens_k[0] = start + count - 1
    binding.total[...] = start + count
    binding.rows[:rows] = np.arange(count - rows, count)


def _store(slot: CacheArray, start: int, new: CacheArray) -> None:
    """new [tokens, heads * size] -> positions `start` and on of slot [heads, capacity, size]."""
    heads, _, size = slot.shape
    slot[:, start : start + len(new)] = new.reshape(-1, heads, size).swapaxes(0, 1)

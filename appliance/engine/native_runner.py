"""Runs a decoder's graph of native operators: a whole step at once.

Owns the step's arrays and the binding. Pieces of prompts and sequences that decode lie one behind
the other in one run, and none of them changes a bit of another's numbers
(docs/decisions/0230-native-operators.md). Each says its slot, so they may lie in any order.
"""

from __future__ import annotations

from collections.abc import Sequence as Listing
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from appliance.engine.adapter_bank import AdapterBank
from appliance.engine.binding import PAIR
from appliance.engine.interruption import Interruption
from appliance.engine.model_runner import DRAFT_ROWS
from appliance.engine.native_pool import NativePool
from appliance.engine.prompt_graph import run_interruptibly
from appliance.engine.slot_pool import Array
from appliance.scheduler import Plan, Sequence


class NativeRunner:
    """Executes plans.

    Args:
        session: the graph of native operators.
        pool: the cache that it reads and writes.
        vocab_size: width of the logits.
    """

    def __init__(self, session: ort.InferenceSession, pool: NativePool, vocab_size: int) -> None:
        self._pool = pool
        self._graph = Graph(session, pool)
        self._adapted: _Adapted | None = None
        rows = pool.shape.slots + DRAFT_ROWS
        self._logits: Array = np.zeros((rows, vocab_size), np.float32)
        self._interruption = Interruption()

    def run(self, plan: Plan) -> Array:
        """Compute a plan.

        Returns logits [sum(plan.rows), vocab_size], those of each of `plan.sampled` in turn; the
        next run overwrites them. Raises Interrupted if it was given up; then every slot holds
        what it held before.
        """
        for move in plan.moves:
            self._pool.move(move)
        step = Step()
        for chunk in plan.prefills:
            step.add(chunk.sequence, chunk.slot, chunk.start, chunk.tokens, int(chunk.completes))
        for index, sequence in enumerate(plan.decodes):
            assert sequence.slot is not None
            tokens = sequence.tokens[sequence.computed :]
            if plan.drafts:
                tokens.extend(plan.drafts[index])
            step.add(sequence, sequence.slot, sequence.computed, tokens, len(tokens))
        logits = self._logits[: len(step.rows)]
        if step.tokens:
            self._compute(step, logits)
        return logits

    def most_drafted(self, sequences: int) -> int:
        """Drafted tokens that a decode batch of so many can take of each."""
        return DRAFT_ROWS // sequences

    def interrupt(self) -> None:
        """Give up the run that is under way."""
        self._interruption.interrupt()

    def adopt(self, session: ort.InferenceSession, bank: AdapterBank) -> None:
        """Compute sequences that have an adapter by the graph `session` with `bank`, from the
        next run on. Not while a run is under way.
        """
        self._adapted = _Adapted(session, self._pool, bank)

    def _compute(self, step: Step, logits: Array) -> None:
        graph: Graph = self._graph
        if any(step.adapters):
            assert self._adapted is not None, "adapters come before their sequences"
            graph = self._adapted
        run_interruptibly(partial(graph.run, step, logits), self._interruption)


class Step:
    """What one run computes, in lists."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.spans: list[tuple[int, int, int]] = []
        self.rows: list[int] = []
        self.adapters: list[str] = []
        """Of each span; "" is none."""

    def add(
        self, sequence: Sequence, slot: int, start: int, tokens: Listing[int], rows: int
    ) -> None:
        """`tokens` of a sequence from `start` on; logits of the last `rows` are wanted."""
        self.spans.append((slot, start, len(tokens)))
        self.tokens.extend(tokens)
        end = len(self.tokens)
        self.rows.extend(range(end - rows, end))
        self.adapters.append(sequence.adapter)


class Graph:
    """A session whose cache is bound; the rest is, anew for each run."""

    def __init__(self, session: ort.InferenceSession, pool: NativePool) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._held: dict[str, npt.NDArray[np.generic]] = {}
        for name, arrays in zip(PAIR, (pool.keys, pool.values), strict=True):
            for layer, array in enumerate(arrays):
                self.bind_input(f"past_{name}_{layer}", array)
                _bind(self._binding.bind_output, f"present_{name}_{layer}", array)

    def run(self, step: Step, logits: Array, options: ort.RunOptions) -> None:
        """Compute `step`; the logits of its rows go to `logits` [rows, vocab]."""
        self.bind_input("input_ids", np.array(step.tokens, np.int64))
        self.bind_input("spans", np.array(step.spans, np.int32))
        self.bind_input("rows", np.array(step.rows, np.int64))
        _bind(self._binding.bind_output, "logits", logits)
        self._session.run_with_iobinding(self._binding, options)

    def bind_input(self, name: str, array: npt.NDArray[np.generic]) -> None:
        """Bind `array` and keep it alive until another takes its place."""
        self._held[name] = array
        _bind(self._binding.bind_input, name, array)


class _Adapted(Graph):
    """With room for adapters: all rows of a bank, of which masks choose each token's own."""

    def __init__(self, session: ort.InferenceSession, pool: NativePool, bank: AdapterBank) -> None:
        super().__init__(session, pool)
        self._bank = bank
        for layer, target in bank.places():
            down, up = bank.all((layer, target))
            self.bind_input(f"adapter_down_{layer}_{target}", down)
            self.bind_input(f"adapter_up_{layer}_{target}", up)

    def run(self, step: Step, logits: Array, options: ort.RunOptions) -> None:
        """As the plain graph, each span with its adapter."""
        for target, ranks in self._bank.ranks.items():
            mask = np.zeros((len(step.tokens), ranks), np.float32)
            first = 0
            for adapter, (_, _, count) in zip(step.adapters, step.spans, strict=True):
                rows = self._bank.rows(adapter, target)
                if rows is not None:
                    mask[first : first + count, rows] = 1
                first += count
            self.bind_input(f"adapter_mask_{target}", mask)
        super().run(step, logits, options)


class _Bind(Protocol):
    """How the binding's two ways are called."""

    def __call__(
        self, name: str, device: str, index: int, dtype: object, shape: object, address: int
    ) -> None: ...


def _bind(bind: _Bind, name: str, array: npt.NDArray[np.generic]) -> None:
    assert array.flags.c_contiguous
    bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

"""Runs a decoder's graph of native operators: a whole step at once.

Owns the step's arrays and the binding. Pieces of prompts and sequences that decode lie one behind
the other in one run, and none of them changes a bit of another's numbers
(docs/decisions/0230-native-operators.md). Each says its slot, so they may lie in any order.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Listing
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from appliance.engine.adapters.bank import AdapterBank
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
        hidden: numbers of a state, if the graph gives out states and somebody reads them.
    """

    def __init__(
        self, session: ort.InferenceSession, pool: NativePool, vocab_size: int, hidden: int = 0
    ) -> None:
        self._pool = pool
        self._graph = Graph(session, pool) if not hidden else _Telling(session, pool, hidden)
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
        for piece in pieces(plan):
            step.add(piece)
        logits = self._logits[: len(step.rows)]
        if step.tokens:
            self._compute(step, logits)
        return logits

    @property
    def states(self) -> Array:
        """Of the last run, behind the model's last layer: [tokens, hidden], in `pieces`' order."""
        assert isinstance(self._graph, _Telling)
        return self._graph.states

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


class Piece(NamedTuple):
    """`tokens` of a sequence from `start` on; logits of the last `rows` are wanted."""

    sequence: Sequence
    slot: int
    start: int
    tokens: Listing[int]
    rows: int


def pieces(plan: Plan) -> Iterator[Piece]:
    """What a plan computes, in the order in which it lies in a run."""
    for chunk in plan.prefills:
        rows = int(chunk.completes)
        yield Piece(chunk.sequence, chunk.slot, chunk.start, chunk.tokens, rows)
    for sequence, tokens in zip(plan.decodes, plan.decoded, strict=True):
        assert sequence.slot is not None
        yield Piece(sequence, sequence.slot, sequence.computed, tokens, len(tokens))


class Step:
    """What one run computes, in lists."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.spans: list[tuple[int, int, int]] = []
        self.rows: list[int] = []
        self.adapters: list[str] = []
        """Of each span; "" is none."""

    def add(self, piece: Piece) -> None:
        """Compute it, too."""
        self.spans.append((piece.slot, piece.start, len(piece.tokens)))
        self.tokens.extend(piece.tokens)
        end = len(self.tokens)
        self.rows.extend(range(end - piece.rows, end))
        self.adapters.append(piece.sequence.adapter)


class Graph:
    """A session whose cache is bound; the rest is, anew for each run."""

    def __init__(self, session: ort.InferenceSession, pool: NativePool) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._held: dict[str, npt.NDArray[np.generic]] = {}
        for name, arrays in zip(PAIR, (pool.keys, pool.values), strict=True):
            for layer, array in enumerate(arrays):
                self.bind_input(f"past_{name}_{layer}", array)
                self.bind_output(f"present_{name}_{layer}", array)

    def run(self, step: Step, logits: Array, options: ort.RunOptions) -> None:
        """Compute `step`; the logits of its rows go to `logits` [rows, vocab]."""
        self.bind_input("input_ids", np.array(step.tokens, np.int64))
        self.bind_input("spans", np.array(step.spans, np.int32))
        self.bind_input("rows", np.array(step.rows, np.int64))
        self.bind_output("logits", logits)
        self._session.run_with_iobinding(self._binding, options)

    def bind_input(self, name: str, array: npt.NDArray[np.generic]) -> None:
        """Bind `array` and keep it alive until another takes its place."""
        self._held[name] = array
        _bind(self._binding.bind_input, name, array)

    def bind_output(self, name: str, array: npt.NDArray[np.generic]) -> None:
        """Have an output written to `array`, which the caller keeps alive until the run's end."""
        _bind(self._binding.bind_output, name, array)


class _Telling(Graph):
    """Gives out the states behind the last layer, too."""

    def __init__(self, session: ort.InferenceSession, pool: NativePool, hidden: int) -> None:
        super().__init__(session, pool)
        self.states: Array = np.zeros((0, hidden), np.float32)

    def run(self, step: Step, logits: Array, options: ort.RunOptions) -> None:
        self.states = np.empty((len(step.tokens), self.states.shape[1]), np.float32)
        self.bind_output("states", self.states)
        super().run(step, logits, options)


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

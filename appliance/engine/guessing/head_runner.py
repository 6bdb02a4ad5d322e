"""Runs the graph of a head that predicts further tokens.

Owns the binding of what it takes beside tokens, the model's states, and of what it predicts on
from. Everything else is as in the model's own graph of native operators.
"""

from __future__ import annotations

import numpy as np
import onnxruntime as ort

from appliance.engine.native_pool import NativePool
from appliance.engine.native_runner import Graph, Step
from appliance.engine.slot_pool import Array
from appliance.scheduler import Move


class HeadRunner:
    """Computes steps over the head's own slots.

    Args:
        session: the head's graph.
        pool: its cache, of one layer.
        vocab_size: width of the logits.
        hidden: numbers of a state.
    """

    def __init__(
        self, session: ort.InferenceSession, pool: NativePool, vocab_size: int, hidden: int
    ) -> None:
        self._pool = pool
        self._graph = Graph(session, pool)
        self._hidden = hidden
        self._logits: Array = np.zeros((pool.shape.slots, vocab_size), np.float32)
        self._options = ort.RunOptions()

    def move(self, move: Move) -> None:
        """Copy or exchange positions of two slots."""
        self._pool.move(move)

    def run(self, step: Step, states: Array) -> tuple[Array, Array]:
        """Compute `step` with the states [tokens, hidden] that come with its tokens.

        Of each of its rows, one a slot at most: the logits [rows, vocab_size], which the next run
        overwrites, and the state to predict on from [rows, hidden].
        """
        logits = self._logits[: len(step.rows)]
        following: Array = np.empty((len(step.rows), self._hidden), np.float32)
        self._graph.bind_input("states", np.ascontiguousarray(states))
        self._graph.bind_output("next_states", following)
        self._graph.run(step, logits, self._options)
        return logits, following

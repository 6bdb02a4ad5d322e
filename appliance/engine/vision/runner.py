"""Runs the graph of a decoder that reads images, over float slots.

As model_runner.py, but that each token has three positions, and may be one of an image's
features. Sequences bring what that takes (`Sequence.beside`); the others are words alone.
"""

from __future__ import annotations

from collections.abc import Sequence as Listing
from functools import partial

import numpy as np
import onnxruntime as ort

from appliance.engine.binding import GraphBinding, Ids
from appliance.engine.interruption import Interruption
from appliance.engine.prompt_graph import run_interruptibly
from appliance.engine.slot_pool import Array, SlotPool
from appliance.engine.vision.sight import sight_of, words
from appliance.scheduler import Plan, PrefillChunk, Sequence


class VisionRunner:
    """Executes plans.

    Args:
        session: the decoder graph.
        pool: the cache that it reads and writes.
        vocab_size: width of the logits.
    """

    def __init__(self, session: ort.InferenceSession, pool: SlotPool, vocab_size: int) -> None:
        self._session = session
        self._pool = pool
        self._logits: Array = np.zeros((pool.shape.slots, vocab_size), np.float32)
        self._interruption = Interruption()
        self._decoders: dict[int, tuple[GraphBinding, Ids]] = {}
        shape = next(e.shape for e in session.get_inputs() if e.name == "features")
        self._nothing: Array = np.zeros((shape[0], 1, shape[2]), np.float32)
        self._no_index: Ids = np.zeros((pool.shape.slots, 1), np.int64)

    def run(self, plan: Plan) -> Array:
        """Compute a plan; logits as ModelRunner gives them."""
        for move in plan.moves:
            self._pool.move(move)
        row = 0
        for chunk in plan.prefills:
            wanted = self._logits[row : row + chunk.completes]
            self._prefill(chunk, wanted)
            row += len(wanted)
        if plan.decodes:
            self._decode(plan.decodes, self._logits[row : sum(plan.rows)])
        return self._logits[: sum(plan.rows)]

    def most_drafted(self, _sequences: int) -> int:
        """None: this graph takes one token a row."""
        return 0

    def interrupt(self) -> None:
        """Give up the piece of a prompt that is being computed."""
        self._interruption.interrupt()

    def _prefill(self, chunk: PrefillChunk, logits: Array) -> None:
        sight, count = sight_of(chunk.sequence), chunk.count
        tokens, positions = chunk.tokens, words(chunk.start, count)
        features, index = self._nothing, np.zeros(count, np.int64)
        if sight is not None:
            tokens = sight.plain(chunk.start, tokens)
            positions = sight.positions(chunk.start, count)
            features, index = sight.features(chunk.start, count)
        binding = GraphBinding(self._session, 1, count)
        binding.set_width(count)
        binding.bind_slots(self._pool, slice(chunk.slot, chunk.slot + 1), extended=True)
        binding.input_ids[0] = tokens
        binding.seqlens_k[0] = chunk.start + count - 1
        binding.total[...] = chunk.start + count
        binding.rows[: len(logits)] = np.arange(count - len(logits), count)
        # The binding holds addresses only: these arrays live until the run has ended.
        beside = (positions, np.ascontiguousarray(features), index)
        _bind_beside(binding, *beside)
        run_interruptibly(partial(binding.run, logits), self._interruption)

    def _decode(self, sequences: Listing[Sequence], logits: Array) -> None:
        batch = len(sequences)
        if batch not in self._decoders:
            self._decoders[batch] = self._make_decoder(batch)
        binding, positions = self._decoders[batch]
        for row, sequence in enumerate(sequences):
            start, sight = sequence.computed, sight_of(sequence)
            binding.input_ids[row, 0] = sequence.tokens[start]
            binding.seqlens_k[row] = start
            positions[row] = start if sight is None else sight.positions(start, 1)[0]
        binding.total[...] = binding.seqlens_k.max() + 1
        binding.run(logits)

    def _make_decoder(self, batch: int) -> tuple[GraphBinding, Ids]:
        """The first `batch` slots, a word of each; and where its positions are written."""
        binding = GraphBinding(self._session, batch, 1)
        binding.set_width(1)
        binding.bind_slots(self._pool, slice(0, batch), extended=True)
        binding.rows[:] = np.arange(batch)
        positions: Ids = np.zeros((batch, 3), np.int64)
        binding.bind_input("positions", positions.reshape(batch, 1, 3))
        binding.bind_input("features", self._nothing)
        binding.bind_input("feature_index", self._no_index[:batch])
        return binding, positions


def _bind_beside(binding: GraphBinding, positions: Ids, features: Array, index: Ids) -> None:
    binding.bind_input("positions", positions[None])
    binding.bind_input("features", features)
    binding.bind_input("feature_index", index[None])

"""Runs the graph of a decoder that reads images, over float slots.

As model_runner.py, but that each token may be one of an image's features, and has three positions
where the graph does not count tokens itself. Sequences bring what that takes (`Sequence.beside`);
the others are words alone.
"""

from __future__ import annotations

from collections.abc import Sequence as Listing

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from appliance.engine.binding import GraphBinding, Ids
from appliance.engine.decode_batch import DecodeBatch
from appliance.engine.prompt_graph import SlotPrompts
from appliance.engine.prompt_pieces import compute_pieces
from appliance.engine.slot_pool import Array, SlotPool
from appliance.engine.vision.sight import sight_of, words
from appliance.scheduler import Plan, PrefillChunk, Sequence


class VisionRunner:
    """Executes plans.

    Args:
        session: the decoder graph.
        pool: the cache that it reads and writes.
        vocab_size: width of the logits.
        max_chunk: most tokens that a prefill chunk has.
    """

    def __init__(
        self, session: ort.InferenceSession, pool: SlotPool, vocab_size: int, max_chunk: int
    ) -> None:
        self._session = session
        self._pool = pool
        self._logits: Array = np.zeros((pool.shape.slots, vocab_size), np.float32)
        self._prompts = SlotPrompts(session, pool, max_chunk, self._bind_beside)
        self._beside: dict[str, npt.NDArray[np.generic]] = {}
        """Inputs of the piece that is computed. A binding holds addresses only: these live."""
        self._decoders: dict[int, tuple[DecodeBatch, Ids]] = {}
        inputs = {entry.name: entry.shape for entry in session.get_inputs()}
        self._placed = "positions" in inputs
        shape = inputs["features"]
        self._nothing: Array = np.zeros((shape[0], 1, shape[2]), np.float32)
        self._no_index: Ids = np.zeros((pool.shape.slots, 1), np.int64)

    def run(self, plan: Plan) -> Array:
        """Compute a plan; logits, and what is raised, as of ModelRunner."""
        row = compute_pieces(plan, self._pool, self._prefill, self._logits)
        if plan.decodes:
            self._decode(plan.decodes, self._logits[row : sum(plan.rows)])
        return self._logits[: sum(plan.rows)]

    def most_drafted(self, _sequences: int) -> int:
        """None: this graph takes one token a row."""
        return 0

    def interrupt(self) -> None:
        """Give up the piece of a prompt that is being computed."""
        self._prompts.interrupt()

    def _prefill(self, chunk: PrefillChunk, logits: Array) -> None:
        sight, start, count = sight_of(chunk.sequence), chunk.start, chunk.count
        tokens, positions = chunk.tokens, words(start, count)
        features, index = self._nothing, np.zeros(count, np.int64)
        if sight is not None:
            tokens = sight.plain(start, tokens)
            positions = sight.positions(start, count)
            features, index = sight.features(start, count)
        self._beside = {
            "features": np.ascontiguousarray(features),
            "feature_index": index[None],
        }
        if self._placed:
            self._beside["positions"] = positions[None]
        self._prompts.compute(chunk.slot, start, tokens, logits)

    def _bind_beside(self, binding: GraphBinding) -> None:
        for name, array in self._beside.items():
            binding.bind_input(name, array)

    def _decode(self, sequences: Listing[Sequence], logits: Array) -> None:
        batch = len(sequences)
        if batch not in self._decoders:
            self._decoders[batch] = self._make_decoder(batch)
        decoder, positions = self._decoders[batch]
        starts = [sequence.computed for sequence in sequences]
        for row, (sequence, start) in enumerate(zip(sequences, starts, strict=True)):
            sight = sight_of(sequence)
            positions[row] = start if sight is None else sight.positions(start, 1)[0]
        tokens = [[sequence.tokens[sequence.computed]] for sequence in sequences]
        decoder.run(starts, tokens, logits)

    def _make_decoder(self, batch: int) -> tuple[DecodeBatch, Ids]:
        """The first `batch` slots, a word of each; and where its positions are written."""
        decoder = DecodeBatch(self._session, self._pool, batch, 1)
        positions: Ids = np.zeros((batch, 3), np.int64)
        if self._placed:
            decoder.binding.bind_input("positions", positions.reshape(batch, 1, 3))
        decoder.binding.bind_input("features", self._nothing)
        decoder.binding.bind_input("feature_index", self._no_index[:batch])
        return decoder, positions

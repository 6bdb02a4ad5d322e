"""Runs a decoder's graphs over the slot pool: the only place where numbers are computed.

Owns the order of a step, the logits' memory, and a decode binding for each batch size, made
once and kept, since the pool never moves. The graphs' inputs and outputs are described in
docs/bundle-format.md.
"""

from __future__ import annotations

from collections.abc import Sequence as Listing

import numpy as np
import onnxruntime as ort

from appliance.engine.binding import GraphBinding, Lengths
from appliance.engine.prompt_graph import BytePrompts, Prompts, SlotPrompts
from appliance.engine.slot_pool import Array, SlotPool
from appliance.scheduler import Plan

DRAFT_ROWS = 64
"""Rows that a decode batch can have beside one a sequence, padding included."""


class ModelRunner:
    """Executes plans.

    Args:
        session: the decoder graph.
        pool: the cache that it reads and writes.
        vocab_size: width of the logits.
        max_chunk: most tokens that a prefill chunk has.
        prompts: the second graph, of a model with an 8-bit cache.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        pool: SlotPool,
        vocab_size: int,
        max_chunk: int,
        prompts: ort.InferenceSession | None = None,
    ) -> None:
        self._session = session
        self._pool = pool
        rows = pool.shape.slots + DRAFT_ROWS
        self._logits: Array = np.zeros((rows, vocab_size), np.float32)
        self._decoders: dict[tuple[int, int], _Decoder] = {}
        names = {entry.name for entry in session.get_inputs()}
        self._ragged = "query_seqlens" in names
        self._prompts: Prompts
        if prompts is None:
            self._prompts = SlotPrompts(session, pool, max_chunk)
        else:
            self._prompts = BytePrompts(prompts, pool, max_chunk)

    def run(self, plan: Plan) -> Array:
        """Compute a plan.

        Returns logits [sum(plan.rows), vocab_size], those of each of `plan.sampled` in turn; the
        next run overwrites them. Nothing is copied: the graphs write each row where it belongs.
        """
        for move in plan.moves:
            self._pool.move(move)
        row = 0
        for chunk in plan.prefills:
            wanted = self._logits[row : row + chunk.completes]
            self.prefill(chunk.slot, chunk.start, chunk.tokens, wanted)
            row += len(wanted)
        if plan.decodes:
            starts = [sequence.computed for sequence in plan.decodes]
            tokens = [sequence.tokens[sequence.computed :] for sequence in plan.decodes]
            for index, draft in enumerate(plan.drafts):
                tokens[index].extend(draft)
            self.decode(starts, tokens, self._logits[row : sum(plan.rows)])
        return self._logits[: sum(plan.rows)]

    def most_drafted(self, sequences: int) -> int:
        """Drafted tokens that a decode batch of so many can take of each, padding included.

        None in graphs that take one token a row: several of a sequence would be computed as a
        piece of a prompt is, which rounds differently, and greedy output would not be the same.
        """
        return DRAFT_ROWS // sequences if self._ragged else 0

    def interrupt(self) -> None:
        """Give up the piece of a prompt that is being computed."""
        self._prompts.interrupt()

    def prefill(self, slot: int, start: int, tokens: Listing[int], logits: Array) -> None:
        """Compute `tokens` of one sequence from position `start` on in `slot`.

        `logits` [k, vocab] gets those of the last k tokens. More than one row needs a graph
        that chooses rows, which all bundles but the first release's have.
        """
        self._prompts.compute(slot, start, tokens, logits)

    def decode(self, starts: Listing[int], tokens: Listing[Listing[int]], logits: Array) -> None:
        """Compute `tokens[i]` from position `starts[i]` on in slot i, for all slots at once.

        `logits` gets a row for each token, those of slot 0 first. More than one token of a
        sequence needs an 8-bit cache, with room in each slot for the longest of `tokens`.
        """
        batch, width = len(tokens), max(map(len, tokens))
        decoder = self._decoders.get((batch, width))
        if decoder is None:
            decoder = self._decoders[batch, width] = _Decoder(
                self._session, self._pool, batch, width
            )
        decoder.run(starts, tokens, logits)


class _Decoder:
    """The first `batch` slots bound as past and present, `width` tokens each at most."""

    def __init__(
        self, session: ort.InferenceSession, pool: SlotPool, batch: int, width: int
    ) -> None:
        self._binding = GraphBinding(session, batch, width)
        self._binding.set_width(width)
        self._binding.bind_slots(pool, slice(0, batch), extended=True)
        self._width = width
        self._counts: Lengths = np.ones(batch, np.int32)
        if "query_seqlens" in {entry.name for entry in session.get_inputs()}:
            self._binding.bind_input("query_seqlens", self._counts)
        else:
            assert width == 1, "this graph takes one token of each sequence"

    def run(self, starts: Listing[int], tokens: Listing[Listing[int]], logits: Array) -> None:
        binding, row = self._binding, 0
        for index, (start, new) in enumerate(zip(starts, tokens, strict=True)):
            count = len(new)
            binding.input_ids[index, :count] = new
            binding.seqlens_k[index] = start + count - 1
            self._counts[index] = count
            first = index * self._width
            binding.rows[row : row + count] = np.arange(first, first + count)
            row += count
        binding.total[...] = binding.seqlens_k.max() + 1
        assert row == len(logits), "a row for each token"
        binding.run(logits)

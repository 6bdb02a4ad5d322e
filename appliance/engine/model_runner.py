"""Runs a decoder's graphs over the slot pool: the only place where numbers are computed.

Owns the order of a step, the logits' memory, and a decode binding for each batch size, made
once and kept, since the pool never moves. The graphs' inputs and outputs are described in
docs/bundle-format.md.
"""

from __future__ import annotations

from collections.abc import Sequence as Listing

import numpy as np
import onnxruntime as ort

from appliance.engine.adapters.bank import AdapterBank
from appliance.engine.adapters.graphs import AdaptedGraphs
from appliance.engine.decode_batch import DecodeBatch
from appliance.engine.prompt_graph import BytePrompts, Prompts, SlotPrompts
from appliance.engine.prompt_pieces import compute_pieces
from appliance.engine.slot_pool import Array, SlotPool
from appliance.scheduler import Plan, PrefillChunk

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
        self._decoders: dict[tuple[int, int], DecodeBatch] = {}
        self._adapted: AdaptedGraphs | None = None
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
        Raises Interrupted if a piece of a prompt was given up; those before it are computed.
        """
        row = compute_pieces(plan, self._pool, self._compute, self._logits)
        if plan.decodes:
            starts = [sequence.computed for sequence in plan.decodes]
            adapters = [sequence.adapter for sequence in plan.decodes]
            self._decode(adapters, starts, plan.decoded, self._logits[row : sum(plan.rows)])
        return self._logits[: sum(plan.rows)]

    def most_drafted(self, sequences: int) -> int:
        """Drafted tokens that a decode batch of so many can take of each, padding included.

        None in graphs that take one token a row: several of a sequence would be computed as a
        piece of a prompt is, which rounds differently, and greedy output would not be the same.
        Nor with running states, of which a wrong guess could not be cut off.
        """
        if self._pool.recurrent is not None or not self._ragged:
            return 0
        return DRAFT_ROWS // sequences

    def interrupt(self) -> None:
        """Give up the piece of a prompt that is being computed."""
        self._prompts.interrupt()
        if self._adapted is not None:
            self._adapted.interrupt()

    def adopt(self, graphs: AdaptedGraphs, bank: AdapterBank) -> None:
        """Compute sequences that have an adapter by `graphs` with `bank`, from the next run on.

        Not while a run is under way.
        """
        graphs.use(bank)
        self._adapted = graphs

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
            decoder = self._decoders[batch, width] = DecodeBatch(
                self._session, self._pool, batch, width
            )
        decoder.run(starts, tokens, logits)

    def _compute(self, chunk: PrefillChunk, logits: Array) -> None:
        adapter, place = chunk.sequence.adapter, (chunk.slot, chunk.start)
        if not adapter:
            self.prefill(*place, chunk.tokens, logits)
            return
        assert self._adapted is not None, "adapters come before their sequences"
        self._adapted.prefill(adapter, *place, chunk.tokens, logits)

    def _decode(
        self,
        adapters: Listing[str],
        starts: Listing[int],
        tokens: Listing[Listing[int]],
        logits: Array,
    ) -> None:
        """By the plain graph where no sequence has an adapter: then they cost nothing."""
        if not any(adapters):
            self.decode(starts, tokens, logits)
            return
        assert self._adapted is not None, "adapters come before their sequences"
        self._adapted.decode(adapters, starts, tokens, logits)

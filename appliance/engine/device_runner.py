"""Runs a decoder's graph for CUDA over slots in the device's memory.

Owns the step on a GPU: cache, logits and bindings stay on the device, each step sends tokens and
lengths and brings back what was chosen. Decoding is recorded once for each number of sequences
and replayed as a CUDA graph, where the session can: starting several hundred small kernels one
by one takes longer than they do.
"""

from __future__ import annotations

from collections.abc import Sequence as Listing

import numpy as np
import onnxruntime as ort

from appliance.bundle.manifest import DecoderSpec
from appliance.engine.device_binding import DeviceBinding, StepBuffers
from appliance.engine.device_logits import DeviceLogits
from appliance.engine.device_pool import DevicePool
from appliance.scheduler import Plan

_LENGTHS = (1024, 4096, 16_384, 65_536)
"""Bounds of the longest sequence that decoding is recorded for: kernels share out work by them."""


class DeviceRunner:
    """Executes plans.

    Args:
        session: the `cuda` graph (docs/bundle-format.md).
        pool: the cache, on whose device everything else is put too.
        max_chunk: most tokens that a prefill chunk has.
        record: decoding is recorded and replayed; the session must be able to.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        pool: DevicePool,
        decoder: DecoderSpec,
        max_chunk: int,
        *,
        record: bool,
    ) -> None:
        self._session = session
        self._pool = pool
        self._vocab = decoder.vocab_size
        self._record = record
        slots = pool.shape.slots
        # A chunk that does not end its prompt gives a row all the same, which nobody reads.
        self._prompt = StepBuffers(pool, 1, max_chunk, self._vocab, results=slots + 1)
        self._batch = StepBuffers(pool, slots, 1, self._vocab, results=slots)
        self._decoders: dict[tuple[int, int], DeviceBinding] = {}

    def run(self, plan: Plan) -> DeviceLogits:
        """Compute a plan; the logits of each of `plan.sampled` in turn, until the next run."""
        for move in plan.moves:
            self._pool.move(move)
        ended = 0
        for chunk in plan.prefills:
            self.prefill(chunk.slot, chunk.start, chunk.tokens, ended)
            ended += chunk.completes
        addresses = [self._prompt.logits_at(result) for result in range(ended)]
        greedy = self._prompt.chosen(ended)
        if plan.decodes:
            count = len(plan.decodes)
            self.decode(
                [sequence.computed for sequence in plan.decodes],
                [sequence.tokens[-1] for sequence in plan.decodes],
            )
            addresses += [self._batch.logits_at(result) for result in range(count)]
            greedy += self._batch.chosen(count)
        return DeviceLogits(self._pool.device, self._vocab, addresses, greedy)

    def most_drafted(self, sequences: int) -> int:
        """None: in a batch this graph takes one token of each sequence."""
        return 0

    def prefill(self, slot: int, start: int, tokens: Listing[int], result: int) -> None:
        """Compute `tokens` of one sequence from position `start` on in `slot`.

        What follows the last of them becomes result number `result` of the prompts'.
        """
        count, total = len(tokens), start + len(tokens)
        self._prompt.fill(np.array(tokens), np.array([total - 1]), np.array([count - 1]))
        self._bind(self._prompt, first=slot, shape=(1, count), total=total, result=result).run()

    def decode(self, starts: Listing[int], tokens: Listing[int]) -> None:
        """Append `tokens[i]` at position `starts[i]` to the sequence in slot i, for all at once."""
        batch, longest = len(tokens), max(starts) + 1
        capacity = self._pool.shape.capacity
        bound = min([capacity, *(length for length in _LENGTHS if length >= longest)])
        decoder = self._decoders.get((batch, bound))
        if decoder is None:
            decoder = self._decoders[batch, bound] = self._bind(
                self._batch,
                first=0,
                shape=(batch, 1),
                total=bound,
                graph_id=len(self._decoders),
            )
        self._batch.fill(np.array(tokens), np.array(starts), np.arange(batch))
        decoder.run()

    def close(self) -> None:
        """Give the device's memory back."""
        self._decoders.clear()
        self._prompt.close()
        self._batch.close()
        self._pool.close()

    def _bind(
        self,
        buffers: StepBuffers,
        *,
        first: int,
        shape: tuple[int, int],
        total: int,
        result: int = 0,
        graph_id: int | None = None,
    ) -> DeviceBinding:
        return DeviceBinding(
            self._session,
            self._pool,
            buffers,
            vocab=self._vocab,
            first=first,
            shape=shape,
            total=total,
            result=result,
            graph_id=graph_id,
            recording=self._record,
        )

"""Runs a decoder graph over the slot pool: the only place where numbers are computed.

Owns the bindings. A decode binding for each batch size and a prefill binding for each slot are
made once and kept, since the pool never moves; a step only writes its integers into the bound
input arrays. The graph's inputs and outputs are described in docs/bundle-format.md.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from appliance.engine.slot_pool import Array, SlotPool
from appliance.scheduler import Plan, PrefillChunk, Sequence

Ids = npt.NDArray[np.int64]


class ModelRunner:
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
        self._max_chunk = max_chunk
        self._decoders: dict[int, _Binding] = {}
        self._prefillers: dict[int, _Binding] = {}

    def run(self, plan: Plan) -> Array:
        """Compute a plan. Returns logits [len(plan.sampled), vocab_size], in that order."""
        for move in plan.moves:
            self._pool.move(move)
        rows = np.empty((len(plan.sampled), self._logits.shape[1]), np.float32)
        row = 0
        for chunk in plan.prefills:
            logits = self._prefill(chunk)
            if chunk.completes:
                rows[row] = logits[0]
                row += 1
        if plan.decodes:
            rows[row:] = self._decode(plan.decodes)
        return rows

    def _prefill(self, chunk: PrefillChunk) -> Array:
        binding = self._prefillers.get(chunk.slot)
        if binding is None:
            binding = self._bind(chunk.slot, 1, self._max_chunk)
            self._prefillers[chunk.slot] = binding
        binding.set_width(chunk.count)
        binding.input_ids[0, : chunk.count] = chunk.tokens
        binding.seqlens_k[0] = binding.total[...] = chunk.start + chunk.count
        binding.seqlens_k[0] -= 1
        binding.last_index[0] = chunk.count - 1
        return binding.run()

    def _decode(self, sequences: tuple[Sequence, ...]) -> Array:
        batch = len(sequences)
        binding = self._decoders.get(batch)
        if binding is None:
            binding = self._decoders[batch] = self._bind(0, batch, 1)
        for row, sequence in enumerate(sequences):
            binding.input_ids[row, 0] = sequence.tokens[sequence.computed]
            binding.seqlens_k[row] = sequence.computed
        binding.total[...] = binding.seqlens_k.max() + 1
        return binding.run()

    def _bind(self, first: int, batch: int, max_width: int) -> _Binding:
        slots = slice(first, first + batch)
        return _Binding(self._session, self._pool, slots, self._logits[:batch], max_width)


class _Binding:
    """A block of slots bound as past and present, with its own input arrays."""

    def __init__(
        self,
        session: ort.InferenceSession,
        pool: SlotPool,
        slots: slice,
        logits: Array,
        max_width: int,
    ) -> None:
        batch = len(logits)
        self._session = session
        self._binding = session.io_binding()
        self.input_ids: Ids = np.zeros((batch, max_width), np.int64)
        self.seqlens_k: npt.NDArray[np.int32] = np.zeros(batch, np.int32)
        self.total: npt.NDArray[np.int32] = np.zeros((), np.int32)
        self.last_index: Ids = np.zeros(batch, np.int64)
        self._logits = logits
        self._width = 0
        self.set_width(max_width)
        self._bind_input("seqlens_k", self.seqlens_k)
        self._bind_input("total_sequence_length", self.total)
        self._bind_input("last_index", self.last_index)
        self._bind_output("logits", self._logits)
        for name, arrays in (("key", pool.keys), ("value", pool.values)):
            for layer, array in enumerate(arrays):
                self._bind_input(f"past_{name}_{layer}", array[slots])
                self._bind_output(f"present_{name}_{layer}", array[slots])

    def set_width(self, width: int) -> None:
        """Use the first `width` columns of `input_ids`; more than one needs a batch of one."""
        if width == self._width:
            return
        self._width = width
        batch = len(self.input_ids)
        assert batch == 1 or width == self.input_ids.shape[1], "the columns must be contiguous"
        self._binding.bind_input(
            "input_ids", "cpu", 0, np.int64, (batch, width), self.input_ids.ctypes.data
        )

    def run(self) -> Array:
        """Run the graph. Returns logits [batch, vocab], overwritten by the next run."""
        self._session.run_with_iobinding(self._binding)
        return self._logits

    def _bind_input(self, name: str, array: npt.NDArray[np.generic]) -> None:
        assert array.flags.c_contiguous
        self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def _bind_output(self, name: str, array: npt.NDArray[np.generic]) -> None:
        assert array.flags.c_contiguous
        self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

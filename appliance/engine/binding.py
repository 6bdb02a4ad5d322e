"""Arrays bound to one graph's inputs and outputs, kept from step to step.

Owns the arrays that a step writes its integers into. Binding costs more than a small step
computes, so what stays where it is, the cache above all, is bound once.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from appliance.compiler.probe import written_again
from appliance.engine.recurrent_pool import RecurrentPool
from appliance.engine.slot_pool import Array, CacheArray, SlotPool

Ids = npt.NDArray[np.int64]
Lengths = npt.NDArray[np.int32]
PAIR = ("key", "value")


class GraphBinding:
    """The inputs that every form of decoder graph has (docs/bundle-format.md), and its logits.

    Args:
        batch: sequences.
        width: most tokens of each.
    """

    def __init__(self, session: ort.InferenceSession, batch: int, width: int) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._names = {entry.name for entry in session.get_inputs()}
        self._again = written_again(session)
        self._bound_width, self._bound_rows = 0, -1
        self.input_ids: Ids = np.zeros((batch, width), np.int64)
        self.seqlens_k: Lengths = np.zeros(batch, np.int32)
        self.total: Lengths = np.zeros((), np.int32)
        self.rows: Ids = np.zeros(batch * width, np.int64)
        self.last_index: Ids = np.zeros(batch, np.int64)
        self.bind_input("seqlens_k", self.seqlens_k)
        self.bind_input("total_sequence_length", self.total)
        if not self.chooses_rows:
            self.bind_input("last_index", self.last_index)

    @property
    def chooses_rows(self) -> bool:
        """Whether any rows' logits can be had; graphs of older bundles give one a sequence."""
        return "rows" in self._names

    def set_width(self, width: int) -> bool:
        """Use the first `width` columns of `input_ids`; False if they are in use already."""
        if width == self._bound_width:
            return False
        batch, most = self.input_ids.shape
        assert batch == 1 or width == most, "the columns must be contiguous"
        self._bound_width = width
        self._bind("input", "input_ids", self.input_ids, (batch, width))
        return True

    def run(self, logits: Array, options: ort.RunOptions | None = None) -> None:
        """Run the graph; the logits of the first len(logits) of `rows` go to `logits`."""
        if not self.chooses_rows:
            logits = self._one_row_each(logits)
        elif len(logits) != self._bound_rows:
            self._bound_rows = len(logits)
            self._bind("input", "rows", self.rows, (len(logits),))
        self.bind_output("logits", logits)
        self._session.run_with_iobinding(self._binding, options)

    def _one_row_each(self, logits: Array) -> Array:
        """Name the rows to a graph that insists on one row of each sequence."""
        batch, count = len(self.last_index), len(logits)
        assert count in (0, batch), "this graph gives one row of each sequence"
        if count == 0:
            self._spare = np.zeros((batch, logits.shape[1]), np.float32)
            return self._spare
        self.last_index[:] = self.rows[:count] - np.arange(count) * self._bound_width
        return logits

    def bind_slots(self, pool: SlotPool, slots: slice, *, extended: bool) -> None:
        """Bind a block of slots as past and, where the graph extends them, as present."""
        for name, arrays in zip(PAIR, (pool.keys, pool.values), strict=True):
            for layer, array in enumerate(arrays):
                self.bind_input(f"past_{name}_{layer}", array[slots])
                if extended:
                    at = f"{name}_{layer}"
                    for written in (f"present_{at}", *self._again.get(at, ())):
                        self.bind_output(written, array[slots])

    def bind_states(self, pool: RecurrentPool, past: slice, present: slice) -> None:
        """Bind rows of running states as past, and others, or the same, as present."""
        for name, arrays in pool.parts.items():
            for layer, array in enumerate(arrays):
                self.bind_input(f"past_{name}_{layer}", array[past])
                self.bind_output(f"present_{name}_{layer}", array[present])

    def bind_input(self, name: str, array: npt.NDArray[np.generic]) -> None:
        self._bind("input", name, array, array.shape)

    def bind_output(self, name: str, array: npt.NDArray[np.generic]) -> None:
        self._bind("output", name, array, array.shape)

    def bind_first(self, name: str, array: CacheArray, width: int) -> None:
        """Bind an output to the first `width` rows of `array` [1, most, n]."""
        self._bind("output", name, array, (1, width, array.shape[2]))

    def _bind(
        self, way: str, name: str, array: npt.NDArray[np.generic], shape: tuple[int, ...]
    ) -> None:
        """Bind the memory at the start of `array`; whoever calls keeps the array alive."""
        assert array.flags.c_contiguous
        bind = self._binding.bind_input if way == "input" else self._binding.bind_output
        bind(name, "cpu", 0, array.dtype, shape, array.ctypes.data)

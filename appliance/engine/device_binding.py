"""What a graph for CUDA reads and writes in a step, bound on the device once and kept."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort

from appliance.engine.binding import Ids, Lengths
from appliance.engine.device import HostArray
from appliance.engine.device_pool import DevicePool

_GRAPH_ID = "gpu_graph_id"
_UNRECORDED = "-1"


class StepBuffers:
    """A step's integers, which travel to the device in one copy, and its results.

    Args:
        batch: sequences at most.
        width: tokens of each at most.
        results: rows of logits that are kept at once.
    """

    def __init__(
        self, pool: DevicePool, batch: int, width: int, vocab: int, *, results: int
    ) -> None:
        self._device = pool.device
        self._vocab = vocab
        words = batch * width + batch
        self._host = np.zeros(8 * words + 4 * batch, np.uint8)
        integers: Ids = self._host[: 8 * words].view(np.int64)
        self._ids, self._rows = integers[: batch * width], integers[batch * width :]
        self._seqlens: Lengths = self._host[8 * words :].view(np.int32)
        self.ids = self._device.allocate(self._host.nbytes)
        self.rows = self.ids + 8 * batch * width
        self.seqlens = self.ids + 8 * words
        self.logits = self._device.allocate(4 * results * vocab)
        self.greedy = self._device.allocate(8 * results)

    def fill(self, ids: HostArray, seqlens: HostArray, rows: HostArray) -> None:
        """Send the integers of the next run."""
        self._ids[: len(ids)] = ids
        self._seqlens[: len(seqlens)] = seqlens
        self._rows[: len(rows)] = rows
        self._device.write(self.ids, self._host)

    def logits_at(self, result: int) -> int:
        """Address of a row of logits, float32 [vocab]."""
        return self.logits + 4 * result * self._vocab

    def greedy_at(self, result: int) -> int:
        return self.greedy + 8 * result

    def chosen(self, count: int) -> list[int]:
        """The likeliest tokens of the first `count` results."""
        ids = np.zeros(count, np.int64)
        if count:
            self._device.read(self.greedy, ids)
        return [int(token) for token in ids]

    def close(self) -> None:
        for address in (self.ids, self.logits, self.greedy):
            self._device.release(address)


class DeviceBinding:
    """One shape of run: `shape` tokens over the slots from `first` on.

    Args:
        total: upper bound of the sequences' lengths, these tokens included.
        result: the first result that the run fills.
        graph_id: number under which the session records the run; None: it does not.
        recording: the session records whatever it is not told not to.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        pool: DevicePool,
        buffers: StepBuffers,
        *,
        vocab: int,
        first: int,
        shape: tuple[int, int],
        total: int,
        result: int = 0,
        graph_id: int | None = None,
        recording: bool = False,
    ) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._kind = pool.device.kind
        self._total: Lengths = np.array(total, np.int32)
        batch = shape[0]
        self._bind("input", "input_ids", np.int64, shape, buffers.ids)
        self._bind("input", "rows", np.int64, (batch,), buffers.rows)
        self._bind("input", "seqlens_k", np.int32, (batch,), buffers.seqlens)
        self._binding.bind_input(
            "total_sequence_length", "cpu", 0, np.int32, (), self._total.ctypes.data
        )
        self._bind("output", "logits", np.float32, (batch, vocab), buffers.logits_at(result))
        self._bind("output", "greedy", np.int64, (batch,), buffers.greedy_at(result))
        for name, address in pool.addresses(first):
            self._bind("input", f"past_{name}", np.float16, (batch, *pool.slot_shape), address)
            self._bind("output", f"present_{name}", np.float16, (batch, *pool.slot_shape), address)
        self._options = ort.RunOptions()
        if recording:
            number = _UNRECORDED if graph_id is None else str(graph_id)
            self._options.add_run_config_entry(_GRAPH_ID, number)

    def run(self) -> None:
        """Run the graph on what the buffers hold; the results are there when this returns."""
        self._session.run_with_iobinding(self._binding, self._options)

    def _bind(self, way: str, name: str, dtype: type, shape: tuple[int, ...], address: int) -> None:
        bind = self._binding.bind_input if way == "input" else self._binding.bind_output
        bind(name, self._kind, 0, dtype, shape, address)

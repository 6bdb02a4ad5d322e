"""What a graph for a GPU reads and writes in a step, bound on the device once and kept.

The graph for CUDA asks for each sequence's last position, the one for TensorRT for its first; a
stage asks for what it reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import onnxruntime as ort

from appliance.compiler.probe import written_again
from appliance.compiler.recording import GRAPH_ID, UNRECORDED
from appliance.engine.binding import Ids, Lengths
from appliance.engine.device.adapters import DeviceAdapters
from appliance.engine.device.device import Device
from appliance.engine.device.pool import DevicePool
from appliance.engine.device.stages import Handover
from appliance.engine.vision.device_sight import Bound, DeviceSight


class Integers(NamedTuple):
    """Addresses of a step's integers on one device."""

    ids: int
    rows: int
    starts: int
    seqlens: int


class StepBuffers:
    """A step's integers, which travel to each device in one copy, and its results on the last.

    Args:
        devices: of the stages, in order.
        tokens: in a run at most, padding included.
        batch: sequences in a run at most.
        rows: whose logits a run is asked for at most.
        results: rows of logits that are kept at once.

    Attributes:
        integers: of each stage.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        vocab: int,
        *,
        tokens: int,
        batch: int,
        rows: int,
        results: int,
    ) -> None:
        self._devices, self._device = devices, devices[-1]
        self._vocab = vocab
        wide = 8 * (tokens + rows + batch)
        self._host = np.zeros(wide + 4 * batch, np.uint8)
        integers: Ids = self._host[:wide].view(np.int64)
        self._ids, self._rows, self._starts = np.split(integers, [tokens, tokens + rows])
        self._seqlens: Lengths = self._host[wide:].view(np.int32)
        self.integers = [
            Integers(ids, ids + 8 * tokens, ids + 8 * (tokens + rows), ids + wide)
            for ids in (device.allocate(self._host.nbytes) for device in devices)
        ]
        self.logits = self._device.allocate(4 * results * vocab)
        self.greedy = self._device.allocate(8 * results)

    def fill(self, tokens: Sequence[Sequence[int]], starts: Sequence[int], rows: int = 1) -> None:
        """Send what the next run computes: `tokens[i]` from position `starts[i]` on, of each.

        Shorter ones are padded at the end; asked for is what follows the last `rows` of each.
        """
        batch, width = len(tokens), max(map(len, tokens))
        ids = self._ids[: batch * width].reshape(batch, width)
        for row, new in enumerate(tokens):
            ids[row, : len(new)] = new
        counts = np.fromiter(map(len, tokens), np.int64, batch)
        firsts = np.arange(batch) * width + counts - rows
        self._rows[: batch * rows] = (firsts[:, None] + np.arange(rows)).ravel()
        self._starts[:batch] = starts
        self._seqlens[:batch] = self._starts[:batch] + counts - 1
        for device, integers in zip(self._devices, self.integers, strict=True):
            device.write(integers.ids, self._host)

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
        tokens: list[int] = ids.tolist()
        return tokens

    def close(self) -> None:
        for device, integers in zip(self._devices, self.integers, strict=True):
            device.release(integers.ids)
        for address in (self.logits, self.greedy):
            self._device.release(address)


class DeviceBinding:
    """Runs of the graph, or of one stage of it, over `batch` slots from slot `first` on.

    Args:
        stage: which one it is.
        before: from where it is handed the tokens' states; None: it is the first.
        behind: to where it hands them on; None: it is the last.
        sight: what the graph takes beside words; None if it reads them alone.
        adapters: those of the graph; None if it has no room for any.
        recording: the session records every run that it is not told not to.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        pool: DevicePool,
        buffers: StepBuffers,
        vocab: int,
        *,
        first: int,
        batch: int,
        stage: int = 0,
        before: Handover | None = None,
        behind: Handover | None = None,
        sight: DeviceSight | None = None,
        adapters: DeviceAdapters | None = None,
        recording: bool = False,
    ) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._device = pool.device
        self._buffers, self._integers = buffers, buffers.integers[stage]
        self._before, self._behind = before, behind
        self._vocab = vocab
        self._batch = batch
        self._sight = sight
        self._names = {entry.name for entry in (*session.get_inputs(), *session.get_outputs())}
        self._again = written_again(session)
        self._total: Lengths = np.zeros((), np.int32)
        self._bind("input", "starts", np.int64, (batch,), self._integers.starts)
        self._bind("input", "seqlens_k", np.int32, (batch,), self._integers.seqlens)
        if "total_sequence_length" in self._names:
            self._binding.bind_input(
                "total_sequence_length", "cpu", 0, np.int32, (), self._total.ctypes.data
            )
        for name, sizes, address in pool.addresses(first):
            self._bind("input", f"past_{name}", np.float16, (batch, *sizes), address)
            for written in (f"present_{name}", *self._again.get(name, ())):
                self._bind("output", written, np.float16, (batch, *sizes), address)
        for name, sizes, address in () if pool.states is None else pool.states.addresses(first):
            self._bind("input", f"past_{name}", np.float32, (batch, *sizes), address)
            self._bind("output", f"present_{name}", np.float32, (batch, *sizes), address)
        for name, shape, address in () if adapters is None else adapters.inputs(batch):
            self._bind("input", name, np.float16, shape, address)
        self._options = ort.RunOptions()
        if recording:
            self._options.add_run_config_entry(GRAPH_ID, UNRECORDED)

    def aim(self, width: int, total: int, result: int, rows: int = 1) -> None:
        """The next runs compute `width` tokens of each sequence, padding included.

        `total` is an upper bound of the sequences' lengths, these tokens included; the logits of
        `rows` tokens of each become the results from number `result` on.
        """
        buffers, batch = self._buffers, self._batch
        self._total[...] = total
        self._bind("input", "input_ids", np.int64, (batch, width), self._integers.ids)
        if self._sight is not None:
            self._bind_all("input", self._sight.inputs(batch, width))
        if self._before is not None:
            self._bind_all("input", self._before.given(batch, width))
        if self._behind is not None:
            self._bind_all("output", self._behind.made(batch, width))
        count, vocab = batch * rows, self._vocab
        self._bind("input", "rows", np.int64, (count,), self._integers.rows)
        self._bind("output", "logits", np.float32, (count, vocab), buffers.logits_at(result))
        self._bind("output", "greedy", np.int64, (count,), buffers.greedy_at(result))

    def record(self, number: int) -> None:
        """The next run is recorded under `number`, and those after it replay it."""
        self._options = ort.RunOptions()
        self._options.add_run_config_entry(GRAPH_ID, str(number))

    def run(self) -> None:
        """Run the graph on what the buffers hold; the results are there when this returns."""
        self._session.run_with_iobinding(self._binding, self._options)

    def _bind_all(self, way: str, bound: Iterable[Bound]) -> None:
        for name, kind, shape, address in bound:
            self._bind(way, name, kind, shape, address)

    def _bind(self, way: str, name: str, dtype: type, shape: tuple[int, ...], address: int) -> None:
        """Bind what this graph has of that name, if it has it."""
        if name not in self._names:
            return
        bind = self._binding.bind_input if way == "input" else self._binding.bind_output
        bind(name, self._device.kind, self._device.number, dtype, shape, address)

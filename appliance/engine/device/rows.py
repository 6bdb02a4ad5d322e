"""One small graph over rows in a device's memory, with memory of its own for what goes in and out.

Owns the bindings. Knows nothing of what the graph computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from appliance.engine.device.device import Device

Array = npt.NDArray[Any]
Place = tuple[int, tuple[int, int]]
"""Where rows lie, and [rows, width]."""


class DeviceRows:
    """Runs `session` over `most_rows` rows at once.

    `row_bytes`: of a row of each input and output that has memory here. Raises CapacityError.
    """

    def __init__(
        self, device: Device, session: ort.InferenceSession, most_rows: int, **row_bytes: int
    ) -> None:
        self._device, self._session = device, session
        self._places: dict[str, int] = {}
        self._written: dict[str, Array] = {}
        try:
            for name, size in row_bytes.items():
                self._places[name] = device.allocate(most_rows * size)
        except BaseException:
            self.close()
            raise

    def write(self, name: str, array: Array) -> None:
        """Give the input `name` [rows, width] for the next runs."""
        self._device.write(self._places[name], np.ascontiguousarray(array))
        self._written[name] = array

    def run(
        self, rows: Mapping[str, Place], kept: Mapping[str, Place] | None = None, **outputs: Array
    ) -> None:
        """Run over `rows` of float32 that lie elsewhere, and read `outputs`; `kept` stay there."""
        binding, where = self._session.io_binding(), (self._device.kind, self._device.number)
        for name, (address, shape) in rows.items():
            binding.bind_input(name, *where, np.float32, shape, address)
        for name, array in self._written.items():
            binding.bind_input(name, *where, array.dtype.type, array.shape, self._places[name])
        for name, (address, shape) in (kept or {}).items():
            binding.bind_output(name, *where, np.float32, shape, address)
        for name, array in outputs.items():
            binding.bind_output(name, *where, array.dtype.type, array.shape, self._places[name])
        self._session.run_with_iobinding(binding)
        for name, array in outputs.items():
            self._device.read(self._places[name], array)

    def close(self) -> None:
        """Give the device's memory back."""
        while self._places:
            self._device.release(self._places.popitem()[1])

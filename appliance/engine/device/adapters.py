"""Adapters in a GPU's memory, as a graph with room for them reads them.

Owns the rows of a bank in 16-bit floats, and the masks that say whose rows are whose in a step. All
lies at addresses that stay until another bank comes, so that recorded steps find it. A graph has
room for adapters in every step or in none: a second one beside it would hold the weights once more.
Refuses a bank that the memory has no room for; the one before it then stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet

import msgspec
import numpy as np
import onnxruntime as ort

from appliance.bundle.specs import AdapterTarget
from appliance.compiler.probe import ADAPTER
from appliance.engine.adapters.bank import AdapterBank
from appliance.engine.device.device import Device
from appliance.engine.slot_pool import Array
from appliance.errors import CapacityError

_DOWN = re.compile(rf"{ADAPTER}down_(\d+)_(\w+)")
_ALIGNED = 256
"""Bytes; what CUDA gives to whole allocations, and its kernels for matrices like best."""
Input = tuple[str, tuple[int, ...], int]
"""Name, shape and address of an input of 16-bit floats."""


class DeviceAdapters:
    """The adapters of one graph, or of one stage of it.

    Args:
        whole: the sessions of all stages, this one among them.
        sequences: in a step at most.

    Raises CapacityError.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        whole: Sequence[ort.InferenceSession],
        device: Device,
        sequences: int,
    ) -> None:
        self._device = device
        self._sequences = sequences
        self._names = {entry.name for entry in session.get_inputs()}
        self._held = HeldAdapters(_nobody(whole), self._names, device, sequences)
        self._chosen: list[str] = [""] * sequences

    def prepare(self, bank: AdapterBank) -> HeldAdapters:
        """`bank` in the device's memory, for `use`. Raises CapacityError."""
        return HeldAdapters(bank, self._names, self._device, self._sequences)

    def use(self, held: HeldAdapters) -> None:
        """Compute with what was prepared. What was bound before must not be run any more."""
        self._held.close()
        self._held = held
        self._chosen = [""] * self._sequences

    def inputs(self, batch: int) -> Iterator[Input]:
        """What a step of `batch` sequences is to be bound to."""
        return self._held.inputs(batch)

    def choose(self, adapters: Sequence[str]) -> None:
        """Let row i of the next step have the adapter `adapters[i]`, none for ""."""
        if list(adapters) == self._chosen[: len(adapters)]:
            return
        assert {*adapters} <= {"", *self._held.bank.digests}, "adapters come before their sequences"
        self._chosen[: len(adapters)] = adapters
        self._held.mask(self._chosen)

    def close(self) -> None:
        """Give the memory back."""
        self._held.close()


class HeldAdapters:
    """A bank in the device's memory, and masks [sequences, ranks] for each target before it.

    Of the bank there are the matrices that have a name in `names`, which a graph takes.
    """

    def __init__(
        self, bank: AdapterBank, names: AbstractSet[str], device: Device, sequences: int
    ) -> None:
        self.bank = bank
        self._names = names
        self._device = device
        self._sequences = sequences
        self._masks = np.zeros(sequences * sum(bank.ranks.values()), np.float16)
        self._places: dict[str, tuple[tuple[int, int], int]] = {}
        """Name of a matrix -> shape, and offset."""
        end = _rounded(self._masks.nbytes)
        for (layer, target), rows in self._matrices():
            for kind, matrix in zip(("down", "up"), rows, strict=True):
                shape = (matrix.shape[0], matrix.shape[1])
                self._places[f"{ADAPTER}{kind}_{layer}_{target}"] = shape, end
                end += _rounded(2 * matrix.size)
        try:
            self._address = device.allocate(end)
        except CapacityError as error:
            raise CapacityError(
                f"the GPU has no {end} bytes left for adapters",
                hint="unload an adapter, or lower engine.cache_bytes and load the model again",
                code="adapters_full",
            ) from error
        self._write()

    def inputs(self, batch: int) -> Iterator[Input]:
        offset = 0
        for target, ranks in self.bank.ranks.items():
            yield f"{ADAPTER}mask_{target}", (batch, 1, ranks), self._address + offset
            offset += 2 * self._sequences * ranks
        for name, (shape, offset) in self._places.items():
            yield name, shape, self._address + offset

    def mask(self, adapters: Sequence[str]) -> None:
        """Row i of every mask is that of `adapters[i]`."""
        self._masks[:] = 0
        start = 0
        for target, ranks in self.bank.ranks.items():
            end = start + self._sequences * ranks
            mask = self._masks[start:end].reshape(self._sequences, ranks)
            for row, adapter in enumerate(adapters):
                if (own := self.bank.rows(adapter, target)) is not None:
                    mask[row, own] = 1
            start = end
        self._device.write(self._address, self._masks)

    def close(self) -> None:
        self._device.release(self._address)

    def _matrices(self) -> Iterator[tuple[tuple[int, str], tuple[Array, Array]]]:
        for layer, target in self.bank.places():
            if f"{ADAPTER}down_{layer}_{target}" in self._names:
                yield (layer, target), self.bank.all((layer, target))

    def _write(self) -> None:
        for (layer, target), rows in self._matrices():
            for kind, matrix in zip(("down", "up"), rows, strict=True):
                _, offset = self._places[f"{ADAPTER}{kind}_{layer}_{target}"]
                narrow = np.ascontiguousarray(matrix, np.float16)
                self._device.write(self._address + offset, narrow)


def _nobody(stages: Sequence[ort.InferenceSession]) -> AdapterBank:
    """A bank without adapters, of the places that the graph has."""
    shapes = {entry.name: entry.shape for each in stages for entry in each.get_inputs()}
    places = [match for name in shapes if (match := _DOWN.fullmatch(name))]
    first = [match for match in places if match[1] == "0"]
    widths = ((m[2], shapes[m[0]][1], shapes[f"{ADAPTER}up_0_{m[2]}"][1]) for m in first)
    targets = [
        msgspec.convert({"name": name, "inner": inner, "outer": outer}, AdapterTarget)
        for name, inner, outer in widths
    ]
    return AdapterBank(1 + max(int(match[1]) for match in places), targets)


def _rounded(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED

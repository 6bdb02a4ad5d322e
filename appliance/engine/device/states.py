"""Running states in a device's memory, of layers that keep one in place of keys and values.

    block    float32 [layers, rows, numbers], one of states and one of tails

    rows     0 1 2 3   4     5 6 7 8 9 ..
             |-----|   |     |---------|
             a slot's  zeros snapshots, by the scheduler's numbers
             own

The slots of a layer lie side by side, as the graph reads and writes them; what a sequence has in
all layers is copied at once. A step on a GPU is never given up, so a piece of a prompt extends its
slot's own, too (on the processor: recurrent_pool.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from appliance.bundle.specs import RecurrentSpec
from appliance.engine.cache_budget import CacheShape
from appliance.engine.device.device import Device
from appliance.scheduler import Move

_ITEM_BYTES = 4
Sizes = tuple[int, ...]


class _Block(NamedTuple):
    """Of one part of the states: its name, sizes and bytes for a sequence and layer."""

    name: str
    sizes: Sizes
    size: int
    address: int

    def at(self, row: int) -> int:
        """Where a row lies, counted through all layers."""
        return self.address + row * self.size


class DeviceStates:
    """States of one model's slots; they never move while this lives. Raises CapacityError.

    Args:
        layers: whose states lie on this device, counted among those that have one.
    """

    def __init__(
        self, spec: RecurrentSpec, shape: CacheShape, device: Device, layers: range | None = None
    ) -> None:
        numbers = range(spec.layers) if layers is None else layers
        self._first, self._layers, self._rows = numbers.start, len(numbers), shape.states
        self._zeros = shape.slots
        self._device = device
        sizes: dict[str, Sizes] = {
            "state": (spec.heads, spec.key_dim, spec.value_dim),
            "tail": (spec.channels, spec.tail),
        }
        self._blocks: list[_Block] = []
        try:
            for name, each in sizes.items():
                if not all(each):
                    continue
                size = _ITEM_BYTES * math.prod(each)
                address = device.allocate(self._layers * self._rows * size)
                self._blocks.append(_Block(name, each, size, address))
        except BaseException:
            self.close()
            raise

    @property
    def nbytes(self) -> int:
        return self._layers * self._rows * sum(block.size for block in self._blocks)

    def addresses(self, slot: int) -> Iterator[tuple[str, Sizes, int]]:
        """`state_0`, `tail_0`, ...: sizes for one sequence, and where the slot's lies."""
        for block in self._blocks:
            for layer in range(self._layers):
                name = f"{block.name}_{self._first + layer}"
                yield name, block.sizes, block.at(layer * self._rows + slot)

    def begin(self, slot: int) -> None:
        """Nothing was read in `slot`."""
        self._copy(self._zeros, slot)

    def keep(self, slot: int, snapshot: int) -> None:
        """Set the state of `slot` aside."""
        self._copy(slot, self._row(snapshot))

    def move(self, move: Move) -> None:
        """Give the target the state that the move says; with `exchange` both each other's.

        Raises CapacityError if an exchange finds no room for one state.
        """
        source = move.source if move.snapshot is None else self._row(move.snapshot)
        if not move.exchange:
            self._copy(source, move.target)
            return
        with self._copied(move.target, 1) as put:
            self._copy(source, move.target)
            put(source)

    @contextmanager
    def restored(self, batch: int) -> Iterator[None]:
        """The first `batch` slots' states are at the end what they are now.

        Raises CapacityError if there is no room for as many; then nothing was begun.
        """
        with self._copied(0, batch) as put:
            yield
            put(0)

    def close(self) -> None:
        """Give the memory back."""
        while self._blocks:
            self._device.release(self._blocks.pop().address)

    def _row(self, snapshot: int) -> int:
        return self._zeros + 1 + snapshot

    def _copy(self, source: int, target: int) -> None:
        for block in self._blocks:
            pitch, size = self._rows * block.size, block.size
            ends = block.at(target), block.at(source)
            self._device.copy_rows(*ends, (pitch, pitch), (self._layers, size))

    @contextmanager
    def _copied(self, first: int, count: int) -> Iterator[Callable[[int], None]]:
        """Copies `count` rows; what is yielded writes them to those from another one on."""
        spares: list[int] = []

        def put(row: int) -> None:
            for block, spare in zip(self._blocks, spares, strict=True):
                pitch, size = self._rows * block.size, count * block.size
                self._device.copy_rows(block.at(row), spare, (pitch, size), (self._layers, size))

        try:
            for block in self._blocks:
                pitch, size = self._rows * block.size, count * block.size
                spare = self._device.allocate(self._layers * size)
                spares.append(spare)
                self._device.copy_rows(spare, block.at(first), (size, pitch), (self._layers, size))
            yield put
        finally:
            for spare in spares:
                self._device.release(spare)

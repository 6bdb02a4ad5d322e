"""The key-value cache in a device's memory: one block a layer for keys, one for values.

    block    float16 [slots, kv_heads, capacity, head_dim]

Heads may differ from layer to layer. The graph reads and writes them in place; they never move
while the pool lives. Layers that keep a running state have another memory: states.py. Of a model in
stages there is a pool of each stage's layers: stages.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from appliance.bundle.specs import DecoderSpec, RecurrentSpec
from appliance.engine.binding import PAIR
from appliance.engine.cache_budget import CacheShape
from appliance.engine.device.device import Device
from appliance.engine.device.states import DeviceStates
from appliance.scheduler import Move

ITEM_BYTES = 2


class Layers(NamedTuple):
    """Some of a model's layers.

    Attributes:
        cached: those with keys and values, counted among these.
        running: those with a running state, counted among these.
    """

    cached: range
    running: range


def all_layers(decoder: DecoderSpec) -> Layers:
    """Of a model that is whole."""
    own = decoder.recurrent
    return Layers(range(decoder.layers), range(own.layers if isinstance(own, RecurrentSpec) else 0))


class Block(NamedTuple):
    """Where the keys, or the values, of one layer lie.

    Attributes:
        address: of the first slot.
        heads: of a slot.
        row: bytes of a position of one of them.
    """

    address: int
    heads: int
    row: int

    def bytes_of(self, positions: int) -> int:
        """Of a slot with so many."""
        return self.heads * positions * self.row

    def slot(self, number: int, capacity: int) -> int:
        """Its address, where each has `capacity` positions."""
        return self.address + number * self.bytes_of(capacity)


class DevicePool:
    """Slots of one model, or of one stage of it.

    Args:
        layers: whose caches lie here; all if not said.

    Attributes:
        states: the running ones; None: no layer here has any.
        capacity: positions that each slot has now.
    """

    def __init__(
        self,
        decoder: DecoderSpec,
        shape: CacheShape,
        device: Device,
        layers: Layers | None = None,
    ) -> None:
        own = layers or all_layers(decoder)
        self.shape = shape
        self.device = device
        self.capacity = shape.capacity
        self._blocks: dict[str, Block] = {}
        self.states: DeviceStates | None = None
        try:
            for layer in own.cached:
                heads = decoder.layer_heads[layer]
                sizes = heads.kv_heads, heads.head_dim * ITEM_BYTES
                for name in PAIR:
                    size = shape.slots * Block(0, *sizes).bytes_of(shape.capacity)
                    self._blocks[f"{name}_{layer}"] = Block(device.allocate(size), *sizes)
            if isinstance(decoder.recurrent, RecurrentSpec) and own.running:
                self.states = DeviceStates(decoder.recurrent, shape, device, own.running)
        except BaseException:
            self.close()
            raise
        assert layers is not None or self.nbytes == shape.total_bytes

    @property
    def nbytes(self) -> int:
        """Of the device's memory."""
        states = 0 if self.states is None else self.states.nbytes
        each = sum(block.bytes_of(self.shape.capacity) for block in self._blocks.values())
        return self.shape.slots * each + states

    def addresses(self, slot: int) -> Iterator[tuple[str, tuple[int, ...], int]]:
        """`key_0`, `value_0`, ...: the slot's sizes in each, and where it lies."""
        for name, block in self._blocks.items():
            sizes = (block.heads, self.capacity, block.row // ITEM_BYTES)
            yield name, sizes, block.slot(slot, self.capacity)

    def move(self, move: Move) -> None:
        """Copy or exchange the first `move.tokens` positions of two slots, in every layer."""
        if move.source != move.target:
            self._move_positions(move)
        if self.states is not None:
            self.states.move(move)

    def _move_positions(self, move: Move) -> None:
        if not move.tokens:
            return
        with self._spare(move.tokens if move.exchange else 0) as spare:
            for block in self._blocks.values():
                pitch, rows = self.capacity * block.row, (block.heads, move.tokens * block.row)
                source = block.slot(move.source, self.capacity)
                target = block.slot(move.target, self.capacity)
                if spare:
                    self._copy(spare, target, (rows[1], pitch), rows)
                self._copy(target, source, (pitch, pitch), rows)
                if spare:
                    self._copy(source, spare, (pitch, rows[1]), rows)

    def close(self) -> None:
        """Give the memory back."""
        while self._blocks:
            self.device.release(self._blocks.popitem()[1].address)
        if self.states is not None:
            self.states.close()

    def _copy(
        self, target: int, source: int, pitches: tuple[int, int], rows: tuple[int, int]
    ) -> None:
        self.device.copy_rows(target, source, pitches, rows)

    @contextmanager
    def _spare(self, positions: int) -> Iterator[int]:
        """Memory for so many positions of any layer; 0 if none is wanted."""
        size = max((block.bytes_of(positions) for block in self._blocks.values()), default=0)
        address = self.device.allocate(size) if size else 0
        try:
            yield address
        finally:
            if address:
                self.device.release(address)

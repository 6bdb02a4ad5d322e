"""The key-value cache in a device's memory: one block a layer for keys, one for values.

    block    float16 [slots, kv_heads, capacity, head_dim]

The graph reads and writes them in place; they never move while the pool lives. Layers that keep a
running state have another memory: states.py. Of a model in stages there is a pool of each stage's
layers: stages.py.
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


class DevicePool:
    """Slots of one model, or of one stage of it.

    Args:
        layers: whose caches lie here; all if not said.

    Attributes:
        states: the running ones; None: no layer here has any.
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
        self._heads, self._head_dim = decoder.kv_heads, decoder.head_dim
        self._row = decoder.head_dim * ITEM_BYTES
        self._lay_out(shape.capacity)
        self._blocks: dict[str, int] = {}
        self.states: DeviceStates | None = None
        try:
            for layer in own.cached:
                for name in PAIR:
                    self._blocks[f"{name}_{layer}"] = device.allocate(shape.slots * self._slot)
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
        return len(self._blocks) * self.shape.slots * self._slot + states

    def _lay_out(self, capacity: int) -> None:
        """Slots have so many positions from now on; what they hold stays where it is."""
        self.slot_shape = (self._heads, capacity, self._head_dim)
        self._pitch = capacity * self._row
        self._slot = self._heads * self._pitch

    def addresses(self, slot: int) -> Iterator[tuple[str, int]]:
        """`key_0`, `value_0`, ... and where the slot lies in each."""
        for name, block in self._blocks.items():
            yield name, block + slot * self._slot

    def move(self, move: Move) -> None:
        """Copy or exchange the first `move.tokens` positions of two slots, in every layer."""
        if move.source != move.target:
            self._move_positions(move)
        if self.states is not None:
            self.states.move(move)

    def _move_positions(self, move: Move) -> None:
        rows = (self._heads, move.tokens * self._row)
        if not move.tokens:
            return
        with self._spare(rows[0] * rows[1] if move.exchange else 0) as spare:
            for block in self._blocks.values():
                source, target = block + move.source * self._slot, block + move.target * self._slot
                if spare:
                    self._copy(spare, target, (rows[1], self._pitch), rows)
                self._copy(target, source, (self._pitch, self._pitch), rows)
                if spare:
                    self._copy(source, spare, (self._pitch, rows[1]), rows)

    def close(self) -> None:
        """Give the memory back."""
        while self._blocks:
            self.device.release(self._blocks.popitem()[1])
        if self.states is not None:
            self.states.close()

    def _copy(
        self, target: int, source: int, pitches: tuple[int, int], rows: tuple[int, int]
    ) -> None:
        self.device.copy_rows(target, source, pitches, rows)

    @contextmanager
    def _spare(self, size: int) -> Iterator[int]:
        """A block for what is exchanged; 0 if none is wanted."""
        address = self.device.allocate(size) if size else 0
        try:
            yield address
        finally:
            if address:
                self.device.release(address)

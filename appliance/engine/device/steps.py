"""Decoding steps on a device: a binding for each kind of step, recorded once a kind recurs.

Owns what is replayed. Nothing that was bound or recorded outlives `clear`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as Listing
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from appliance.engine.device.binding import StepBuffers
from appliance.errors import CapacityError

_RECORDED_AFTER = 3
"""Steps of one kind that are run as they are first: recording costs as much as many of them."""
_LENGTHS = (1024, 4096, 16_384, 65_536)
"""Bounds of the longest sequence that decoding is recorded for: kernels share out work by them."""


class _Kind(NamedTuple):
    """Of steps that are computed alike: sequences, tokens of each, bound of the longest."""

    batch: int
    width: int
    bound: int


class Binding(Protocol):
    """Runs of a graph over some slots, as of a `DeviceBinding`."""

    def aim(self, width: int, total: int, result: int, rows: int = 1) -> None: ...
    def record(self, number: int) -> None: ...
    def run(self) -> None: ...


class Steps:
    """Appends tokens to the sequences in the first slots.

    Args:
        bind: binds the graph over the first so many slots.
        buffers: what a step reads and writes.
        capacity: positions of a slot.
        restored: puts the running states of so many slots back; None: there are none.
        record: steps of one token each are recorded and replayed.
        record_drafts: so are those of several.

    Attributes:
        recorded: how many kinds are replayed.
    """

    def __init__(
        self,
        bind: Callable[[int], Binding],
        buffers: StepBuffers,
        capacity: int,
        restored: Callable[[int], AbstractContextManager[None]] | None,
        *,
        record: bool,
        record_drafts: bool,
    ) -> None:
        self._bind, self._buffers = bind, buffers
        self._capacity, self._restored = capacity, restored
        self._record, self._record_drafts = record, record_drafts
        self._bound: dict[_Kind, Binding] = {}
        self._ran: Counter[_Kind] = Counter()
        self.recorded = 0

    def run(self, starts: Listing[int], tokens: Listing[Listing[int]]) -> None:
        """Compute `tokens[i]` from position `starts[i]` on in slot i; each gives a result."""
        batch, width = len(tokens), len(tokens[0])
        longest = max(starts) + width
        bound = min([self._capacity, *(length for length in _LENGTHS if length >= longest)])
        kind = _Kind(batch, width, bound)
        binding = self._bound.get(kind)
        if binding is None:
            binding = self._bound[kind] = self._bind(batch)
            binding.aim(width, bound, 0, rows=width)
        self._ran[kind] += 1
        self._buffers.fill(tokens, starts, rows=width)
        replays = self._record if width == 1 else self._record_drafts
        if replays and self._ran[kind] == _RECORDED_AFTER:
            self._record_step(binding, batch)
        binding.run()

    def clear(self) -> None:
        """Addresses have changed."""
        self._bound.clear()
        self._ran.clear()

    def _record_step(self, binding: Binding, batch: int) -> None:
        """Record what the next runs of `binding` replay.

        A run that records computes more than once. Keys and values are the same each time; running
        states would have read their token twice, so they are put back, and the step is replayed.
        Where that finds no room, nothing is recorded.
        """
        number = self.recorded + 1
        if self._restored is None:
            binding.record(number)
        else:
            try:
                with self._restored(batch):
                    binding.record(number)
                    binding.run()
            except CapacityError:
                return
        self.recorded = number

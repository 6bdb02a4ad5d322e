"""Whose sequences are in the engine, call by call, and which calls have to leave it.

Owns the ways from a call to its sequences and back, and the deadlines. Refuses to know what a
sequence computes; who holds the engine's lock calls it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as Listing

from appliance.engine.output import FinishReason
from appliance.engine.running import Running
from appliance.scheduler import Sequence


class Roster(Mapping[Sequence, Running]):
    """The sequences of all calls, running and waiting."""

    def __init__(self) -> None:
        self._sequences: dict[Sequence, Running] = {}
        self._calls: dict[int, list[Running]] = {}
        self._cancelled: set[int] = set()
        self._deadlines: list[tuple[float, int]] = []
        """A heap; calls that have ended stay in it until their time comes."""

    def __getitem__(self, sequence: Sequence) -> Running:
        return self._sequences[sequence]

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)

    def __len__(self) -> int:
        return len(self._sequences)

    @property
    def alone(self) -> bool:
        """One sequence has the model to itself."""
        return len(self._sequences) == 1

    def add(self, call: int, group: Listing[Running], deadline: float | None) -> None:
        """The sequences of a new call, which ends at `deadline`, whatever it has by then."""
        self._sequences |= {running.sequence: running for running in group}
        self._calls[call] = list(group)
        if deadline is not None:
            heapq.heappush(self._deadlines, (deadline, call))

    def remove(self, running: Running) -> None:
        del self._sequences[running.sequence]
        group = self._calls[running.call]
        group.remove(running)
        if not group:
            del self._calls[running.call]

    def cancel(self, call: int) -> None:
        """Let `call` be among the next that leave; one that is not known has left already."""
        if call in self._calls:
            self._cancelled.add(call)

    def leaving(self, now: float) -> Iterable[tuple[Running, FinishReason]]:
        """Those of calls that were cancelled or are over time; whoever asks removes them."""
        cancelled, self._cancelled = self._cancelled, set()
        for call in cancelled:
            yield from self._all(call, FinishReason.CANCELLED)
        while self._deadlines and self._deadlines[0][0] <= now:
            yield from self._all(heapq.heappop(self._deadlines)[1], FinishReason.DEADLINE)

    def check_integrity(self) -> None:
        """Every sequence belongs to one call, and every call has some."""
        assert all(self._calls.values()), "a call without sequences"
        groups = [running for group in self._calls.values() for running in group]
        assert len(groups) == len(self._sequences)
        assert all(self._sequences[running.sequence] is running for running in groups)

    def _all(self, call: int, reason: FinishReason) -> Iterable[tuple[Running, FinishReason]]:
        for running in tuple(self._calls.get(call, ())):
            yield running, reason

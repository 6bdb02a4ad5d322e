"""Which requests are admitted and not yet ended, as the log tells it.

Owns the pairing of REQ and RES. Memory grows with the requests in flight, not with the log.
"""

from __future__ import annotations

from collections.abc import Iterator

from appliance.audit.event import Event, Request, Response


class OpenRequests:
    """Feed it the records in order."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[int, Request]] = {}

    def observe(self, seq: int, event: Event) -> None:
        if isinstance(event, Request):
            self._open[event.request_id] = (seq, event)
        elif isinstance(event, Response):
            self._open.pop(event.request_id, None)

    def oldest(self, size: int) -> int:
        """Number of the oldest open REQ; `size` if there is none."""
        return min((seq for seq, _ in self._open.values()), default=size)

    def __iter__(self) -> Iterator[Request]:
        return iter([request for _, request in self._open.values()])

    def __len__(self) -> int:
        return len(self._open)

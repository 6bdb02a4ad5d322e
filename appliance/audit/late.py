"""What is to be made up for when the log works again.

A record that was refused may be in the log all the same: a failed flush leaves that open until the
journal was read from the disk again. Then there are, of what was refused,

    a REQ that is in the log     nobody computed anything for it: it is closed as refused
    a RES, its REQ still open    it is recorded now
    a RES, its REQ closed        it had reached the disk

Owns these lists. Refuses to know how records are written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable

from appliance.audit.event import Event, Request, Response, response_to
from appliance.errors import AuditUnavailableError

Told = asyncio.Future[int | None]
"""Whom the number of a record is told; None if it was in the log before."""
REFUSED_STATUS = 503


class Late:
    """Of one writer. Not thread-safe: its lock is held."""

    def __init__(self) -> None:
        self._responses: list[tuple[Response, Told]] = []
        self._doubtful: list[Request] = []

    def __bool__(self) -> bool:
        return bool(self._responses or self._doubtful)

    def add(self, response: Response, told: Told) -> None:
        """A RES whose request ended while nothing could be recorded."""
        self._responses.append((response, told))

    def doubt(self, refused: Iterable[Event]) -> None:
        """Events of a batch that failed."""
        self._doubtful += [event for event in refused if isinstance(event, Request)]

    def take(self) -> Late:
        """All of it; nothing is left here."""
        taken = Late()
        taken._responses, self._responses = self._responses, []
        taken._doubtful, self._doubtful = self._doubtful, []
        return taken

    def missing(self, open_requests: Collection[Request]) -> list[tuple[Event, Told | None]]:
        """What is to be recorded, where `open_requests` have no RES."""
        still = {request.request_id: request for request in open_requests}
        refused = [still[r.request_id] for r in self._doubtful if r.request_id in still]
        return [
            *(
                (response, told)
                for response, told in self._responses
                if response.request_id in still
            ),
            *((_refusal(request), None) for request in refused),
        ]

    def told(self, open_requests: Collection[Request] = ()) -> list[Told]:
        """Who waits for a RES whose request is not among `open_requests`."""
        still = {request.request_id for request in open_requests}
        return [told for response, told in self._responses if response.request_id not in still]


def _refusal(request: Request) -> Response:
    return response_to(request, "error", status=REFUSED_STATUS, code=AuditUnavailableError.code)

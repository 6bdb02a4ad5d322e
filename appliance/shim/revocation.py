"""Cutting what runs for a key that is no longer valid.

A revocation is a commit in the keys' database by another process. New requests see it because
each looks at it; this looks four times a second whether a key that something runs for was
revoked, or its project archived, and ends that work like a lost caller's: the engine stops, the
bill is exact, the caller gets an error event. It looks only while something runs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from appliance.access import KeyInfo, KeyStore
from appliance.errors import RequestError, StorageError

SECONDS = 0.25
"""Between two looks; a running stream is cut within one and the time the engine takes to stop."""
_log = logging.getLogger(__name__)
_End = Callable[[Exception], None]


def key_revoked() -> RequestError:
    """What a caller is told whose key stopped while its request ran."""
    return RequestError(
        "the API key was revoked", hint="ask the operator for another", code="key_revoked"
    )


class Revocations:
    """Who is told when a key stops."""

    def __init__(self, keys: KeyStore, seconds: float = SECONDS) -> None:
        self._keys = keys
        self._seconds = seconds
        self._running: dict[str, set[_End]] = {}
        self._look: asyncio.Task[None] | None = None

    @contextmanager
    def watching(self, key: KeyInfo, end: _End) -> Iterator[None]:
        """While inside, call `end` with the error to tell if `key` stops.

        Enter it before the request is admitted: a revocation that the admission's own check
        does not see is then seen here.
        """
        self._running.setdefault(key.id, set()).add(end)
        if self._look is None:
            self._look = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            ends = self._running[key.id]
            ends.discard(end)
            if not ends:
                del self._running[key.id]

    async def close(self) -> None:
        """Stop looking."""
        look = self._look
        if look is not None:
            look.cancel()
            with suppress(asyncio.CancelledError):
                await look

    async def _watch(self) -> None:
        try:
            while self._running:
                # What is over before the first look was checked when it was admitted.
                await asyncio.sleep(self._seconds)
                self._cut(self._stopped())
        finally:
            self._look = None

    def _stopped(self) -> set[str]:
        try:
            return self._keys.revoked(tuple(self._running))
        except StorageError as error:
            _log.error("revocations were not looked for: %s", error.message)
            return set()

    def _cut(self, key_ids: set[str]) -> None:
        for key_id in key_ids:
            for end in tuple(self._running[key_id]):
                end(key_revoked())

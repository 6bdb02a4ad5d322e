"""Calls under way, and the exact counts of those that ended a while ago.

Owns the way of a step's outputs to the call that waits for them, and what Settle answers. Lives
on the event loop; nothing here is thread-safe.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator

from appliance.engine.embedding_engine import Embedded, EmbeddingFailed
from appliance.engine.encoder_runner import Vectors
from appliance.engine.output import Delta, Finished, FinishReason
from appliance.errors import ConflictError, NotFoundError, UnavailableError

RETENTION_SECONDS = 120.0
"""How long the counts of an ended call are kept; the protocol promises 60."""

MOST_TOGETHER = 64
"""Events that are handed on at once; bounds the size of a message."""

_numbers = itertools.count(1)


class Call:
    """One Generate call: its events, and how its sequences ended."""

    def __init__(self, request_id: str, sequences: int) -> None:
        self.number = next(_numbers)
        self.request_id = request_id
        self.finished: list[Finished] = []
        self._sequences = sequences
        self._events: deque[Delta | Finished] = deque()
        self._arrived = asyncio.Event()
        self._ended = asyncio.Event()
        self._refused = False

    @property
    def ended(self) -> bool:
        """Nothing of the call runs any more."""
        return self._ended.is_set()

    def deliver(self, event: Delta | Finished) -> None:
        if isinstance(event, Finished):
            self.finished.append(event)
            if len(self.finished) == self._sequences:
                self._ended.set()
        self._events.append(event)
        self._arrived.set()

    async def events(self) -> AsyncIterator[list[Delta | Finished]]:
        """Every event, up to the end of the last sequence: each time those that are there.

        One step may bring several, of several sequences or of one whose tokens were guessed; so
        may the steps that ended while a reader was slow to take what came before.
        """
        finished = 0
        while finished < self._sequences:
            await self._arrived.wait()
            count = min(len(self._events), MOST_TOGETHER)
            events = [self._events.popleft() for _ in range(count)]
            if not self._events:
                self._arrived.clear()
            finished += sum(isinstance(event, Finished) for event in events)
            yield events

    async def settled(self) -> list[Finished]:
        """How each sequence ended, by index, once nothing of the call runs any more.

        Raises NotFoundError if it was refused meanwhile.
        """
        await self._ended.wait()
        if self._refused:
            raise _not_known()
        return sorted(self.finished, key=lambda finished: finished.index)

    def refuse(self) -> None:
        """Nothing of the call was computed, nor will be."""
        self._refused = True
        self._ended.set()


class EmbedCall:
    """One Embed or Score call: waits for all of its results."""

    def __init__(self, request_id: str) -> None:
        self.number = next(_numbers)
        self.request_id = request_id
        self._result: asyncio.Future[Embedded | EmbeddingFailed] = (
            asyncio.get_running_loop().create_future()
        )
        self._refused = False

    @property
    def ended(self) -> bool:
        return self._result.done()

    def deliver(self, event: Embedded | EmbeddingFailed) -> None:
        if not self._result.done():
            self._result.set_result(event)

    async def settled(self) -> list[Finished]:
        """What was computed, as one sequence, once nothing of the call runs any more.

        Raises NotFoundError if it was refused meanwhile.
        """
        event = await asyncio.shield(self._result)
        if self._refused:
            raise _not_known()
        reason = FinishReason.STOP if isinstance(event, Embedded) else FinishReason.CANCELLED
        return [Finished(0, reason, event.tokens, 0, 0)]

    def refuse(self) -> None:
        """Nothing of the call was computed, nor will be."""
        self._refused = True
        self.deliver(EmbeddingFailed(cancelled=True, tokens=0))

    async def results(self) -> Vectors:
        """[texts, ...]. Raises UnavailableError if the call was dropped."""
        # Shielded: a cancelled handler must not cancel the future that the engine delivers to.
        event = await asyncio.shield(self._result)
        if isinstance(event, EmbeddingFailed):
            raise UnavailableError(
                "the engine is stopping" if event.cancelled else "the engine failed in a step",
                hint="try again",
            )
        return event.vectors


class CallLedger:
    """Calls by request id, from their beginning until some time after their end."""

    def __init__(self) -> None:
        self._calls: dict[str, Call | EmbedCall] = {}

    def open(self, request_id: str, sequences: int) -> Call:
        """Begin a call. Raises ConflictError if this id was used a moment ago."""
        call = Call(request_id, sequences)
        self._add(call)
        return call

    def open_whole(self, request_id: str) -> EmbedCall:
        """Begin a call that has one answer. Raises ConflictError as `open` does."""
        call = EmbedCall(request_id)
        self._add(call)
        return call

    def _add(self, call: Call | EmbedCall) -> None:
        if not call.request_id:
            return
        if call.request_id in self._calls:
            raise ConflictError("this request_id is in use", hint="give each call an id of its own")
        self._calls[call.request_id] = call

    def close(self, call: Call | EmbedCall) -> None:
        """The call's handler is gone; forget the call later."""
        loop = asyncio.get_running_loop()
        loop.call_later(RETENTION_SECONDS, self._calls.pop, call.request_id, None)

    def forget(self, call: Call | EmbedCall) -> None:
        """The call was refused: nothing ever ran."""
        self._calls.pop(call.request_id, None)
        call.refuse()

    def get(self, request_id: str) -> Call | EmbedCall:
        """Raises NotFoundError."""
        try:
            return self._calls[request_id]
        except KeyError:
            raise _not_known() from None


def _not_known() -> NotFoundError:
    return NotFoundError("no such call is known", code="call_not_found")

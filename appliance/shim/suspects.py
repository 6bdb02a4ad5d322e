"""Requests that ended the engine.

A request that crashes or hangs the engine would do it again at every retry, and take everybody
else's answers with it. Owns the memory of which requests were running when the engine went away.
One of those alone is at fault, so they come back one at a time: what then runs through is cleared,
and what ends the engine a second time is refused for a while. One end counts once, however often
the same request was running at it. What was merely refused, or found no engine, is neither cleared
nor blamed. Refuses to keep content: a request is known by a hash.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from appliance.errors import RequestError
from appliance.pb import engine_v1_pb2 as pb

DEATHS = 2
"""So often, and a request is refused."""
REMEMBERED_SECONDS = 3600.0
MOST = 1024
"""Requests remembered at once; the oldest are forgotten."""

EngineRequest = pb.GenerateRequest | pb.EmbedRequest | pb.ScoreRequest


class Suspicion:
    """What is noted about one request that runs."""

    engine_ended = False
    """Set it when the engine went away under the request."""


class Suspects:
    """One for the whole process. Lives on the event loop."""

    def __init__(
        self,
        engine_answers: Callable[[], Awaitable[bool]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`engine_answers` is asked, after the engine went away, whether it is there again."""
        self._engine_answers = engine_answers
        self._engine_gone = False
        self._clock = clock
        self._seen: OrderedDict[bytes, tuple[int, float]] = OrderedDict()
        self._alone = asyncio.Lock()

    @asynccontextmanager
    async def watching(self, requests: Sequence[EngineRequest]) -> AsyncIterator[Suspicion]:
        """Run `requests` within. Suspects wait for each other.

        Raises RequestError with code `request_ends_engine` for what ended the engine twice.
        """
        # Nearly always nothing is suspected, and then no request is worth a hash.
        mark = _mark(requests) if self._seen else b""
        self._refuse(mark)
        async with AsyncExitStack() as stack:
            if self._count(mark):
                await stack.enter_async_context(self._alone)
                self._refuse(mark)  # the same request may have run before this one
            there = await self._engine_is_there()
            suspicion, began = Suspicion(), self._clock()
            try:
                yield suspicion
                if self._seen and not suspicion.engine_ended:
                    self._seen.pop(mark or _mark(requests), None)
            finally:
                if suspicion.engine_ended and there:
                    self._blame(mark or _mark(requests), began)

    async def _engine_is_there(self) -> bool:
        """Nothing ends an engine that is gone already, though the connection may not know yet."""
        if self._engine_gone:
            self._engine_gone = not await self._engine_answers()
        return not self._engine_gone

    def _refuse(self, mark: bytes) -> None:
        if self._count(mark) >= DEATHS:
            raise RequestError(
                "this request ended the engine twice and is not run again for now",
                hint="change it, or tell the operator",
                code="request_ends_engine",
            )

    def _count(self, mark: bytes) -> int:
        count, at = self._seen.get(mark, (0, 0.0))
        return count if self._clock() - at < REMEMBERED_SECONDS else 0

    def _blame(self, mark: bytes, began: float) -> None:
        """Note that the engine ended under what had begun at `began`."""
        self._engine_gone = True
        if self._count(mark) and self._seen[mark][1] > began:
            return  # the same end of the engine, noted for the same request sent twice at once
        self._seen[mark] = (self._count(mark) + 1, self._clock())
        self._seen.move_to_end(mark)
        while len(self._seen) > MOST:
            self._seen.popitem(last=False)


def _mark(requests: Sequence[EngineRequest]) -> bytes:
    """The same for the same work, whoever asks for it and when."""
    digest = hashlib.sha256()
    for request in requests:
        work = copy.deepcopy(request)
        work.request_id = ""
        if isinstance(work, pb.GenerateRequest):
            work.caller, work.cache_namespace = "", ""
            work.deadline_ms = work.priority = 0
            work.ClearField("share")
        data = work.SerializeToString(deterministic=True)
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()

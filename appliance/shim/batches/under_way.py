"""The lines of one batch that run: as many at once as may, and again where an error passes.

A result is kept before its RES and counts after it (batch_store.py), so a line that was billed for
a result is never run again, whenever the process is killed. An error that passes is no result: the
line is tried again, after the wait that the error names. Where the disk fills no line begins, and
those that run may end. Refuses to know what becomes of the batch.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec

from appliance.audit.event import Tokens
from appliance.errors import ApplianceError, CapacityError
from appliance.shim.batches.batch_store import FailedLine, StoredBatch
from appliance.shim.batches.file_store import FULL
from appliance.shim.batches.input_file import TextLine
from appliance.shim.batches.line_caller import LineAnswer
from appliance.shim.batches.office import Office
from appliance.shim.batches.pauses import Pauses
from appliance.shim.exchange import Exchange
from appliance.shim.wire.batches import LineResponse, OutputLine, one_line

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Try:
    """A line, and how often it was tried in vain."""

    line: TextLine
    tries: int = 0


class UnderWay:
    """Lines of `batch`, which are requests to `endpoint`; `slots` of the model run at once."""

    def __init__(
        self, office: Office, batch: StoredBatch, endpoint: str, slots: int, pauses: Pauses
    ) -> None:
        self._office = office
        self._batch = batch
        self._endpoint = endpoint
        self._slots = slots
        self._pauses = pauses
        self._tasks: set[asyncio.Task[None]] = set()
        self._again: deque[_Try] = deque()
        self._hang_up = asyncio.Event()
        self._not_before = 0.0
        self._full: CapacityError | None = None
        """A result could not be kept: the disk has no room."""

    async def run(self, lines: AsyncIterator[TextLine]) -> None:
        """Run `lines` until each has a result or an error that stays.

        Raises CapacityError if the disk has no room, UnavailableError while the endpoint is being
        stopped. If it is cancelled, what runs is stopped like a caller hanging up.
        """
        try:
            async for line in lines:
                await self._launch(_Try(line))
                while self._again:
                    await self._launch(self._again.popleft())
            while self._tasks or self._again:
                if self._again:
                    await self._launch(self._again.popleft())
                else:
                    await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        except ApplianceError:
            # The endpoint is being stopped, or the disk is full: what runs may end.
            await self._emptied()
            raise
        finally:
            self._hang_up.set()
            await self._emptied()
        if self._full is not None:
            raise self._full

    async def _launch(self, attempt: _Try) -> None:
        """Run a line as soon as it may. Raises CapacityError if the disk has no room."""
        while len(self._tasks) >= self._most():
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(self._not_before - asyncio.get_running_loop().time())
        if self._full is not None:
            raise self._full
        await self._office.files.check_room()
        await self._office.gate.enter(self._slots)
        task = asyncio.create_task(self._try(attempt))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _most(self) -> int:
        """Lines at once: of a limit on parallel requests, half is left to others."""
        key = self._office.caller.holder(self._batch.key_id)
        limits = (key.limits.parallel_requests, key.project_limits.parallel_requests)
        return max(1, min((limit // 2 for limit in limits if limit is not None), default=1 << 30))

    async def _emptied(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _try(self, attempt: _Try) -> None:
        try:
            if attempt.tries:
                await self._office.batches.discard(self._batch, attempt.line.number)
            await self._call(attempt)
        except Exception as error:
            what = error.code if isinstance(error, ApplianceError) else type(error).__name__
            _log.error("%s, line %d: %s", self._batch.id, attempt.line.number, what)
            self._try_again(attempt, 0.0)
        finally:
            self._office.gate.leave()

    async def _call(self, attempt: _Try) -> None:
        office, number = self._office, attempt.line.number
        request = attempt.line.request

        async def keep(document: msgspec.Struct, tokens: Tokens) -> None:
            body = msgspec.Raw(msgspec.json.encode(document))
            text = _line(exchange, request.custom_id, LineResponse(200, exchange.request_id, body))
            with self._noting_a_full_disk():
                await office.batches.keep(self._batch, number, exchange.request_id, text, tokens)

        key = office.caller.holder(self._batch.key_id)
        exchange = office.caller.exchange(self._endpoint, key, keep)
        answer = await office.caller.call(exchange, bytes(request.body), self._hang_up)
        if exchange.outcome == "ok":
            office.batches.settle(self._batch, number)
            office.metrics.batch_line("completed")
            self._pauses.went_well()
            return
        await office.batches.discard(self._batch, number)
        if answer is not None and answer.code != FULL:
            await self._failed(attempt, exchange, request.custom_id, answer)

    async def _failed(
        self, attempt: _Try, exchange: Exchange, custom_id: str, answer: LineAnswer
    ) -> None:
        if answer.passes(attempt.tries + 1):
            self._office.metrics.batch_line("tried_again")
            self._try_again(attempt, answer.wait)
            return
        body = msgspec.Raw(answer.body)
        text = _line(exchange, custom_id, LineResponse(answer.status, exchange.request_id, body))
        error = FailedLine(attempt.line.number, text, exchange.request_id)
        with self._noting_a_full_disk():
            await self._office.batches.fail(self._batch, [error], ran=True)
        self._office.metrics.batch_line("failed")
        self._pauses.went_well()

    @contextmanager
    def _noting_a_full_disk(self) -> Iterator[None]:
        """No line begins any more once what one ended with could not be written."""
        try:
            yield
        except CapacityError as error:
            self._full = error
            raise

    def _try_again(self, attempt: _Try, wait: float) -> None:
        self._again.append(_Try(attempt.line, attempt.tries + 1))
        now = asyncio.get_running_loop().time()
        if now >= self._not_before:  # the others that fail together with it lengthen nothing
            wait = max(wait, self._pauses.next())
        self._not_before = max(self._not_before, now + wait)


def _line(exchange: Exchange, custom_id: str, response: LineResponse) -> bytes:
    name = f"batch_req_{exchange.request_id.removeprefix('req_')}"
    return one_line(OutputLine(name, custom_id, response, None))

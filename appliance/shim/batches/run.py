"""One batch on its way: validating, in_progress, finalizing, completed.

    validating -> failed                the input is no batch
    in_progress -> failed               the disk has no room for more results, or errors
    validating, in_progress -> expired  the window is over: what was not run is an error line
                            -> cancelling -> cancelled

Owns the order of things. A result is kept before its RES and counts after it (batch_store.py), so
a line that was billed for a result is never run again, whenever the process is killed. An error
that passes is no result: the line is tried again, after the wait that the error names, for as
long as the window is open. Cancelling and the window's end stop lines like a caller hanging up.
Where the disk fills no line begins, those that run may end, and what was done is kept; so it is
where the window is over and the disk has no room for an error line of each that did not run.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import msgspec

from appliance.audit.event import Tokens
from appliance.errors import ApplianceError, CapacityError, ConflictError, UnavailableError
from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.batches.batch_store import FailedLine, StoredBatch
from appliance.shim.batches.file_store import FULL
from appliance.shim.batches.input_file import Examination, TextLine, text_lines
from appliance.shim.batches.line_caller import LineAnswer
from appliance.shim.batches.office import Office
from appliance.shim.exchange import Exchange
from appliance.shim.serving import serving
from appliance.shim.wire.batches import (
    BatchErrorOut,
    BatchErrors,
    BatchObject,
    LineError,
    LineResponse,
    OutputLine,
    RequestCounts,
    one_line,
)

_log = logging.getLogger(__name__)
_OBJECT = msgspec.json.Decoder(BatchObject)
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0
"""Seconds between tries in vain; they double."""
_EMBEDDING_SLOTS = 4
"""For a model that has none: its calls wait for each other in the engine."""
_ENVELOPE_BYTES = 4096
"""Of a line, around the request in it."""
_EXPIRED_AT_ONCE = 500
"""Error lines that are written together: a batch may have 50,000."""
_EXPIRED = LineError(
    "batch_expired", "This request could not be executed before the completion window expired."
)


@dataclass(slots=True)
class _Try:
    """A line, and how often it was tried in vain."""

    line: TextLine
    tries: int = 0


class Run:
    """One batch that has not ended."""

    def __init__(self, office: Office, batch: StoredBatch) -> None:
        self._office = office
        self._batch = batch
        self._scope: asyncio.Timeout | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._again: deque[_Try] = deque()
        self._hang_up = asyncio.Event()
        self._slots = _EMBEDDING_SLOTS
        self._not_before = 0.0
        self._vain = 0
        self._full: CapacityError | None = None
        """A result could not be kept: the disk has no room."""
        self.object = _OBJECT.decode(batch.body)

    async def live(self) -> None:
        """Bring the batch to its end; returns earlier only if the endpoint is being stopped."""
        while True:
            try:
                await self._through()
            except ApplianceError as error:
                if error.code == "shutting_down":
                    return
                _log.error("%s: %s", self._batch.id, error.code)
            except Exception as error:
                _log.error("%s: %s", self._batch.id, type(error).__name__)
            else:
                return
            await asyncio.sleep(self._wait())

    async def cancel(self) -> None:
        """Begin to cancel it; harmless if that was done. Raises ConflictError near its end."""
        if self.object.status == "cancelling":
            return
        if self.object.status not in ("validating", "in_progress"):
            raise ConflictError(f"the batch is {self.object.status}")
        self.object.status = "cancelling"
        self.object.cancelling_at = _now()
        await self._save()
        if self._scope is not None and not self._scope.expired():
            self._scope.reschedule(asyncio.get_running_loop().time())

    async def _through(self) -> None:
        left = self.object.expires_at - time.time()
        try:
            async with asyncio.timeout(left) as self._scope:
                if self.object.status == "validating":
                    await self._validate()
                if self.object.status == "in_progress":
                    await self._run_lines()
        except TimeoutError:
            pass  # cancelled, or the window is over: the status says which
        except CapacityError as error:
            if error.code != FULL:
                raise
            if self.object.status == "in_progress":
                self._fail(error)
        finally:
            self._scope = None
        await self._end()

    async def _validate(self) -> None:
        models = await self._office.engine.models()
        served = {model.name for model in serving(models)}
        coming = {model.name for model in models if model.state == pb.MODEL_STATE_LOADING}
        key = self._office.caller.holder(self._batch.key_id)
        found = Examination(self.object.endpoint, key, served, coming)
        await found.read(self._lines())
        if self.object.status != "validating":
            return
        if found.errors:
            self.object.status = "failed"
            self.object.failed_at = _now()
            self.object.errors = BatchErrors(found.errors)
            return
        self.object.model = found.model
        self.object.request_counts = RequestCounts(found.total)
        self.object.status = "in_progress"
        self.object.in_progress_at = _now()
        await self._save()

    async def _run_lines(self) -> None:
        self._hang_up.clear()
        self._slots = await self._slots_now()
        try:
            async for line in self._to_do():
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
            self._again.clear()
        if self._full is not None:
            raise self._full
        if self.object.status == "in_progress":
            self.object.status = "finalizing"
            self.object.finalizing_at = _now()
            await self._save()

    def _fail(self, error: CapacityError) -> None:
        """Lines without a result stay without one; nobody was billed for them."""
        self.object.status = "failed"
        self.object.failed_at = _now()
        self.object.errors = BatchErrors([BatchErrorOut(error.code, error.message)])

    async def _slots_now(self) -> int:
        """Sequences that the model runs at once. Raises UnavailableError while it is away."""
        for model in serving(await self._office.engine.models()):
            if model.name == self.object.model:
                return model.max_sequences or _EMBEDDING_SLOTS
        raise UnavailableError("the model of the batch is not served now", code="model_loading")

    async def _to_do(self) -> AsyncIterator[TextLine]:
        """Lines without a result or an error."""
        done = await self._office.batches.done(self._batch.id)
        async for line in self._lines():
            if line.number not in done:
                yield line

    def _lines(self) -> AsyncIterator[TextLine]:
        most = self._office.max_body_bytes + _ENVELOPE_BYTES
        return text_lines(self._office.files.pieces(self._batch.input), most)

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
        exchange = office.caller.exchange(self.object.endpoint, key, keep)
        answer = await office.caller.call(exchange, bytes(request.body), self._hang_up)
        if exchange.outcome == "ok":
            office.batches.settle(self._batch, number)
            office.metrics.batch_line("completed")
            self._vain = 0
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
        self._vain = 0

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
            wait = max(wait, self._wait())
        self._not_before = max(self._not_before, now + wait)

    def _wait(self) -> float:
        """Seconds until the next try; longer each time that nothing goes well in between."""
        self._vain += 1
        return float(min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** min(self._vain - 1, 10)))

    async def _end(self) -> None:
        body = self.object
        match body.status:
            case "failed" | "completed" | "cancelled" | "expired":
                pass  # it could not be written before
            case "finalizing":
                body.status, body.completed_at = "completed", _now()
            case "cancelling":
                body.status, body.cancelled_at = "cancelled", _now()
            case _:
                await self._expire()
        asked = body.output_expires_after
        seconds = asked.seconds if asked is not None else self._office.file_seconds
        await self._office.batches.finish(self._batch, _now() + seconds, self._compose)

    def _compose(self, output: bool, errors: bool) -> bytes:
        self.object.output_file_id = self._batch.output if output else None
        self.object.error_file_id = self._batch.errors if errors else None
        return msgspec.json.encode(self.object)

    async def _expire(self) -> None:
        try:
            if self.object.status != "validating":
                await self._expire_lines()
        except CapacityError as error:
            self._fail(error)
        else:
            self.object.status, self.object.expired_at = "expired", _now()

    async def _expire_lines(self) -> None:
        """An error for each line that did not run. Raises CapacityError if there is no room."""
        errors: list[FailedLine] = []
        async for line in self._to_do():
            name = f"batch_req_{self._batch.id.removeprefix('batch_')}_{line.number}"
            text = OutputLine(name, line.request.custom_id, None, _EXPIRED)
            errors.append(FailedLine(line.number, one_line(text)))
            if len(errors) == _EXPIRED_AT_ONCE:
                await self._office.batches.fail(self._batch, errors, ran=False)
                errors = []
        if errors:
            await self._office.batches.fail(self._batch, errors, ran=False)

    async def _save(self) -> None:
        self._batch = replace(self._batch, body=msgspec.json.encode(self.object))
        await self._office.batches.update(self._batch)


def _line(exchange: Exchange, custom_id: str, response: LineResponse) -> bytes:
    name = f"batch_req_{exchange.request_id.removeprefix('req_')}"
    return one_line(OutputLine(name, custom_id, response, None))


def _now() -> int:
    return int(time.time())

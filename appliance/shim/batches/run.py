"""One batch on its way: validating, in_progress, finalizing, completed.

    validating -> failed                the input is no batch
    in_progress -> failed               the disk has no room for more results, or errors
    validating, in_progress -> expired  the window is over: what was not run is an error line
                            -> cancelling -> cancelled

Owns the order of things; how lines run is in under_way.py. They are tried for as long as the window
is open: cancelling and the window's end stop them like a caller hanging up. Where the disk fills,
or has no room for an error line of each that did not run, what was done is kept.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import msgspec

from appliance.errors import ApplianceError, CapacityError, ConflictError, UnavailableError
from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.batches.batch_store import FailedLine, StoredBatch
from appliance.shim.batches.file_store import FULL
from appliance.shim.batches.input_file import Examination, TextLine, text_lines
from appliance.shim.batches.office import Office
from appliance.shim.batches.pauses import Pauses
from appliance.shim.batches.under_way import UnderWay
from appliance.shim.serving import serving
from appliance.shim.wire.batches import (
    BatchErrorOut,
    BatchErrors,
    BatchObject,
    LineError,
    OutputLine,
    RequestCounts,
    one_line,
)

_log = logging.getLogger(__name__)
_OBJECT = msgspec.json.Decoder(BatchObject)
_EMBEDDING_SLOTS = 4
"""For a model that has none: its calls wait for each other in the engine."""
_ENVELOPE_BYTES = 4096
"""Of a line, around the request in it."""
_EXPIRED_AT_ONCE = 500
"""Error lines that are written together: a batch may have 50,000."""
_EXPIRED = LineError(
    "batch_expired", "This request could not be executed before the completion window expired."
)


class Run:
    """One batch that has not ended."""

    def __init__(self, office: Office, batch: StoredBatch) -> None:
        self._office = office
        self._batch = batch
        self._scope: asyncio.Timeout | None = None
        self._pauses = Pauses()
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
            await asyncio.sleep(self._pauses.next())

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
        slots = await self._slots_now()
        lines = UnderWay(self._office, self._batch, self.object.endpoint, slots, self._pauses)
        await lines.run(self._to_do())
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


def _now() -> int:
    return int(time.time())

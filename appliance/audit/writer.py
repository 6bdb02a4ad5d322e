"""The audit log for asyncio: group commit in its own thread, fail closed, resume by itself.

Owns two threads. One takes what was recorded while the flush before ran, at most
`batch_entries`, and makes it durable with one fdatasync; the other publishes a checkpoint
every `checkpoint_seconds` while there is something to publish, and looks after signing key and
disk. Refuses to acknowledge anything while either of them cannot do its work. On a full disk the
ballast is given up (room.py): from then on only what closes or explains is recorded, until there
is room for a ballast again.
What was refused is made up for (late.py).
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Self

from appliance.audit.event import Event, Heartbeat, Opening, Response
from appliance.audit.late import Late, Told
from appliance.audit.log import AuditLog
from appliance.audit.room import Room, is_full
from appliance.config import AuditSettings
from appliance.errors import ApplianceError, AuditUnavailableError

FIRST_RETRY_SECONDS = 0.1
LAST_RETRY_SECONDS = 2.0

_logger = logging.getLogger(__name__)
_Waiting = tuple[Event, Told | None]


class AuditWriter:
    """`async with AuditWriter(log, settings) as writer: seq = await writer.record(event)`.

    The log belongs to the writer between `start` and `close`; its owner closes it after that.
    """

    def __init__(self, log: AuditLog, settings: AuditSettings | None = None) -> None:
        self._log = log
        self._settings = settings or AuditSettings()
        self._queue: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._drained = threading.Event()
        self._failures: dict[str, ApplianceError] = {}
        self._room = Room(log.directory, self._settings.ballast_bytes)
        self._looking_after_room = threading.Lock()
        """Held while the ballast and `_closing_only` change: both threads do that."""
        self._closing_only = False
        self._given_up = False
        """The ballast was given up since the appender last looked."""
        self._late = Late()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._appender = threading.Thread(target=self._append_forever, name="audit-append")
        self._publisher = threading.Thread(target=self._publish_forever, name="audit-publish")

    async def start(self) -> None:
        """Accept records from now on."""
        self._loop = asyncio.get_running_loop()
        self._look_after_room()
        self._appender.start()
        self._publisher.start()

    async def record(self, event: Event) -> int:
        """Append `event`; returns its number once it is durable.

        Events of one event loop keep the order of the calls. If the caller is cancelled, the
        event may be recorded all the same. Raises AuditUnavailableError, at once while the log
        is down, or the disk full and `event` an `Opening`; then the event is not in the log.
        """
        assert self._loop is not None, "the writer was started"
        future: Told = self._loop.create_future()
        with self._changed:
            refusal = self._refusal(event)
            if refusal is not None:
                raise refusal
            if self._closing:
                raise _closing()
            self._queue.append((event, future))
            self._changed.notify()
        seq = await future
        assert seq is not None, "what is recorded in time has a number"
        return seq

    async def record_late(self, response: Response) -> int | None:
        """Append a RES that was refused, when the log works again; returns its number.

        None if its request is found closed, since what was refused had reached the disk. Raises
        AuditUnavailableError when the writer closes before: the next start closes the request.
        """
        assert self._loop is not None, "the writer was started"
        while True:
            future: Told = self._loop.create_future()
            with self._changed:
                if self._closing:
                    raise _closing()
                self._late.add(response, future)
            try:
                return await future
            except AuditUnavailableError:
                continue

    @property
    def failure(self) -> ApplianceError | None:
        """Why records are refused now; None if they are accepted."""
        return next(iter(list(self._failures.values())), None)

    @property
    def available(self) -> bool:
        """Whether records are accepted now."""
        return self.failure is None and not self._closing and not self._closing_only

    async def close(self) -> None:
        """Write what waits, publish a last checkpoint, end the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        await asyncio.to_thread(self._appender.join)
        self._drained.set()
        await asyncio.to_thread(self._publisher.join)
        with self._changed:  # what was made up for behind the appender's end
            left, self._queue = self._queue, deque()
        _reject([future for _, future in left if future is not None], _closing())

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def _refusal(self, event: Event) -> AuditUnavailableError | None:
        """Why `event` is refused now."""
        if self._closing_only:
            return _full() if isinstance(event, Opening) else None
        return _unavailable(self.failure) if self.failure is not None else None

    def _append_forever(self) -> None:
        while batch := self._take():
            done = self._may_append() and self._attempt("append", partial(self._append, batch))
            if not done:
                self._refuse(self._keep_closing(batch))
                self._resume_appending()

    def _may_append(self) -> bool:
        """With the ballast given up, what closes is kept even if it cannot be signed yet."""
        return self.failure is None or (self._closing_only and "append" not in self._failures)

    def _keep_closing(self, batch: Sequence[_Waiting]) -> Sequence[_Waiting]:
        """Try what closes once more if the ballast made room for it; returns the rest."""
        if not self._given_up:
            return batch
        self._given_up = False
        with self._changed:
            again = [waiting for waiting in batch if not isinstance(waiting[0], Opening)]
            self._queue.extendleft(reversed(again))
        return [waiting for waiting in batch if isinstance(waiting[0], Opening)]

    def _take(self) -> list[_Waiting]:
        """The next batch: waits for its first record, then shortly for more.

        A heartbeat if nothing came for long; empty at the end.
        """
        settings = self._settings
        with self._changed:
            while not self._changed.wait_for(self._has_work, timeout=settings.heartbeat_seconds):
                if not self._closing_only:
                    return [(Heartbeat(), None)]
            if settings.batch_milliseconds:
                self._changed.wait_for(self._is_full, timeout=settings.batch_milliseconds / 1000)
            count = min(len(self._queue), settings.batch_entries)
            return [self._queue.popleft() for _ in range(count)]

    def _has_work(self) -> bool:
        return bool(self._queue) or self._closing

    def _is_full(self) -> bool:
        return len(self._queue) >= self._settings.batch_entries or self._closing

    def _append(self, batch: Sequence[_Waiting]) -> None:
        seqs = self._log.append([event for event, _ in batch])
        answers = [(f, seq) for (_, f), seq in zip(batch, seqs, strict=True) if f is not None]
        self._in_loop(lambda: _answer(answers))

    def _refuse(self, batch: Sequence[_Waiting]) -> None:
        with self._changed:
            self._late.doubt(event for event, _ in batch)
        failure = self.failure or AuditUnavailableError("the audit log was closed for a moment")
        futures = [future for _, future in batch if future is not None]
        self._in_loop(lambda: _reject(futures, failure))

    def _resume_appending(self) -> None:
        """Return when the journal was verified from the disk, or at the end."""
        delay = FIRST_RETRY_SECONDS
        while "append" in self._failures:
            with self._changed:
                if self._changed.wait_for(lambda: self._closing, timeout=delay):
                    return
            if not self._attempt("append", self._log.reopen):
                with self._changed:
                    waiting = list(self._queue)
                    self._queue.clear()
                self._refuse(waiting)
            delay = min(2 * delay, LAST_RETRY_SECONDS)

    def _publish_forever(self) -> None:
        delay = self._settings.checkpoint_seconds
        while not self._drained.wait(delay):
            if self._publish():
                delay = self._settings.checkpoint_seconds
                self._make_up()
                self._roll_when_due()
                self._look_after_room()
            else:
                delay = min(2 * max(delay, FIRST_RETRY_SECONDS), LAST_RETRY_SECONDS)
        self._publish()
        with self._changed:
            waiting = self._late.take().told()
        self._in_loop(lambda: _reject(waiting, _closing()))

    def _publish(self) -> bool:
        if self._log.size != self._log.published.size or "publish" in self._failures:
            return self._attempt("publish", self._log.checkpoint)
        return True

    def _make_up(self) -> None:
        """Close what is open and has nobody any more to close it; all that is durable is
        published."""
        with self._changed:
            if self.failure is not None or not self._late:
                return
            late = self._late.take()
        still = self._log.open_requests()
        with self._changed:
            self._queue.extend(late.missing(still))
            self._changed.notify()
        self._in_loop(lambda: _answer([(told, None) for told in late.told(still)]))

    def _look_after_room(self) -> None:
        with self._looking_after_room:
            kept = self._room.keep()
            if kept == self._closing_only:
                self._closing_only = not kept
                said = "there is room again" if kept else "no room is left"
                _logger.warning("audit log: %s", said)
            self._room.warn()

    def _give_up_room(self) -> None:
        with self._looking_after_room:
            if self._room.give_up():
                self._closing_only = self._given_up = True

    def _roll_when_due(self) -> None:
        """Begin the next epoch if it is time. What fails is tried again; meanwhile the old key
        goes on signing, or the log stays closed until the roll is finished."""
        try:
            if self._log.roll_is_due():
                self._log.roll()
        except ApplianceError as error:
            _logger.error("audit log: the signing key was not rolled: %s", error.message)

    def _attempt(self, part: str, action: Callable[[], object]) -> bool:
        """Do `action`; keep or clear the failure of `part` accordingly."""
        try:
            action()
        except ApplianceError as error:
            if part not in self._failures:
                _logger.error("audit log: %s failed: %s", part, error.message)
            self._failures[part] = error
            if is_full(error):
                self._give_up_room()
            return False
        except Exception:  # a bug of ours: nobody may wait for ever because of it
            _logger.exception("audit log: %s failed", part)
            self._failures[part] = AuditUnavailableError("the audit log failed internally")
            return False
        if self._failures.pop(part, None) is not None:
            _logger.warning("audit log: %s works again", part)
        return True

    def _in_loop(self, callback: Callable[[], None]) -> None:
        assert self._loop is not None, "the writer was started"
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(callback)


def _answer(answers: Sequence[tuple[Told, int | None]]) -> None:
    for future, seq in answers:
        if not future.done():
            future.set_result(seq)


def _reject(futures: Sequence[Told], failure: ApplianceError) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(_unavailable(failure))


def _closing() -> AuditUnavailableError:
    return AuditUnavailableError("the audit log is closing", hint="try again later")


def _full() -> AuditUnavailableError:
    return AuditUnavailableError(
        "the disk of the audit log is full", hint="make room on it; it resumes by itself"
    )


def _unavailable(failure: ApplianceError) -> AuditUnavailableError:
    if isinstance(failure, AuditUnavailableError):
        return AuditUnavailableError(failure.message, hint=failure.hint)
    return AuditUnavailableError(
        f"the audit log is closed: {failure.message}", hint="run `appliance audit verify`"
    )

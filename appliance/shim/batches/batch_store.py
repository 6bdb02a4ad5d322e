"""Batches: what was asked, what became of each line, and how it ended.

A result is kept before its RES is written, and counts when the RES is durable; so after a crash
the audit log decides: a result whose request it calls ended well stands, any other was never
billed, is removed, and its line runs again. There is at most one result for each line.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from typing import TypeVar

from appliance.audit.event import Tokens
from appliance.errors import CapacityError, NotFoundError
from appliance.shim.batches.file_store import (
    SPARE_BYTES,
    StoredFile,
    add,
    check_room,
    get,
    place_of,
)
from appliance.shim.content_database import ContentDatabase

T = TypeVar("T")
_RAN_SPARE_BYTES = SPARE_BYTES // 2
"""What a line that ran while the disk filled may not use either."""
MAX_RUNNING = 32
"""Batches of one owner that have not ended."""
_COLUMNS = "id, owner, key_id, created, ended, input, output, errors, body"


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """One batch. Times are Unix seconds; `output` and `errors` are ids of files to be made."""

    id: str
    owner: str
    key_id: str
    created: int
    ended: int | None
    """When it reached a status that it keeps; None while it is worked on."""
    input: str
    output: str
    errors: str
    body: bytes
    """The batch object, JSON, without its counts."""


@dataclass(frozen=True, slots=True)
class FailedLine:
    """A line that has an error, and what the error file says of it."""

    number: int
    text: bytes
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Counts:
    """Lines that have ended, and the tokens of those that ended well."""

    completed: int
    failed: int
    tokens: Tokens


class BatchStore:
    """The batches in `db`, each kept for `seconds` after it ended."""

    def __init__(self, db: ContentDatabase, seconds: float) -> None:
        self._db = db
        self._seconds = seconds
        self._settled: list[tuple[str, int]] = []
        """Results whose RES is durable; written with whatever is written next."""

    async def create(self, batch: StoredBatch) -> None:
        """Keep a new batch.

        Raises NotFoundError if its input is not there any more, CapacityError if its owner has
        too many.
        """
        await self._run(lambda db: _create(db, batch))

    async def update(self, batch: StoredBatch) -> None:
        """Its body and its end are as `batch` has them."""
        await self._run(lambda db: _update(db, batch))

    async def get(self, owner: str, batch_id: str) -> tuple[StoredBatch, Counts]:
        """The batch. Raises NotFoundError with code `batch_not_found`."""
        return await self._run(lambda db: _get(db, owner, batch_id))

    async def page(
        self, owner: str, after: str | None, limit: int
    ) -> tuple[Sequence[tuple[StoredBatch, Counts]], bool]:
        """Up to `limit` batches older than `after`, newest first, and whether there are more."""
        return await self._run(lambda db: _page(db, owner, after, limit))

    async def remove(self, batch: StoredBatch) -> None:
        """Forget a batch that was not begun."""
        query = "DELETE FROM batches WHERE id = ?"
        await self._run(lambda db: db.execute(query, (batch.id,)))

    async def running(self) -> Sequence[StoredBatch]:
        """Those that are not at their end, oldest first."""
        return await self._run(lambda db: _rows(db, "ended IS NULL ORDER BY created, rowid"))

    async def done(self, batch_id: str) -> set[int]:
        """The numbers of the lines that have a result or an error."""
        query = "SELECT number FROM lines WHERE batch = ?"
        rows = await self._run(lambda db: db.execute(query, (batch_id,)).fetchall())
        return {number for (number,) in rows}

    async def keep(
        self, batch: StoredBatch, number: int, request_id: str, result: bytes, tokens: Tokens
    ) -> None:
        """The result of a line, before its RES; `settle` it afterwards, or `discard` it.

        Raises CapacityError if the disk has no room: a line that ran while the disk filled may use
        half of what no other may, and so may its error.
        """
        line = _Line(batch.id, number, False, request_id, False, tokens)

        def work(db: sqlite3.Connection) -> None:
            check_room(self._db, len(result) + _RAN_SPARE_BYTES)
            _add_line(db, line, batch.output, result)

        await self._run(work)

    def settle(self, batch: StoredBatch, number: int) -> None:
        """The RES of a kept result is durable."""
        self._settled.append((batch.id, number))

    async def discard(self, batch: StoredBatch, number: int) -> None:
        """There was no good RES for a kept result; harmless if nothing was kept."""
        await self._run(lambda db: _discard(db, batch.output, batch.id, number))

    async def fail(self, batch: StoredBatch, errors: Sequence[FailedLine], *, ran: bool) -> None:
        """Lines ended with errors: all of `errors`, or none. Raises CapacityError as `keep` does;
        the error of a line that never `ran` may use nothing of what is left free."""
        size = sum(len(error.text) for error in errors)

        def work(db: sqlite3.Connection) -> None:
            check_room(self._db, size + (_RAN_SPARE_BYTES if ran else SPARE_BYTES))
            for error in errors:
                line = _Line(batch.id, error.number, True, error.request_id, True, Tokens())
                _add_line(db, line, batch.errors, error.text)

        await self._run(work)

    async def finish(
        self, batch: StoredBatch, expires: int, compose: Callable[[bool, bool], bytes]
    ) -> None:
        """It has ended: results and errors, where there are any, become files until `expires`.

        `compose(output, errors)` gives the body, told which of the files there are.
        """
        await self._run(lambda db: _finish(db, batch, expires, compose))

    async def recover(self, ended_well: Callable[[str], bool]) -> int:
        """After a crash: settle what the audit log has, remove the rest; returns how many."""
        return await self._run(lambda db: _recover(db, ended_well))

    async def sweep(self) -> None:
        """Forget batches that ended long ago."""
        before = int(time.time() - self._seconds)
        await self._run(lambda db: _sweep(db, before))

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        settled, self._settled = self._settled, []

        def with_settled(db: sqlite3.Connection) -> T:
            db.executemany("UPDATE lines SET settled = 1 WHERE batch = ? AND number = ?", settled)
            return work(db)

        try:
            return await self._db.run(with_settled)
        except BaseException:
            # Written again with the next transaction, whether or not this one was.
            self._settled = settled + self._settled
            raise


def _create(db: sqlite3.Connection, batch: StoredBatch) -> None:
    get(db, batch.owner, batch.input)
    query = "SELECT count(*) FROM batches WHERE owner = ? AND ended IS NULL"
    if db.execute(query, (batch.owner,)).fetchone()[0] >= MAX_RUNNING:
        raise CapacityError(
            f"{MAX_RUNNING} batches of this key have not ended",
            hint="wait for one of them, or cancel one",
            code="too_many_batches",
        )
    marks = ", ".join("?" * len(astuple(batch)))
    query = f"INSERT INTO batches ({_COLUMNS}) VALUES ({marks})"  # noqa: S608
    db.execute(query, astuple(batch))


@dataclass(frozen=True, slots=True)
class _Line:
    """A row of `lines`."""

    batch: str
    number: int
    failed: bool
    request: str
    settled: bool
    tokens: Tokens


def _add_line(db: sqlite3.Connection, line: _Line, file_id: str, text: bytes) -> None:
    tokens = line.tokens
    db.execute(
        "INSERT INTO lines (batch, number, failed, request, settled, prompt, cached, generated,"
        " reasoning) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            line.batch,
            line.number,
            int(line.failed),
            line.request,
            int(line.settled),
            tokens.prompt,
            tokens.cached,
            tokens.generated,
            tokens.reasoning,
        ),
    )
    query = "INSERT INTO parts (file, number, data) VALUES (?, ?, ?)"
    db.execute(query, (file_id, line.number, text))


def _discard(db: sqlite3.Connection, output: str, batch_id: str, number: int) -> None:
    gone = db.execute(
        "DELETE FROM lines WHERE batch = ? AND number = ? AND settled = 0", (batch_id, number)
    ).rowcount
    if gone:
        db.execute("DELETE FROM parts WHERE file = ? AND number = ?", (output, number))


def _recover(db: sqlite3.Connection, ended_well: Callable[[str], bool]) -> int:
    unsettled = db.execute(
        "SELECT batch, number, request, output FROM lines JOIN batches ON batches.id = batch"
        " WHERE settled = 0"
    ).fetchall()
    removed = 0
    for batch_id, number, request, output in unsettled:
        if ended_well(request):
            query = "UPDATE lines SET settled = 1 WHERE batch = ? AND number = ?"
            db.execute(query, (batch_id, number))
        else:
            _discard(db, output, batch_id, number)
            removed += 1
    return removed


def _finish(
    db: sqlite3.Connection,
    batch: StoredBatch,
    expires: int,
    compose: Callable[[bool, bool], bytes],
) -> None:
    now = int(time.time())
    # What was hung up between its result and its RES.
    query = "SELECT number FROM lines WHERE batch = ? AND settled = 0"
    for (number,) in db.execute(query, (batch.id,)).fetchall():
        _discard(db, batch.output, batch.id, number)
    made = []
    for file_id, kind in ((batch.output, "output"), (batch.errors, "error")):
        query = "SELECT count(*), coalesce(sum(length(data)), 0) FROM parts WHERE file = ?"
        parts, size = db.execute(query, (file_id,)).fetchone()
        made.append(parts > 0)
        if parts:
            name = f"{batch.id}_{kind}.jsonl"
            add(db, StoredFile(file_id, batch.owner, now, expires, name, "batch_output", size))
    _update(db, replace(batch, ended=now, body=compose(made[0], made[1])))


def _update(db: sqlite3.Connection, batch: StoredBatch) -> None:
    query = "UPDATE batches SET body = ?, ended = ? WHERE id = ?"
    db.execute(query, (batch.body, batch.ended, batch.id))


def _get(db: sqlite3.Connection, owner: str, batch_id: str) -> tuple[StoredBatch, Counts]:
    found = _rows(db, "id = ? AND owner = ?", batch_id, owner)
    if not found:
        raise NotFoundError(
            "there is no such batch",
            hint="it ended long ago, or belongs to another key",
            code="batch_not_found",
        )
    return found[0], _counts(db, batch_id)


def _counts(db: sqlite3.Connection, batch_id: str) -> Counts:
    row = db.execute(
        "SELECT count(*), coalesce(sum(failed), 0), coalesce(sum(prompt), 0),"
        " coalesce(sum(cached), 0), coalesce(sum(generated), 0), coalesce(sum(reasoning), 0)"
        " FROM lines WHERE batch = ? AND settled = 1",
        (batch_id,),
    ).fetchone()
    ended, failed, prompt, cached, generated, reasoning = row
    tokens = Tokens(prompt=prompt, cached=cached, generated=generated, reasoning=reasoning)
    return Counts(ended - failed, failed, tokens)


def _page(
    db: sqlite3.Connection, owner: str, after: str | None, limit: int
) -> tuple[Sequence[tuple[StoredBatch, Counts]], bool]:
    where = "owner = ?"
    values: list[object] = [owner]
    if after is not None:
        where += " AND (created, rowid) < (?, ?)"
        values += place_of(db, "batches", owner, after)
    rows = _rows(db, f"{where} ORDER BY created DESC, rowid DESC LIMIT ?", *values, limit + 1)
    return [(row, _counts(db, row.id)) for row in rows[:limit]], len(rows) > limit


def _sweep(db: sqlite3.Connection, before: int) -> None:
    db.execute(
        "DELETE FROM lines WHERE batch IN (SELECT id FROM batches WHERE ended < ?)", (before,)
    )
    db.execute("DELETE FROM batches WHERE ended < ?", (before,))


def _rows(db: sqlite3.Connection, where: str, *values: object) -> list[StoredBatch]:
    query = f"SELECT {_COLUMNS} FROM batches WHERE {where}"  # noqa: S608
    return [StoredBatch(*row) for row in db.execute(query, values)]

"""Files: written piece by piece, found by their owner, for a time.

A file belongs to a lineage of keys, so that a rotated key still has its files. Refuses to find
another's file: to its caller there is none. An upload that was not completed is no file.

What is removed is out of sight at once, in one transaction, and then overwritten in many small
ones: each needs room on the disk for a copy of what it overwrites, and a disk that is nearly full
has no room for a copy of a whole file. What fails on the way, or is cut off, is gone on with later.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from typing import Literal

from appliance.errors import CapacityError, ConflictError, NotFoundError, RequestError
from appliance.shim.content_database import ContentDatabase

SPARE_BYTES = 256 * 1024 * 1024
"""Of the disk that no upload takes, and on which no line of a batch begins: what callers keep must
not stop the log, and so everything."""
FULL = "storage_full"
"""Code of the error about it."""
PIECE_BYTES = 256 * 1024
"""Of an upload; what a reader takes at once is a few of them."""
Order = Literal["asc", "desc"]
_COLUMNS = "id, owner, created, expires, name, purpose, bytes"
_PIECES = 16
_REMOVED_BYTES = 4 * PIECE_BYTES
"""Overwritten in one transaction, at least; one piece may be larger."""
_REMOVED_ROWS = 1000


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file, without its bytes. Times are Unix seconds."""

    id: str
    owner: str
    created: int
    expires: int
    name: str
    purpose: str
    bytes: int = 0


class FileStore:
    """The files in `db`, which may hold `most` bytes together."""

    def __init__(self, db: ContentDatabase, most: int) -> None:
        self._db = db
        self._most = most
        self._leaving: set[str] = set()
        """Out of sight, and not yet overwritten to the end."""

    async def begin(self, file: StoredFile) -> None:
        """`file` is going to be written; nobody sees it yet."""
        await self._db.run(lambda db: add(db, file, ready=False))

    async def append(self, file_id: str, number: int, data: bytes) -> None:
        """The piece `number` of a file that was begun. Raises CapacityError if there is no room."""
        await self._db.run(lambda db: self._append(db, file_id, number, data))

    async def complete(
        self, owner: str, file_id: str, name: str, purpose: str, seconds: int
    ) -> StoredFile:
        """All of it is there: from now on, and for `seconds`, it is a file."""

        def work(db: sqlite3.Connection) -> StoredFile:
            query = (
                "UPDATE files SET ready = 1, name = ?, purpose = ?, expires = created + ?"
                " WHERE id = ?"
            )
            db.execute(query, (name, purpose, seconds, file_id))
            return get(db, owner, file_id)

        return await self._db.run(work)

    async def discard(self, file_id: str) -> None:
        """Remove what was begun, and is not wanted."""
        await self._remove([file_id])

    async def get(self, owner: str, file_id: str) -> StoredFile:
        """The file. Raises NotFoundError with code `file_not_found`."""
        return await self._db.run(lambda db: get(db, owner, file_id))

    async def page(
        self, owner: str, purpose: str | None, after: str | None, limit: int, order: Order
    ) -> tuple[Sequence[StoredFile], bool]:
        """Up to `limit` files behind `after`, by age, and whether there are more.

        Raises RequestError if there is no file `after`.
        """
        return await self._db.run(lambda db: _page(db, owner, purpose, after, limit, order))

    async def delete(self, owner: str, file_id: str) -> None:
        """Remove it for good. Raises NotFoundError, ConflictError while a batch reads it."""
        await self._db.run(lambda db: _hide(db, owner, file_id))
        await self._remove([file_id])

    async def pieces(self, file_id: str) -> AsyncGenerator[bytes, None]:
        """Its bytes in order, a few pieces at a time; ends early if it is deleted meanwhile."""
        last = -1
        while rows := await self._next(file_id, last):
            last = rows[-1][0]
            yield b"".join(data for _, data in rows)

    async def check_room(self) -> None:
        """Whether there is room for what is yet to be computed. Raises CapacityError.

        The disk is asked, not the database: who asks does not wait behind what is being written.
        """
        await asyncio.to_thread(check_room, self._db, SPARE_BYTES)

    async def total_bytes(self) -> int:
        """Bytes of all files."""
        return await self._db.run(_total)

    async def sweep(self) -> None:
        """Remove what has expired, unless a batch that runs needs it, and what is left over."""
        await self._remove([*self._leaving, *await self._db.run(_expired)])

    async def discard_unfinished(self) -> None:
        """Remove uploads that the last end of the endpoint cut off."""
        await self._remove(await self._db.run(_unfinished))

    async def _remove(self, file_ids: Sequence[str]) -> None:
        """Overwrite files that nobody sees any more."""
        self._leaving.update(file_ids)
        for file_id in file_ids:
            while await self._db.run(partial(_remove_some, file_id=file_id)):
                pass
            self._leaving.discard(file_id)

    async def _next(self, file_id: str, last: int) -> list[tuple[int, bytes]]:
        return await self._db.run(lambda db: _pieces(db, file_id, last))

    def _append(self, db: sqlite3.Connection, file_id: str, number: int, data: bytes) -> None:
        check_room(self._db, SPARE_BYTES)
        if _total(db) + len(data) > self._most:
            raise CapacityError(
                f"the files that are kept would exceed {self._most} bytes",
                hint="delete some, or have api.max_stored_bytes raised",
                code=FULL,
            )
        query = "INSERT INTO parts (file, number, data) VALUES (?, ?, ?)"
        db.execute(query, (file_id, number, data))
        db.execute("UPDATE files SET bytes = bytes + ? WHERE id = ?", (len(data), file_id))


def check_room(database: ContentDatabase, least: int) -> None:
    """Raise CapacityError if fewer bytes than `least` are free on its disk."""
    if database.free_bytes() < least:
        raise CapacityError(
            "the disk has no room for files: the rest of it is kept for the audit log",
            hint="have the operator make room",
            code=FULL,
        )


def add(db: sqlite3.Connection, file: StoredFile, *, ready: bool = True) -> None:
    """Insert the row of `file`."""
    db.execute(
        f"INSERT INTO files ({_COLUMNS}, ready) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
        (*astuple(file), int(ready)),
    )


def get(db: sqlite3.Connection, owner: str, file_id: str) -> StoredFile:
    """The file, if it is there. Raises NotFoundError."""
    found = _rows(db, "id = ? AND owner = ? AND ready = 1 AND expires > ?", file_id, owner, _now())
    if not found:
        raise NotFoundError(
            "there is no such file",
            hint="it was deleted, or has expired, or belongs to another key",
            code="file_not_found",
        )
    return found[0]


def place_of(db: sqlite3.Connection, table: str, owner: str, after: str) -> tuple[int, int]:
    """Where a page begins that follows `after`. Raises RequestError."""
    query = f"SELECT created, rowid FROM {table} WHERE id = ? AND owner = ?"  # noqa: S608
    row = db.execute(query, (after, owner)).fetchone()
    if row is None:
        raise RequestError(f"there is no {after!r}", param="after", code="invalid_value")
    return int(row[0]), int(row[1])


def _remove_some(db: sqlite3.Connection, file_id: str) -> bool:
    """Overwrite some of a file from its end, and at last its row; whether there is more."""
    rows = db.execute(
        "SELECT number, length(data) FROM parts WHERE file = ? ORDER BY number DESC LIMIT ?",
        (file_id, _REMOVED_ROWS),
    )
    size, first = 0, None
    for number, length in rows:
        size, first = size + length, number
        if size >= _REMOVED_BYTES:
            break
    if first is None:
        db.execute("DELETE FROM files WHERE id = ?", (file_id,))
        return False
    db.execute("DELETE FROM parts WHERE file = ? AND number >= ?", (file_id, first))
    db.execute("UPDATE files SET bytes = max(bytes - ?, 0) WHERE id = ?", (size, file_id))
    return True


def _page(
    db: sqlite3.Connection,
    owner: str,
    purpose: str | None,
    after: str | None,
    limit: int,
    order: Order,
) -> tuple[Sequence[StoredFile], bool]:
    where = "owner = ? AND ready = 1 AND expires > ?"
    values: list[object] = [owner, _now()]
    if purpose is not None:
        where += " AND purpose = ?"
        values.append(purpose)
    if after is not None:
        where += f" AND (created, rowid) {'>' if order == 'asc' else '<'} (?, ?)"
        values += place_of(db, "files", owner, after)
    where += f" ORDER BY created {order}, rowid {order} LIMIT ?"
    rows = _rows(db, where, *values, limit + 1)
    return rows[:limit], len(rows) > limit


def _hide(db: sqlite3.Connection, owner: str, file_id: str) -> None:
    get(db, owner, file_id)
    used = "SELECT id FROM batches WHERE input = ? AND ended IS NULL"
    running = db.execute(used, (file_id,)).fetchone()
    if running is not None:
        raise ConflictError(
            f"the batch {running[0]} reads the file", hint="cancel it, or wait until it has ended"
        )
    db.execute("UPDATE files SET ready = 0 WHERE id = ?", (file_id,))


def _pieces(db: sqlite3.Connection, file_id: str, last: int) -> list[tuple[int, bytes]]:
    return db.execute(
        "SELECT number, data FROM parts WHERE file = ? AND number > ? ORDER BY number LIMIT ?",
        (file_id, last, _PIECES),
    ).fetchall()


def _total(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT coalesce(sum(bytes), 0) FROM files").fetchone()[0])


def _expired(db: sqlite3.Connection) -> list[str]:
    found = db.execute(
        "SELECT id FROM files WHERE expires <= ? AND ready = 1"
        " AND id NOT IN (SELECT input FROM batches WHERE ended IS NULL)",
        (_now(),),
    )
    return [file_id for (file_id,) in found.fetchall()]


def _unfinished(db: sqlite3.Connection) -> list[str]:
    return [file_id for (file_id,) in db.execute("SELECT id FROM files WHERE ready = 0")]


def _rows(db: sqlite3.Connection, where: str, *values: object) -> list[StoredFile]:
    query = f"SELECT {_COLUMNS} FROM files WHERE {where}"  # noqa: S608
    return [StoredFile(*row) for row in db.execute(query, values)]


def _now() -> int:
    return int(time.time())

"""Responses that callers asked to keep: one SQLite file, read by nobody but the shim.

Owns content at rest, the only place on a node where there is any; off unless the operator says
otherwise. A response belongs to the key that made it and lives for a time; deleting it overwrites
its bytes. Refuses to find another key's response: to its caller there is none.

A rollback journal and synchronous=EXTRA: what was answered as stored survives a power cut.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TypeVar

from sqlite_utils import Database

from appliance.errors import NotFoundError, StorageError
from appliance.fsops import inherit_owner

T = TypeVar("T")
_SCHEMA_VERSION = 1
_COLUMNS = "id, key_id, created, expires, previous, running, input, body"
MAX_TURNS = 1000
"""Longest chain of responses that build on each other."""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """One response. Times are Unix seconds."""

    id: str
    key_id: str
    created: int
    expires: int
    previous: str
    """The response it builds on; empty if none."""
    running: int
    """1 while it is computed, else 0."""
    input: bytes
    """Its own input items, a JSON array."""
    body: bytes
    """The response object, JSON."""


class ResponseStore:
    """Responses in the file `path`, each kept for `seconds`.

    Every call runs in one thread of the store's own and raises StorageError if the file cannot
    be used.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        self._path = path
        self._seconds = seconds
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="responses")
        try:
            self._db: Database = self._thread.submit(self._open).result()
        except BaseException:
            self._thread.shutdown()
            raise

    async def close(self) -> None:
        """Close the file."""
        await self._run(self._db.close)
        self._thread.shutdown()

    async def put(self, response: StoredResponse) -> None:
        """Keep `response` and renew what it builds on."""
        await self._run(lambda: self._put(response))

    async def update(self, response_id: str, body: bytes) -> None:
        """It has ended and is `body` now; nothing happens if it was deleted meanwhile."""
        await self._run(lambda: self._update(response_id, body))

    async def get(self, key_id: str, response_id: str) -> StoredResponse:
        """The response. Raises NotFoundError with code `response_not_found`."""
        return await self._run(lambda: self._get(key_id, response_id))

    async def chain(self, key_id: str, response_id: str) -> list[StoredResponse]:
        """The response and all that it builds on, oldest first. Raises NotFoundError."""
        return await self._run(lambda: self._chain(key_id, response_id))

    async def delete(self, key_id: str, response_id: str) -> None:
        """Remove it for good. Raises NotFoundError."""
        await self._run(lambda: self._delete(key_id, response_id))

    async def interrupted(self) -> Sequence[StoredResponse]:
        """Those that were being computed when the shim last ended."""
        return await self._run(lambda: self._rows("running = 1", ()))

    def expiry(self) -> int:
        """When a response that is stored now ends."""
        return int(time.time() + self._seconds)

    async def _run(self, work: Callable[[], T]) -> T:
        def guarded() -> T:
            with self._failures():
                return work()

        return await asyncio.get_running_loop().run_in_executor(self._thread, guarded)

    def _put(self, response: StoredResponse) -> None:
        marks = ", ".join("?" * len(astuple(response)))
        with self._db.conn as transaction:
            transaction.execute("DELETE FROM responses WHERE expires <= ?", (int(time.time()),))
            transaction.execute(
                f"INSERT INTO responses ({_COLUMNS}) VALUES ({marks})",  # noqa: S608
                astuple(response),
            )
            with suppress(NotFoundError):  # one that was deleted while this was computed
                earlier = self._chain(response.key_id, response.previous)
                transaction.executemany(
                    "UPDATE responses SET expires = ? WHERE id = ?",
                    [(response.expires, row.id) for row in earlier],
                )

    def _update(self, response_id: str, body: bytes) -> None:
        with self._db.conn as transaction:
            transaction.execute(
                "UPDATE responses SET running = 0, body = ? WHERE id = ?", (body, response_id)
            )

    def _get(self, key_id: str, response_id: str) -> StoredResponse:
        found = self._rows(
            "id = ? AND key_id = ? AND expires > ?", (response_id, key_id, int(time.time()))
        )
        if not found:
            raise NotFoundError(
                "there is no such response",
                hint="it was not stored, or has expired, or belongs to another key",
                code="response_not_found",
            )
        return found[0]

    def _chain(self, key_id: str, response_id: str) -> list[StoredResponse]:
        chain = [self._get(key_id, response_id)]
        while chain[-1].previous and len(chain) < MAX_TURNS:
            chain.append(self._get(key_id, chain[-1].previous))
        return chain[::-1]

    def _delete(self, key_id: str, response_id: str) -> None:
        self._get(key_id, response_id)
        with self._db.conn as transaction:
            transaction.execute("DELETE FROM responses WHERE id = ?", (response_id,))

    def _rows(self, where: str, parameters: tuple[object, ...]) -> list[StoredResponse]:
        rows = self._db.conn.execute(
            f"SELECT {_COLUMNS} FROM responses WHERE {where}",  # noqa: S608
            parameters,
        ).fetchall()
        return [StoredResponse(*row) for row in rows]

    def _open(self) -> Database:
        with self._failures():
            connection = sqlite3.connect(self._path)
            db = Database(connection, recursive_triggers=False, execute_plugins=False)
            try:
                self._prepare(db)
            except BaseException:
                db.close()
                raise
            return db

    def _prepare(self, db: Database) -> None:
        self._path.chmod(0o600)
        inherit_owner(self._path)
        db.conn.execute("PRAGMA journal_mode = DELETE")
        db.conn.execute("PRAGMA synchronous = EXTRA")
        # What is deleted is overwritten, not only forgotten.
        db.conn.execute("PRAGMA secure_delete = ON")
        version = int(db.conn.execute("PRAGMA user_version").fetchall()[0][0])
        if version > _SCHEMA_VERSION:
            raise StorageError(
                f"{self._path} was written by a newer release",
                hint="run that release, or remove the file",
            )
        if version == _SCHEMA_VERSION:
            return
        with db.conn as transaction:
            kinds = {
                "id": str,
                "key_id": str,
                "created": int,
                "expires": int,
                "previous": str,
                "running": int,
                "input": bytes,
                "body": bytes,
            }
            db.table("responses").create(kinds, pk="id", not_null=set(kinds), strict=True)
            db.table("responses").create_index(["expires"])
            transaction.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StorageError(
                "stored responses cannot be used",
                hint="have the operator check the disk, or send `store` as false",
            ) from error

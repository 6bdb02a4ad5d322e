"""Responses that callers asked to keep: one SQLite file, read by nobody but the shim.

Owns content at rest, as the files of batches (batches/) are; off unless the operator says
otherwise. A response belongs to the lineage of the key that made it, so to the keys that replace it
by rotation too, and lives for a time; deleting it overwrites its bytes (content_database.py).
Refuses to find another key's response, of the same project or not: to its caller there is none.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path

from appliance.errors import NotFoundError
from appliance.shim.content_database import ContentDatabase

_SCHEMA_VERSION = 2
"""1 had the id of the key in the place of its lineage."""
_COLUMNS = "id, owner, created, expires, previous, running, input, body"
MAX_TURNS = 1000
"""Longest chain of responses that build on each other."""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """One response. Times are Unix seconds."""

    id: str
    owner: str
    """The lineage of the key that made it."""
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

    def __init__(
        self, path: Path, seconds: float, lineages: Mapping[str, str] | None = None
    ) -> None:
        """`lineages` by the ids of keys: to whom what release 0.1 stored belongs now."""
        self._seconds = seconds
        self._db = ContentDatabase(
            path,
            _SCHEMA_VERSION,
            lambda db: _prepare(db, lineages or {}),
            what="stored responses",
            hint="have the operator check the disk, or send `store` as false",
        )

    async def close(self) -> None:
        """Close the file."""
        await self._db.close()

    async def put(self, response: StoredResponse) -> None:
        """Keep `response` and renew what it builds on."""
        await self._db.run(lambda db: _put(db, response))

    async def update(self, response_id: str, body: bytes) -> None:
        """It has ended and is `body` now; nothing happens if it was deleted meanwhile."""
        await self._db.run(lambda db: _update(db, response_id, body))

    async def get(self, owner: str, response_id: str) -> StoredResponse:
        """The response. Raises NotFoundError with code `response_not_found`."""
        return await self._db.run(lambda db: _get(db, owner, response_id))

    async def chain(self, owner: str, response_id: str) -> list[StoredResponse]:
        """The response and all that it builds on, oldest first. Raises NotFoundError."""
        return await self._db.run(lambda db: _chain(db, owner, response_id))

    async def delete(self, owner: str, response_id: str) -> None:
        """Remove it for good. Raises NotFoundError."""
        await self._db.run(lambda db: _delete(db, owner, response_id))

    async def interrupted(self) -> Sequence[StoredResponse]:
        """Those that were being computed when the shim last ended."""
        return await self._db.run(lambda db: _rows(db, "running = 1", ()))

    def expiry(self) -> int:
        """When a response that is stored now ends."""
        return int(time.time() + self._seconds)


def _put(db: sqlite3.Connection, response: StoredResponse) -> None:
    marks = ", ".join("?" * len(astuple(response)))
    db.execute("DELETE FROM responses WHERE expires <= ?", (int(time.time()),))
    db.execute(
        f"INSERT INTO responses ({_COLUMNS}) VALUES ({marks})",  # noqa: S608
        astuple(response),
    )
    with suppress(NotFoundError):  # one that was deleted while this was computed
        earlier = _chain(db, response.owner, response.previous)
        db.executemany(
            "UPDATE responses SET expires = ? WHERE id = ?",
            [(response.expires, row.id) for row in earlier],
        )


def _update(db: sqlite3.Connection, response_id: str, body: bytes) -> None:
    db.execute("UPDATE responses SET running = 0, body = ? WHERE id = ?", (body, response_id))


def _get(db: sqlite3.Connection, owner: str, response_id: str) -> StoredResponse:
    found = _rows(
        db, "id = ? AND owner = ? AND expires > ?", (response_id, owner, int(time.time()))
    )
    if not found:
        raise NotFoundError(
            "there is no such response",
            hint="it was not stored, or has expired, or belongs to another key",
            code="response_not_found",
        )
    return found[0]


def _chain(db: sqlite3.Connection, owner: str, response_id: str) -> list[StoredResponse]:
    chain = [_get(db, owner, response_id)]
    while chain[-1].previous and len(chain) < MAX_TURNS:
        try:
            chain.append(_get(db, owner, chain[-1].previous))
        except NotFoundError as error:
            raise NotFoundError(
                "an earlier response that this one was built on is not there any more",
                hint="it was deleted, or has expired: send the whole conversation as `input`",
                code=error.code,
            ) from None
    return chain[::-1]


def _delete(db: sqlite3.Connection, owner: str, response_id: str) -> None:
    _get(db, owner, response_id)
    db.execute("DELETE FROM responses WHERE id = ?", (response_id,))


def _rows(
    db: sqlite3.Connection, where: str, parameters: tuple[object, ...]
) -> list[StoredResponse]:
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM responses WHERE {where}",  # noqa: S608
        parameters,
    ).fetchall()
    return [StoredResponse(*row) for row in rows]


def _prepare(db: sqlite3.Connection, lineages: Mapping[str, str]) -> None:
    """Make the table, or bring an older release's up to date."""
    columns = {row[1] for row in db.execute("PRAGMA table_info(responses)")}
    if not columns:
        _create(db)
    elif "key_id" in columns:
        db.execute("ALTER TABLE responses RENAME COLUMN key_id TO owner")
        # A key that is not known any more is its own: nobody has it, and what it made expires.
        db.executemany(
            "UPDATE responses SET owner = ? WHERE owner = ?",
            [(lineage, key) for key, lineage in lineages.items() if lineage != key],
        )


def _create(db: sqlite3.Connection) -> None:
    db.execute(
        "CREATE TABLE responses (id TEXT PRIMARY KEY, owner TEXT NOT NULL,"
        " created INTEGER NOT NULL, expires INTEGER NOT NULL, previous TEXT NOT NULL,"
        " running INTEGER NOT NULL, input BLOB NOT NULL, body BLOB NOT NULL) STRICT"
    )
    db.execute("CREATE INDEX responses_expires ON responses (expires)")

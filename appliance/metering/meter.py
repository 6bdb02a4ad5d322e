"""The usage database: settled requests, summed on demand.

Owns one SQLite file. It is a projection of the audit log and may be deleted and rebuilt; so a
settled row is never the only evidence of what was used. Refuses to settle a request twice.

Rollback journal, not WAL: SQLite before 3.51.3 can lose committed writes in WAL mode when two
connections reset the log at once. synchronous=EXTRA makes the commit itself durable.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, get_args

from sqlite_utils import Database
from sqlite_utils.db import Table

from appliance.errors import StorageError
from appliance.metering.row import UsageRow

Dimension = Literal["key", "model", "day"]
DIMENSIONS: tuple[str, ...] = get_args(Dimension)

BUSY_SECONDS = 10.0
"""How long one process waits for another's transaction."""
_GROUPS: dict[Dimension, str] = {
    "key": "key_id",
    "model": "model",
    "day": "date(at, 'unixepoch')",
}


@dataclass(frozen=True, slots=True)
class ReportRow:
    """Sums over the settled requests of one key, model or day (UTC, YYYY-MM-DD)."""

    group: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int


class Meter:
    """Settled requests in the SQLite file `path`. Use it from one thread at a time."""

    def __init__(self, path: Path, *, busy_seconds: float = BUSY_SECONDS) -> None:
        """Open the database, creating it if it does not exist. Raises StorageError."""
        self._path = path
        with self._translated():
            connection = sqlite3.connect(
                path, timeout=busy_seconds, isolation_level=None, check_same_thread=False
            )
            self._db = Database(connection, execute_plugins=False)
            self._db.execute("PRAGMA journal_mode=DELETE")
            self._db.execute("PRAGMA synchronous=EXTRA")
            if not self._db.table("progress").exists():
                self._create()

    def settle(self, *rows: UsageRow) -> None:
        """Keep `rows`, durable on return; a request already settled is left as it is.

        Several rows cost one transaction. Raises StorageError; then none of them is kept.
        """
        with self._transaction():
            self._usage.insert_all(map(asdict, rows), pk="request_id", ignore=True)

    def rows(self) -> Iterator[UsageRow]:
        """Every settled request, in the order of the audit log."""
        for row in self._usage.rows_where(order_by="audit_seq"):
            yield UsageRow(**row)

    def report(self, by: Dimension = "key") -> list[ReportRow]:
        """Sums per key, model or day, the largest completion first (days in order)."""
        group = _GROUPS[by]
        order = "1" if by == "day" else "completion_tokens desc, 1"
        with self._translated():
            return [
                ReportRow(**row)
                for row in self._db.query(
                    f"select {group} as 'group', count(*) as requests,"  # noqa: S608
                    " sum(prompt_tokens) as prompt_tokens, sum(cached_tokens) as cached_tokens,"
                    " sum(completion_tokens) as completion_tokens,"
                    " sum(reasoning_tokens) as reasoning_tokens"
                    f" from usage group by 1 order by {order}"
                )
            ]

    @property
    def settled_to(self) -> int:
        """Every RES with a lower audit number is settled; later ones may be."""
        return int(next(self._db.query("select settled_to from progress"))["settled_to"])

    def mark_settled(self, seq: int) -> None:
        """Note that every RES below `seq` is settled. Never moves back."""
        with self._translated():
            self._db.execute("update progress set settled_to = max(settled_to, ?)", [seq])

    def replace_all(self, rows: Iterable[UsageRow], settled_to: Callable[[], int]) -> int:
        """Keep exactly `rows` from now on, in one transaction; returns how many they are.

        `settled_to` is asked when `rows` is exhausted.
        """
        with self._transaction():
            self._db.execute("delete from usage")
            self._usage.insert_all(map(asdict, rows), pk="request_id", ignore=True)
            self._db.execute("update progress set settled_to = ?", [settled_to()])
            return self._usage.count

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def _usage(self) -> Table:
        return self._db.table("usage")

    def _create(self) -> None:
        with self._transaction():
            self._db.execute(
                "create table if not exists usage ("
                " request_id text primary key, audit_seq integer not null, at integer not null,"
                " key_id text not null, model text not null, route text not null,"
                " prompt_tokens integer not null, cached_tokens integer not null,"
                " completion_tokens integer not null, reasoning_tokens integer not null,"
                " outcome text not null) strict"
            )
            self._db.execute(
                "create table if not exists progress ("
                " id integer primary key check (id = 0), settled_to integer not null) strict"
            )
            self._db.execute("insert or ignore into progress values (0, 0)")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """One transaction, all or nothing.

        IMMEDIATE takes the write lock at once: a deferred transaction that turns from reading
        to writing while another writes fails without waiting.
        """
        connection = self._db.conn
        with self._translated():
            connection.execute("begin immediate")
            try:
                yield
                connection.execute("commit")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("rollback")
                raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StorageError(
                f"the usage database {self._path} failed: {error}",
                hint="check the disk; `appliance usage rebuild` makes it anew from the audit log",
            ) from error

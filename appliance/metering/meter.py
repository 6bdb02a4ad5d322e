"""The usage database: settled requests, summed on demand.

Owns one SQLite file. It is a projection of the audit log and may be deleted and rebuilt; so a
settled row is never the only evidence of what was used. Refuses to settle a request twice.

Rollback journal, not WAL: SQLite before 3.51.3 can lose committed writes in WAL mode when two
connections reset the log at once. synchronous=EXTRA makes the commit itself durable.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlite_utils import Database
from sqlite_utils.db import Table

from appliance.errors import StorageError
from appliance.metering import report, usage_schema
from appliance.metering.report import BucketRow, Dimension, Filter, ReportRow, Spent
from appliance.metering.row import UsageRow

BUSY_SECONDS = 10.0
"""How long one process waits for another's transaction."""
CACHE_KIB = 512
"""Of the file's pages in memory, a quarter of SQLite's default: the system keeps them as well, and
what grows for hours until it is full cannot be told from a leak."""
_COLUMNS = tuple(field.name for field in fields(UsageRow))
_VALUES = attrgetter(*_COLUMNS)
_INSERT = (
    f"insert or ignore into usage ({', '.join(_COLUMNS)})"  # noqa: S608
    f" values ({', '.join('?' * len(_COLUMNS))})"
)


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
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def settle(self, *rows: UsageRow) -> None:
        """Keep `rows`, durable on return; a request already settled is left as it is.

        Several rows cost one transaction. Raises StorageError; then none of them is kept.
        """
        with self._transaction():
            self._insert(rows)

    def rows(self) -> Iterator[UsageRow]:
        """Every settled request, in the order of the audit log."""
        for row in self._usage.rows_where(order_by="audit_seq"):
            yield UsageRow(**row)

    def outcome(self, request_id: str) -> str:
        """How a settled request ended; empty if there is none of that id."""
        with self._translated():
            query = "select outcome from usage where request_id = ?"
            return next((str(row["outcome"]) for row in self._db.query(query, [request_id])), "")

    def report(
        self,
        by: Dimension = "key",
        *,
        since: int | None = None,
        until: int | None = None,
        own: Collection[str] = (),
    ) -> list[ReportRow]:
        """Sums per key, project, model or day, the largest completion first (days in order).

        Of requests that ended from `since` on and before `until`, Unix seconds. `own` are ids of
        the node's own keys: by project, what they asked is the project NOBODY's.
        """
        with self._translated():
            return report.sums(self._db, by, since, until, own)

    def spent(self, since: int) -> list[Spent]:
        """Tokens and cost per key, project and day (UTC) from `since` on."""
        with self._translated():
            return report.spent(self._db, since)

    def buckets(self, wanted: Filter) -> list[BucketRow]:
        """Sums per bucket of time and group; buckets in which nothing happened are left out."""
        with self._translated():
            return report.buckets(self._db, wanted)

    def reaches_below(self, seq: int) -> bool:
        """Whether any settled request has a lower audit number than `seq`."""
        with self._translated():
            query = "select 1 from usage where audit_seq < ? limit 1"
            return any(True for _ in self._db.query(query, [seq]))

    @property
    def settled_to(self) -> int:
        """Every RES with a lower audit number is settled; later ones may be."""
        return int(next(self._db.query("select settled_to from progress"))["settled_to"])

    def mark_settled(self, seq: int) -> None:
        """Note that every RES below `seq` is settled. Never moves back."""
        with self._translated():
            self._db.execute("update progress set settled_to = max(settled_to, ?)", [seq])

    def replace_all(
        self, rows: Iterable[UsageRow], settled_to: Callable[[], int], first: int = 0
    ) -> int:
        """Keep exactly `rows` of the records from `first` on, in one transaction; returns how
        many rows there are in all.

        `settled_to` is asked when `rows` is exhausted.
        """
        with self._transaction():
            self._db.execute("delete from usage where audit_seq >= ?", [first])
            self._insert(rows)
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

    def _insert(self, rows: Iterable[UsageRow]) -> None:
        """By one prepared statement: each request that is served comes through here."""
        self._db.conn.executemany(_INSERT, map(_VALUES, rows))

    @property
    def _usage(self) -> Table:
        return self._db.table("usage")

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode=DELETE")
        self._db.execute("PRAGMA synchronous=EXTRA")
        self._db.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
        if self._version() != usage_schema.VERSION:
            with self._transaction():
                if self._version() != usage_schema.VERSION:
                    usage_schema.bring_up_to_date(self._db.conn)

    def _version(self) -> int:
        version = usage_schema.version_of(self._db.conn)
        if version > usage_schema.VERSION:
            raise StorageError(
                f"the usage database {self._path} was written by a newer release",
                hint="remove it: `appliance usage rebuild` makes it anew from the audit log",
            )
        return version

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

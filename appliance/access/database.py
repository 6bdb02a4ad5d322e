"""The SQLite file under the keys, projects and limits.

Owns opening it: a rollback journal and synchronous=EXTRA, so that a commit that returned survives
a power cut and is seen by the next read of every other process; the upgrade of an older release's
file; and the translation of SQLite's errors. Refuses a file that a newer release wrote.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from appliance.access import schema
from appliance.change_counter import ChangeCounter
from appliance.errors import StorageError
from appliance.fsops import inherit_owner

_BUSY_SECONDS = 30.0
"""How long one process waits for another's commit. A disk that was busy with something else was
seen to keep a commit for more than five seconds; whoever gives up sooner has gained nothing, since
the next to come waits for the same."""

_HINT = "run the command as root; if it says so again, check the disk"
_BUSY_HINT = "another command holds them, or the disk is very slow: try again"


class AccessDatabase:
    """An open file. One object belongs to one thread; any number of processes may have it open.

    Everything raises StorageError if the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self.failures():
            # isolation_level None: transactions begin and end where the code says so.
            connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
            self._db = Database(connection, recursive_triggers=False, execute_plugins=False)
            try:
                self._prepare()
                self._counter = ChangeCounter(path)
            except BaseException:
                self._db.close()
                raise

    @property
    def connection(self) -> sqlite3.Connection:
        return self._db.conn

    def close(self) -> None:
        """Close the file."""
        self._db.close()
        self._counter.close()

    @property
    def state(self) -> bytes:
        """What is in the file; the same as long as nobody has committed a change."""
        with self.failures():
            return self._counter.read()

    def rows(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """All rows of a query. Read to the end, so that its lock ends with it."""
        with self.failures():
            return self.connection.execute(sql, parameters).fetchall()

    def insert(self, table: str, row: dict[str, object], *, replace: bool = False) -> None:
        """Keep `row` in `table`; durable on return outside a transaction."""
        with self.failures():
            self._db.table(table).insert(row, replace=replace)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; the write lock is taken first. Durable on leaving."""
        connection = self.connection
        with self.failures():
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """While inside, no other process can commit a change: it waits.

        For a moment only, and never across an await: a writer waits, and gives up in the end.
        """
        connection = self.connection
        with self.failures():
            connection.execute("BEGIN")
        try:
            yield
        finally:
            with self.failures():
                connection.execute("COMMIT")

    @contextmanager
    def failures(self) -> Iterator[None]:
        """SQLite's errors as StorageError."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            busy = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY
            raise StorageError(
                f"the keys in {self._path} cannot be used: {error}",
                hint=_BUSY_HINT if busy else _HINT,
            ) from error

    def _prepare(self) -> None:
        self.connection.execute("PRAGMA synchronous = EXTRA")
        if self._version() == schema.VERSION:
            return
        self._path.chmod(0o600)
        inherit_owner(self._path)
        self.connection.execute("PRAGMA journal_mode = DELETE")
        # The lock comes first: of two processes that open a new file, one makes the tables.
        with self.transaction():
            if self._version() != schema.VERSION:
                schema.bring_up_to_date(self.connection)

    def _version(self) -> int:
        version = schema.version_of(self.connection)
        _refuse_newer(self._path, version)
        return version


def check_readable(path: Path) -> None:
    """Raise StorageError if this release cannot open the keys at `path`; changes nothing.

    What an older release wrote stays as it is, which opening it would upgrade.
    """
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as file:
            version = schema.version_of(file)
    except sqlite3.Error as error:
        raise StorageError(f"the keys in {path} cannot be used: {error}", hint=_HINT) from error
    _refuse_newer(path, version)


def _refuse_newer(path: Path, version: int) -> None:
    if version > schema.VERSION:
        raise StorageError(
            f"{path} was written by a newer release",
            hint="run that release, or restore the file from a backup",
        )

"""One SQLite file of content that callers asked to keep, used from one thread of its own.

Owns how content at rest is kept: readable by the shim's user alone, durable when a call returns
(a rollback journal and synchronous=EXTRA: see metering/meter.py for why not WAL), overwritten
when it is deleted. Refuses to know what the tables mean.
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from appliance.errors import StorageError
from appliance.fsops import inherit_owner
from appliance.metering.meter import CACHE_KIB

T = TypeVar("T")


class ContentDatabase:
    """The file `path`, made by `create` at schema version `version` if it is not there.

    `what` is what its errors call the content, `hint` what a caller can do without it. Every
    call raises StorageError if the file cannot be used.
    """

    def __init__(
        self,
        path: Path,
        version: int,
        create: Callable[[sqlite3.Connection], None],
        *,
        what: str,
        hint: str,
    ) -> None:
        self._path = path
        self._version = version
        self._create = create
        self._what = what
        self._hint = hint
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=path.stem)
        try:
            self._connection = self._thread.submit(self._open).result()
        except BaseException:
            self._thread.shutdown()
            raise

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """`work` in one transaction, which is durable on return, or undone if it raises."""

        def guarded() -> T:
            with self._failures(), self._connection as transaction:
                return work(transaction)

        return await asyncio.get_running_loop().run_in_executor(self._thread, guarded)

    def free_bytes(self) -> int:
        """Room on its disk, as the endpoint's user sees it. From any thread."""
        with self._failures():
            return shutil.disk_usage(self._path.parent).free

    async def close(self) -> None:
        """Close the file."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._connection.close)
        self._thread.shutdown()

    def _open(self) -> sqlite3.Connection:
        with self._failures():
            connection = sqlite3.connect(self._path)
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
            return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        self._path.chmod(0o600)
        inherit_owner(self._path)
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA synchronous = EXTRA")
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        # What is deleted is overwritten, not only forgotten.
        connection.execute("PRAGMA secure_delete = ON")
        version = int(connection.execute("PRAGMA user_version").fetchall()[0][0])
        if version > self._version:
            raise StorageError(
                f"{self._path} was written by a newer release",
                hint="run that release, or remove the file",
            )
        if version == self._version:
            return
        with connection as transaction:
            transaction.execute("BEGIN")
            self._create(transaction)
            transaction.execute(f"PRAGMA user_version = {self._version}")

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StorageError(f"{self._what} cannot be used", hint=self._hint) from error


def delete_content(path: Path) -> None:
    """Remove the database `path` and what a crash may have left beside it."""
    path.unlink(missing_ok=True)
    path.with_name(f"{path.name}-journal").unlink(missing_ok=True)

"""The price table: every price there ever was, in SQLite.

Owns one file, apart from the usage database because it is not a projection of anything. A change
is a new version; the table itself refuses to change or delete a row. Rollback journal and
synchronous=EXTRA, as everywhere here.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from appliance.change_counter import ChangeCounter
from appliance.errors import StorageError, UsageError
from appliance.fsops import inherit_owner
from appliance.metering.money import MICRO
from appliance.metering.price import Price, Tariff, no_price

_SCHEMA_VERSION = 1
_BUSY_SECONDS = 30.0
_MOST = 1_000_000 * MICRO
"""A million units for a million tokens: above that it is a typing error."""
_COLUMNS = "version, model, since, input, cached, output, batch_input, batch_cached, batch_output"
_CREATE = (
    "CREATE TABLE prices (version INTEGER PRIMARY KEY AUTOINCREMENT, model TEXT NOT NULL,"
    " since INTEGER NOT NULL, input INTEGER NOT NULL, cached INTEGER NOT NULL,"
    " output INTEGER NOT NULL, batch_input INTEGER NOT NULL, batch_cached INTEGER NOT NULL,"
    " batch_output INTEGER NOT NULL) STRICT",
    "CREATE INDEX prices_by_model ON prices (model, version)",
    "CREATE TRIGGER prices_stay BEFORE UPDATE ON prices"
    " BEGIN SELECT raise(ABORT, 'a price is never edited'); END",
    "CREATE TRIGGER prices_remain BEFORE DELETE ON prices"
    " BEGIN SELECT raise(ABORT, 'a price is never deleted'); END",
)


class PriceTable:
    """Prices in the SQLite file `path`, which is created if it is not there.

    One object belongs to one thread. Every method raises StorageError if the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._in_force: dict[str, Price] = {}
        """By model, of the `_state` of the file."""
        self._state = b""
        with self._failures():
            connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
            self._db = Database(connection, execute_plugins=False)
            try:
                self._prepare()
                self._counter = ChangeCounter(path)
            except BaseException:
                self._db.close()
                raise

    def __enter__(self) -> PriceTable:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._db.close()
        self._counter.close()

    @contextmanager
    def changing(self, model: str, ordinary: Tariff, batch: Tariff) -> Iterator[Price]:
        """A new price for `model`, in force when the context ends without an error.

        So its audit record can be written inside, with its version. Raises UsageError.
        """
        _check(model, ordinary, batch)
        with self._failures():
            self._db.conn.execute("BEGIN IMMEDIATE")
            try:
                self._db.table("prices").insert(
                    {
                        "model": model,
                        "since": int(time.time()),
                        "input": ordinary.input,
                        "cached": ordinary.cached,
                        "output": ordinary.output,
                        "batch_input": batch.input,
                        "batch_cached": batch.cached,
                        "batch_output": batch.output,
                    }
                )
                yield self._prices("WHERE model = ? ORDER BY version DESC LIMIT 1", model)[0]
                self._db.conn.execute("COMMIT")
            except BaseException:
                if self._db.conn.in_transaction:
                    self._db.conn.execute("ROLLBACK")
                raise

    def set(self, model: str, ordinary: Tariff, batch: Tariff | None = None) -> Price:
        """Give `model` a price from now on; batches cost the same if no other is given."""
        with self.changing(model, ordinary, batch or ordinary) as price:
            return price

    def current(self, model: str) -> Price:
        """The price in force; version 0 and free if none was ever set. Not inside `changing`."""
        with self._failures():
            if self._counter.read() != self._state:
                self._read_again()
        return self._in_force.get(model) or no_price(model)

    def _read_again(self) -> None:
        """All prices, and the state while nobody can write: so it is the one that they are of."""
        self._db.conn.execute("BEGIN")
        try:
            self._in_force = {price.model: price for price in self.list()}
            self._state = self._counter.read()
        finally:
            self._db.conn.execute("COMMIT")

    def list(self) -> tuple[Price, ...]:
        """The price in force of each model that has one, by model."""
        newest = "(SELECT max(version) FROM prices GROUP BY model)"
        return self._prices(f"WHERE version IN {newest} ORDER BY model")

    def history(self, model: str) -> tuple[Price, ...]:
        """All versions of a model's price, oldest first."""
        return self._prices("WHERE model = ? ORDER BY version", model)

    def _prices(self, tail: str, *parameters: str) -> tuple[Price, ...]:
        with self._failures():
            rows = self._db.conn.execute(
                f"SELECT {_COLUMNS} FROM prices {tail}",  # noqa: S608
                parameters,
            ).fetchall()
        return tuple(map(_price, rows))

    def _prepare(self) -> None:
        self._db.conn.execute("PRAGMA synchronous = EXTRA")
        if self._version() == _SCHEMA_VERSION:
            return
        self._path.chmod(0o600)
        inherit_owner(self._path)
        self._db.conn.execute("PRAGMA journal_mode = DELETE")
        self._db.conn.execute("BEGIN IMMEDIATE")
        if self._version() != _SCHEMA_VERSION:
            for statement in _CREATE:
                self._db.conn.execute(statement)
            self._db.conn.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        self._db.conn.execute("COMMIT")

    def _version(self) -> int:
        version = int(self._db.conn.execute("PRAGMA user_version").fetchall()[0][0])
        if version > _SCHEMA_VERSION:
            raise StorageError(
                f"{self._path} was written by a newer release",
                hint="run that release, or restore the file from a backup",
            )
        return version

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StorageError(
                f"the prices in {self._path} cannot be used: {error}",
                hint="run the command as root; if it says so again, check the disk",
            ) from error


def _check(model: str, *tariffs: Tariff) -> None:
    if not (model.isprintable() and 0 < len(model) <= 200):
        raise UsageError(f"{model!r} cannot be a model's name", hint="name a model of this node")
    for tariff in tariffs:
        if not all(0 <= price <= _MOST for price in (tariff.input, tariff.cached, tariff.output)):
            raise UsageError(
                "a price is not between 0 and a million", hint="prices are for a million tokens"
            )


def _price(row: tuple[Any, ...]) -> Price:
    version, model, since, *prices = row
    return Price(version, model, since, Tariff(*prices[:3]), Tariff(*prices[3:]))

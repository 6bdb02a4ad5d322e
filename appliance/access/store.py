"""The keys' database.

Owns one SQLite file: a rollback journal and synchronous=EXTRA, so that a commit that returned
survives a power cut and is seen by the next read of every other process. Refuses a file that a
newer release wrote.
"""

from __future__ import annotations

import hmac
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlite_utils import Database

from appliance.access import secret
from appliance.access.keys import KeyInfo, NewKey, new_key
from appliance.errors import ConflictError, NotFoundError, StorageError
from appliance.fsops import inherit_owner

_SCHEMA_VERSION = 1
_BUSY_SECONDS = 5.0
_COLUMNS = "id, name, created, expires, revoked"
_NO_DIGEST = bytes(32)


class KeyStore:
    """API keys in the SQLite file `path`, which is created if it is not there.

    One object belongs to one thread; any number of processes may hold one on the same file.
    Every method raises StorageError if the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._failures():
            connection = sqlite3.connect(path, timeout=_BUSY_SECONDS)
            self._db = Database(connection, recursive_triggers=False, execute_plugins=False)
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def __enter__(self) -> KeyStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def create(self, name: str, *, expires: int | None = None) -> tuple[KeyInfo, str]:
        """Make and store a key; returns it with its secret, which is never shown again."""
        key = new_key(name, expires=expires)
        self.add(key)
        return key.info, key.secret

    def add(self, key: NewKey) -> None:
        """Store `key`; it is valid from now on."""
        info = key.info
        row = {
            "id": info.id,
            "name": info.name,
            "created": info.created,
            "expires": info.expires,
            "revoked": info.revoked,
            "digest": secret.digest(key.secret),
        }
        with self._failures():
            self._db.table("keys").insert(row)

    def list(self) -> tuple[KeyInfo, ...]:
        """Every key there ever was, oldest first."""
        return self._rows("ORDER BY created, rowid", ())

    def get(self, key_id: str) -> KeyInfo:
        """The key `key_id`. Raises NotFoundError."""
        found = self._rows("WHERE id = ?", (key_id,))
        if not found:
            raise NotFoundError(
                f"there is no key with the ID {key_id!r}",
                hint="`appliance keys list` shows the IDs",
            )
        return found[0]

    def revoke(self, key_id: str) -> KeyInfo:
        """Make `key_id` invalid, for good and before this returns.

        Raises NotFoundError, or ConflictError if it is revoked already.
        """
        with self._failures():
            changed = self._db.execute(
                "UPDATE keys SET revoked = ? WHERE id = ? AND revoked IS NULL",
                (int(time.time()), key_id),
            ).rowcount
        info = self.get(key_id)
        if not changed:
            raise ConflictError(f"the key {key_id} was revoked before")
        return info

    def authenticate(self, key: str) -> KeyInfo | None:
        """Who presents `key`; None if it is unknown, expired or revoked.

        Reads the database each time. A wrong secret takes as long as a wrong id, and the
        comparison's time does not depend on where the first difference is.
        """
        key_id = secret.id_of(key)
        if key_id is None:
            return None
        with self._failures():
            # fetchall, so that the statement ends and its read lock with it.
            rows = self._db.conn.execute(
                f"SELECT {_COLUMNS}, digest FROM keys WHERE id = ?",  # noqa: S608
                (key_id,),
            ).fetchall()
        *values, stored = rows[0] if rows else (key_id, "", 0, None, None, _NO_DIGEST)
        if not hmac.compare_digest(secret.digest(key), stored):
            return None
        info = KeyInfo(*values)
        return info if info.state(time.time()) == "active" else None

    def _rows(self, tail: str, parameters: tuple[str, ...]) -> tuple[KeyInfo, ...]:
        with self._failures():
            rows = self._db.execute(f"SELECT {_COLUMNS} FROM keys {tail}", parameters).fetchall()  # noqa: S608
        return tuple(KeyInfo(*row) for row in rows)

    def _prepare(self) -> None:
        self._db.conn.execute("PRAGMA synchronous = EXTRA")
        if self._version() == _SCHEMA_VERSION:
            return
        self._path.chmod(0o600)
        inherit_owner(self._path)
        self._db.conn.execute("PRAGMA journal_mode = DELETE")
        with self._db.conn as transaction:
            # The lock comes first: of two processes that open a new file, one creates the table.
            transaction.execute("BEGIN IMMEDIATE")
            if self._version() != _SCHEMA_VERSION:
                self._db.table("keys").create(
                    {
                        "id": str,
                        "name": str,
                        "created": int,
                        "expires": int,
                        "revoked": int,
                        "digest": bytes,
                    },
                    pk="id",
                    not_null={"name", "created", "digest"},
                    strict=True,
                )
                transaction.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")

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
                f"the keys in {self._path} cannot be used: {error}",
                hint="run the command as root; if it says so again, check the disk",
            ) from error

"""The tables of the keys' database, and the way from each older version to the newest.

Owns `PRAGMA user_version`. Every step runs inside the caller's transaction: a database is of one
version or of the next, also after a power cut. Version 1 is release 0.1's: keys alone.
"""

from __future__ import annotations

import sqlite3

from appliance.access.limits import LIMIT_NAMES
from appliance.access.words import DEFAULT_PROJECT

VERSION = 4


def version_of(connection: sqlite3.Connection) -> int:
    """The version of the open database; 0 is an empty file."""
    return int(connection.execute("PRAGMA user_version").fetchall()[0][0])


def bring_up_to_date(connection: sqlite3.Connection) -> None:
    """Make the newest version of whatever older one is there. Call it inside a transaction."""
    version = version_of(connection)
    if version < 1:
        connection.execute(
            "CREATE TABLE keys (id TEXT PRIMARY KEY, name TEXT NOT NULL, created INTEGER NOT NULL,"
            " expires INTEGER, revoked INTEGER, digest BLOB NOT NULL) STRICT"
        )
    if version < 2:
        _add_projects(connection)
    if version < 3:
        connection.execute("ALTER TABLE keys ADD COLUMN priority INTEGER NOT NULL DEFAULT 0")
    if version < 4:
        connection.execute(
            "CREATE TABLE reserves (subject TEXT NOT NULL, model TEXT NOT NULL,"
            " percent INTEGER NOT NULL, PRIMARY KEY (subject, model)) STRICT"
        )
    connection.execute(f"PRAGMA user_version = {VERSION}")


def _add_projects(connection: sqlite3.Connection) -> None:
    connection.execute(
        "CREATE TABLE projects (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE,"
        " created INTEGER NOT NULL, archived INTEGER, shares_cache INTEGER NOT NULL DEFAULT 0)"
        " STRICT"
    )
    connection.execute(
        "INSERT INTO projects (id, name, created)"
        " SELECT ?, 'default', coalesce(min(created), unixepoch()) FROM keys",
        (DEFAULT_PROJECT,),
    )
    # Lists are lines of text; NULL is no list, which allows everything.
    for column in (
        f"project TEXT NOT NULL DEFAULT '{DEFAULT_PROJECT}'",
        "kind TEXT NOT NULL DEFAULT 'api' CHECK (kind IN ('api', 'admin'))",
        "owner TEXT NOT NULL DEFAULT ''",
        "tags TEXT NOT NULL DEFAULT ''",
        "models TEXT",
        "apis TEXT",
        "lineage TEXT NOT NULL DEFAULT ''",
        "successor TEXT NOT NULL DEFAULT ''",
    ):
        connection.execute(f"ALTER TABLE keys ADD COLUMN {column}")
    connection.execute("UPDATE keys SET lineage = id")
    columns = ", ".join(f"{name} INTEGER" for name in LIMIT_NAMES)
    connection.execute(f"CREATE TABLE limits (subject TEXT PRIMARY KEY, {columns}) STRICT")

"""The tables of files and batches.

    files     one row for each; `ready` when its last byte is there
    parts     their bytes: 256 KiB pieces of an upload, one row for each line of a result
    batches   one row for each; `body` is what callers see, but for the counts
    lines     what became of each line of a batch: at most one row, so at most one result

A result's line and its part come in one transaction; they become a file when the batch ends.
`request` is the id of the request that made it; `settled` says that its RES is known to be durable.
"""

from __future__ import annotations

import sqlite3

VERSION = 1
_TABLES = (
    "CREATE TABLE files (id TEXT PRIMARY KEY, owner TEXT NOT NULL, created INTEGER NOT NULL,"
    " expires INTEGER NOT NULL, name TEXT NOT NULL, purpose TEXT NOT NULL,"
    " bytes INTEGER NOT NULL, ready INTEGER NOT NULL) STRICT",
    "CREATE INDEX files_owner ON files (owner, created)",
    "CREATE TABLE parts (file TEXT NOT NULL, number INTEGER NOT NULL, data BLOB NOT NULL) STRICT",
    "CREATE UNIQUE INDEX parts_of ON parts (file, number)",
    "CREATE TABLE batches (id TEXT PRIMARY KEY, owner TEXT NOT NULL, key_id TEXT NOT NULL,"
    " created INTEGER NOT NULL, ended INTEGER, input TEXT NOT NULL, output TEXT NOT NULL,"
    " errors TEXT NOT NULL, body BLOB NOT NULL) STRICT",
    "CREATE INDEX batches_owner ON batches (owner, created)",
    "CREATE TABLE lines (batch TEXT NOT NULL, number INTEGER NOT NULL, failed INTEGER NOT NULL,"
    " request TEXT NOT NULL, settled INTEGER NOT NULL, prompt INTEGER NOT NULL,"
    " cached INTEGER NOT NULL, generated INTEGER NOT NULL, reasoning INTEGER NOT NULL,"
    " PRIMARY KEY (batch, number)) STRICT, WITHOUT ROWID",
)


def create(db: sqlite3.Connection) -> None:
    """Make them all. Call it inside a transaction."""
    for statement in _TABLES:
        db.execute(statement)

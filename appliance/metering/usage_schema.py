"""The tables of the usage database, and the way from release 0.1's to today's.

An old row becomes what the log's record of it means today: release 0.1 had no projects and no
prices, so its requests belong to the default project and cost nothing. So upgrading and
rebuilding give the same rows.
"""

from __future__ import annotations

import sqlite3

from appliance.access import DEFAULT_PROJECT

VERSION = 2
"""Release 0.1's is 1; it left `user_version` at 0."""


def version_of(connection: sqlite3.Connection) -> int:
    """The version of the open database; 0 is an empty file."""
    version = int(connection.execute("pragma user_version").fetchall()[0][0])
    if version:
        return version
    known = "select count(*) from sqlite_master where name = 'progress'"
    return int(connection.execute(known).fetchall()[0][0])


def bring_up_to_date(connection: sqlite3.Connection) -> None:
    """Make the newest version of whatever older one is there. Call it inside a transaction."""
    if version_of(connection) < 1:
        connection.execute(
            "create table usage ("
            " request_id text primary key, audit_seq integer not null, at integer not null,"
            " key_id text not null, model text not null, route text not null,"
            " prompt_tokens integer not null, cached_tokens integer not null,"
            " completion_tokens integer not null, reasoning_tokens integer not null,"
            " outcome text not null) strict"
        )
        connection.execute(
            "create table progress ("
            " id integer primary key check (id = 0), settled_to integer not null) strict"
        )
        connection.execute("insert into progress values (0, 0)")
    for column in (
        f"project text not null default '{DEFAULT_PROJECT}'",
        "batch integer not null default 0",
        "price integer not null default 0",
        "cost integer not null default 0",
    ):
        connection.execute(f"alter table usage add column {column}")
    connection.execute("create index usage_by_time on usage (at)")
    connection.execute(f"pragma user_version = {VERSION}")

"""The counter of an SQLite file: another number after each commit, the same otherwise."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.change_counter import ChangeCounter
from appliance.errors import StorageError


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    made = sqlite3.connect(tmp_path / "db", isolation_level=None)
    made.execute("CREATE TABLE numbers (number INTEGER)")
    yield made
    made.close()


@pytest.fixture
def counter(connection: sqlite3.Connection, tmp_path: Path) -> Iterator[ChangeCounter]:
    made = ChangeCounter(tmp_path / "db")
    yield made
    connection.close()
    made.close()


def test_each_commit_changes_it_before_it_returns(
    counter: ChangeCounter, connection: sqlite3.Connection
) -> None:
    seen = [counter.read()]
    for number in range(5):
        connection.execute("INSERT INTO numbers VALUES (?)", (number,))
        seen.append(counter.read())
    assert len(set(seen)) == 6


def test_a_commit_of_another_process_changes_it(counter: ChangeCounter, tmp_path: Path) -> None:
    before = counter.read()
    code = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]);" \
           " c.execute('INSERT INTO numbers VALUES (1)'); c.commit()"  # fmt: skip
    subprocess.run([sys.executable, "-c", code, tmp_path / "db"], check=True)
    assert counter.read() != before


def test_reading_and_what_is_taken_back_leave_it(
    counter: ChangeCounter, connection: sqlite3.Connection
) -> None:
    before = counter.read()
    connection.execute("SELECT * FROM numbers").fetchall()
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO numbers VALUES (1)")
    assert counter.read() == before, "nothing is in force yet"
    connection.execute("ROLLBACK")
    assert counter.read() == before


def test_a_file_with_a_wal_is_refused(connection: sqlite3.Connection, tmp_path: Path) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    with pytest.raises(StorageError):
        ChangeCounter(tmp_path / "db")

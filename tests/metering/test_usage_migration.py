"""A usage database of release 0.1 becomes what the log says today."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from appliance.access import DEFAULT_PROJECT
from appliance.errors import StorageError
from appliance.metering import Meter
from tests.conftest import REPOSITORY

GOLDEN = REPOSITORY / "tests/golden/0.1/metering/usage.db"


def test_rows_of_release_0_1_are_in_the_default_project_and_cost_nothing(tmp_path: Path) -> None:
    with Meter(Path(shutil.copy(GOLDEN, tmp_path / "usage.db"))) as meter:
        rows = list(meter.rows())
        assert [row.request_id for row in rows] == [f"req-{i}" for i in range(6)]
        assert {(r.project, r.batch, r.price, r.cost) for r in rows} == {(DEFAULT_PROJECT, 0, 0, 0)}
        assert [row.completion_tokens for row in rows] == [0, 3, 6, 9, 12, 15]
        assert meter.settled_to == 12
        (project,) = meter.report("project")
        assert (project.group, project.requests) == (DEFAULT_PROJECT, 6)


def test_an_upgraded_database_is_a_new_one(tmp_path: Path) -> None:
    old, new = Path(shutil.copy(GOLDEN, tmp_path / "old.db")), tmp_path / "new.db"
    columns = []
    for path in (old, new):
        Meter(path).close()
        with closing(sqlite3.connect(path)) as connection:
            columns.append(connection.execute("pragma table_info(usage)").fetchall())
            assert connection.execute("pragma user_version").fetchone() == (2,)
    assert columns[0] == columns[1]


def test_a_file_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "usage.db")) as connection:
        connection.execute("pragma user_version = 99")
    with pytest.raises(StorageError, match="newer release"):
        Meter(tmp_path / "usage.db")

"""Usage rows that cannot be written are kept, and written when they can be."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from appliance.metering import Meter, UsageRow
from appliance.shim import settler
from appliance.shim.settler import Settler


def row(number: int) -> UsageRow:
    return UsageRow(f"req_{number}", number, 0, "key", "chat", "/v1", 1, 0, 1, 0, "ok")


def written(path: Path) -> list[str]:
    with closing(Meter(path)) as meter:
        return [each.request_id for each in meter.rows()]


@pytest.mark.parametrize("closes", [False, True])
def test_rows_outlast_a_database_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, closes: bool
) -> None:
    monkeypatch.setattr(settler, "RETRY_SECONDS", 60.0 if closes else 0.01)
    path = tmp_path / "usage.db"

    async def scenario() -> None:
        rows = Settler(Meter(path, busy_seconds=0.01))
        with closing(sqlite3.connect(path)) as other:
            other.execute("begin immediate")
            rows.settle(row(1))
            await rows.flush()
            rows.settle(row(2))
            other.rollback()
        if not closes:
            while len(written(path)) < 2:  # noqa: ASYNC110 - another thread writes
                await asyncio.sleep(0.01)
        await rows.close()

    asyncio.run(scenario())
    assert written(path) == ["req_1", "req_2"]


def test_no_more_rows_are_kept_than_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settler, "MOST", 3)
    path = tmp_path / "usage.db"

    async def scenario() -> None:
        rows = Settler(Meter(path, busy_seconds=0.01))
        with closing(sqlite3.connect(path)) as other:
            other.execute("begin immediate")
            for number in range(5):
                rows.settle(row(number))
            await rows.flush()
            other.rollback()
        await rows.close()

    asyncio.run(scenario())
    assert written(path) == ["req_2", "req_3", "req_4"]

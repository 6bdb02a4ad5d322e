"""Usage rows on their way into the database: gathered, and kept while none can be written."""

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
    return UsageRow(f"req_{number}", number, 0, "k", "m", "/r", 1, 0, 1, 0, "ok")


class Counting(Meter):
    """Notes how many rows each transaction had."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.transactions: list[int] = []

    def settle(self, *rows: UsageRow) -> None:
        super().settle(*rows)
        self.transactions.append(len(rows))


def settled(path: Path) -> set[str]:
    with Meter(path) as meter:
        return {kept.request_id for kept in meter.rows()}


def test_rows_that_come_one_after_the_other_share_a_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settler, "GATHER_SECONDS", 3600.0)

    async def scenario() -> list[int]:
        meter = Counting(tmp_path / "usage.db")
        made = Settler(meter)
        for number in range(5):
            made.settle(row(number))
            await asyncio.sleep(0)
        await made.flush()
        assert settled(tmp_path / "usage.db") == {f"req_{n}" for n in range(5)}
        await made.close()
        return meter.transactions

    assert asyncio.run(scenario()) == [5]


def test_whoever_wants_the_rows_does_not_wait_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settler, "GATHER_SECONDS", 3600.0)

    async def scenario() -> None:
        made = Settler(Meter(tmp_path / "usage.db"))
        for number in range(3):
            made.settle(row(number))
            await asyncio.wait_for(made.flush(), 30)
            assert f"req_{number}" in settled(tmp_path / "usage.db")
        made.settle(row(3))
        await asyncio.wait_for(made.close(), 30)
        assert "req_3" in settled(tmp_path / "usage.db")

    asyncio.run(scenario())


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

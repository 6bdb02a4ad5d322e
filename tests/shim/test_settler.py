"""Usage rows on their way into the database."""

from __future__ import annotations

import asyncio
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

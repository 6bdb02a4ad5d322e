"""A price is set, never edited: each change is a new version."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from appliance.errors import StorageError, UsageError
from appliance.metering import PriceTable, Tariff

ONE, TWO = Tariff(280_000, 28_000, 420_000), Tariff(150_000, 75_000, 600_000)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "prices.db"


@pytest.fixture
def table(path: Path) -> Iterator[PriceTable]:
    with PriceTable(path) as made:
        yield made


def test_the_last_version_is_in_force(table: PriceTable) -> None:
    assert table.current("guide").version == 0
    first = table.set("guide", ONE)
    second = table.set("guide", TWO, batch=ONE)
    other = table.set("minilm", ONE)
    assert [p.version for p in (first, second, other)] == [1, 2, 3]
    assert table.current("guide") == second
    assert (second.tariff(batch=False), second.tariff(batch=True)) == (TWO, ONE)
    assert first.tariff(batch=True) == ONE
    assert table.history("guide") == (first, second)
    assert table.list() == (second, other)


def test_a_price_is_neither_edited_nor_deleted(table: PriceTable, path: Path) -> None:
    table.set("guide", ONE)
    with closing(sqlite3.connect(path)) as other:
        for statement in ("UPDATE prices SET input = 0", "DELETE FROM prices"):
            with pytest.raises(sqlite3.IntegrityError, match="never"):
                other.execute(statement)


def test_a_change_that_cannot_be_recorded_is_none(table: PriceTable) -> None:
    def fails() -> None:
        with table.changing("guide", ONE, ONE) as price:
            assert price.version == 1
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert table.current("guide").version == 0
    assert table.set("guide", ONE).version == 1


def test_another_process_sees_a_price_as_soon_as_it_is_set(table: PriceTable, path: Path) -> None:
    with PriceTable(path) as other:
        price = table.set("guide", ONE)
        assert other.current("guide") == price


def test_a_price_that_was_read_is_followed_by_the_next(table: PriceTable, path: Path) -> None:
    assert table.current("chat").version == 0
    with closing(PriceTable(path)) as other:
        for cost in (1, 2, 3):
            price = other.set("chat", Tariff(cost, cost, cost))
            assert table.current("chat") == table.current("chat") == price
    assert table.current("another").version == 0


def test_prices_that_are_none_are_refused(table: PriceTable) -> None:
    for tariff in (Tariff(-1, 0, 0), Tariff(0, 0, 10**13)):
        with pytest.raises(UsageError):
            table.set("guide", tariff)
    with pytest.raises(UsageError):
        table.set("", ONE)
    assert table.list() == ()


def test_the_file_is_the_owners_alone(table: PriceTable, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_of_a_newer_release_and_one_that_is_no_database_are_typed_errors(
    tmp_path: Path,
) -> None:
    newer = tmp_path / "newer.db"
    with closing(sqlite3.connect(newer)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StorageError, match="newer release"):
        PriceTable(newer)
    other = tmp_path / "other.db"
    other.write_bytes(b"not a database" * 100)
    with pytest.raises(StorageError):
        PriceTable(other)

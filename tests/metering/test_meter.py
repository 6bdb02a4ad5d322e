"""The usage database settles each request once and sums exactly."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import StorageError
from appliance.metering import Filter, Meter, ReportRow, Spent, UsageRow
from tests.conftest import REPOSITORY

ROW = UsageRow(
    request_id="req-0",
    audit_seq=1,
    at=1_795_392_000,
    key_id="key-1",
    model="guide",
    route="/v1/chat/completions",
    prompt_tokens=10,
    cached_tokens=4,
    completion_tokens=3,
    reasoning_tokens=1,
    outcome="ok",
)
DAY = 86_400


@pytest.fixture
def meter(tmp_path: Path) -> Iterator[Meter]:
    with Meter(tmp_path / "usage.db") as meter:
        yield meter


def numbered(i: int, **changes: object) -> UsageRow:
    return replace(ROW, request_id=f"req-{i}", audit_seq=2 * i + 1, **changes)  # type: ignore[arg-type]


def test_a_request_is_settled_once(meter: Meter) -> None:
    meter.settle(ROW)
    meter.settle(ROW, replace(ROW, completion_tokens=99))
    assert list(meter.rows()) == [ROW]


def test_settling_nothing_is_nothing(meter: Meter) -> None:
    meter.settle()
    assert meter.report() == []


def test_reports_sum_by_key_model_and_day(meter: Meter) -> None:
    meter.settle(
        numbered(0),
        numbered(1, key_id="key-2", completion_tokens=50, at=ROW.at - 1),
        numbered(2, model="minilm", completion_tokens=0, at=ROW.at + DAY),
    )
    assert meter.report("key") == [
        ReportRow("key-2", 1, 10, 4, 50, 1, 0),
        ReportRow("key-1", 2, 20, 8, 3, 2, 0),
    ]
    assert [row.group for row in meter.report("model")] == ["guide", "minilm"]
    assert [(row.group, row.requests) for row in meter.report("day")] == [
        ("2026-11-22", 1),
        ("2026-11-23", 1),
        ("2026-11-24", 1),
    ]


def test_a_report_ends_where_it_is_told_to(meter: Meter) -> None:
    meter.settle(*(numbered(i, at=ROW.at + i * DAY, cost=10**i, project=f"p{i}") for i in range(4)))
    since, until = ROW.at + DAY, ROW.at + 3 * DAY
    days = meter.report("day", since=since, until=until)
    assert [(row.group, row.cost) for row in days] == [("2026-11-24", 10), ("2026-11-25", 100)]
    assert [row.group for row in meter.report("project", until=since)] == ["p0"]
    assert [row.cost for row in meter.report("model", since=since)] == [1110]


def test_what_was_spent_is_told_by_key_project_and_day(meter: Meter) -> None:
    meter.settle(
        numbered(0, cost=5),
        numbered(1, cost=6),
        numbered(2, cost=7, at=ROW.at + DAY, key_id="key-2", project="p"),
        numbered(3, cost=8, at=ROW.at - 1),
    )
    day = ROW.at // DAY
    assert meter.spent(ROW.at) == [
        Spent("key-1", "proj_default", day, 26, 11),
        Spent("key-2", "p", day + 1, 13, 7),
    ]


def test_buckets_sum_what_is_in_them(meter: Meter) -> None:
    meter.settle(
        numbered(0, cost=1),
        numbered(1, cost=2, key_id="key-2"),
        numbered(2, cost=4, at=ROW.at + 3600),
        numbered(3, cost=8, at=ROW.at + DAY, batch=1),
        numbered(4, cost=16, route="/v1/embeddings"),
    )
    hours = meter.buckets(Filter(ROW.at, ROW.at + DAY, 3600, embeddings=False))
    assert [(row.start, row.requests, row.cost) for row in hours] == [
        (ROW.at, 2, 3),
        (ROW.at + 3600, 1, 4),
    ]
    by_key = meter.buckets(
        Filter(0, 2**40, DAY, group_by=("key_id", "batch"), only={"model": ["guide"]})
    )
    assert [(row.start, dict(row.group), row.cost) for row in by_key] == [
        (ROW.at, {"key_id": "key-1", "batch": 0}, 21),
        (ROW.at, {"key_id": "key-2", "batch": 0}, 2),
        (ROW.at + DAY, {"key_id": "key-1", "batch": 1}, 8),
    ]
    assert [row.cost for row in meter.buckets(Filter(0, 2**40, DAY, embeddings=True))] == [16]
    assert meter.buckets(Filter(0, 2**40, DAY, only={"project": ["nobody"]})) == []


def test_what_own_keys_asked_is_no_keys_and_no_projects_and_comes_last(meter: Meter) -> None:
    meter.settle(
        numbered(0, cost=1, key_id="own-1"),
        numbered(1, cost=2, key_id="own-2", model="minilm"),
        numbered(2, cost=4),
        numbered(3, cost=8, project="p"),
        numbered(4, cost=16, key_id="own-1", at=ROW.at + DAY),
    )
    every = Filter(0, 2**40, DAY, own=["own-1", "own-2"])
    both = meter.buckets(replace(every, group_by=("project", "key_id")))
    assert [(row.start, *row.group.values(), row.cost) for row in both] == [
        (ROW.at, "p", "key-1", 8),
        (ROW.at, "proj_default", "key-1", 4),
        (ROW.at, "", "", 3),
        (ROW.at + DAY, "", "", 16),
    ]
    theirs = replace(every, only={"project": ["proj_default"]})
    assert [row.cost for row in meter.buckets(theirs)] == [4]
    one = replace(every, only={"key_id": ["own-2"]})
    assert [row.cost for row in meter.buckets(one)] == [2]
    report = meter.report("project", own=every.own)
    assert {row.group: row.cost for row in report} == {"p": 8, "proj_default": 4, "": 19}


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2**40)), max_size=60))
def test_sums_equal_those_of_the_first_row_of_each_request(pairs: list[tuple[int, int]]) -> None:
    first: dict[int, int] = {}
    with Meter(Path(":memory:")) as meter:
        for i, tokens in pairs:
            first.setdefault(i, tokens)
            meter.settle(numbered(i, completion_tokens=tokens))
        report = meter.report("model")
    assert sum(row.completion_tokens for row in report) == sum(first.values())
    assert sum(row.requests for row in report) == len(first)


def test_rows_survive_reopening(tmp_path: Path, meter: Meter) -> None:
    meter.settle(ROW)
    meter.mark_settled(7)
    meter.mark_settled(5)
    meter.close()
    with Meter(tmp_path / "usage.db") as again:
        assert list(again.rows()) == [ROW]
        assert again.settled_to == 7


def test_a_commit_is_flushed_through_a_rollback_journal(tmp_path: Path, meter: Meter) -> None:
    meter.settle(ROW)
    with closing(sqlite3.connect(tmp_path / "usage.db")) as other:
        assert other.execute("pragma journal_mode").fetchone() == ("delete",)
    assert {path.name for path in tmp_path.iterdir()} == {"usage.db"}


def test_a_file_that_is_no_database_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "usage.db").write_bytes(b"not a database" * 100)
    with pytest.raises(StorageError) as caught:
        Meter(tmp_path / "usage.db")
    assert "usage rebuild" in caught.value.hint


def test_a_database_held_by_another_is_a_typed_error(tmp_path: Path) -> None:
    Meter(tmp_path / "usage.db").close()
    with closing(sqlite3.connect(tmp_path / "usage.db", isolation_level=None)) as holder:
        holder.execute("begin exclusive")
        with pytest.raises(StorageError, match="locked"):
            Meter(tmp_path / "usage.db", busy_seconds=0.05)


def test_two_processes_settle_into_one_database(tmp_path: Path) -> None:
    path = tmp_path / "usage.db"
    Meter(path).close()
    script = (
        "import sys; from pathlib import Path; from appliance.metering import Meter;"
        "from tests.metering.test_meter import numbered\n"
        "with Meter(Path(sys.argv[1]), busy_seconds=300) as meter:\n"
        "    for i in range(int(sys.argv[2]), 60, 2): meter.settle(numbered(i), numbered(i + 1))"
    )
    command = [sys.executable, "-c", script, str(path)]
    processes = [subprocess.Popen([*command, start], cwd=REPOSITORY) for start in ("0", "1")]
    assert [process.wait(300) for process in processes] == [0, 0]
    with Meter(path) as meter:
        assert [row.request_id for row in meter.rows()] == [f"req-{i}" for i in range(61)]

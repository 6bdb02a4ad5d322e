"""`appliance prices …` and `appliance usage …`: what they print, record and refuse."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from appliance.access import KeyStore
from appliance.audit import AuditLog, create_signer, read_events
from appliance.audit.event import Admin, Event, Request, Response, Tokens
from appliance.config import AuditSettings, Layout
from appliance.errors import NotFoundError, UsageError
from installer.cli.app import app
from installer.cli.chart import bar, bars


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A node with a log and no usage."""
    layout = Layout(tmp_path)
    for directory in (layout.audit, layout.access, layout.metering):
        directory.mkdir(parents=True)
    create_signer(layout.audit_key, "test")
    return layout


def run(layout: Layout, *arguments: str) -> str:
    result = CliRunner().invoke(app, [*arguments, "--root", str(layout.root)])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def run_json(layout: Layout, *arguments: str) -> Any:
    return json.loads(run(layout, *arguments, "--json"))


def served(layout: Layout) -> str:
    """Three requests of one key and one of another, over two days; returns the key's id."""
    with KeyStore(layout.keys_db) as keys:
        key, _ = keys.create("crm")

    def events() -> Iterator[Event]:
        for i, key_id in enumerate([key.id, key.id, key.id, "gone"]):
            who: dict[str, Any] = {"key_id": key_id, "route": "/v1", "model": "guide"}
            yield Request(request_id=f"r{i}", **who)
            yield Response(
                request_id=f"r{i}",
                outcome="ok",
                t_utc=f"2026-11-{23 + i // 2}T12:00:00.000000Z",
                tokens=Tokens(prompt=100, cached=50, generated=10 * (i + 1)),
                price=1,
                cost=250_000 * (i + 1),
                **who,
            )

    with AuditLog.open(layout.audit, layout.audit_key, AuditSettings()) as log:
        log.append(list(events()))
    return key.id


def test_a_price_is_set_listed_shown_and_recorded(layout: Layout) -> None:
    assert "No model has a price" in run(layout, "prices", "list")
    first = run_json(
        layout, "prices", "set", "guide",
        "--input", "0.28", "--cached", "0.028", "--output", "0.42",
    )  # fmt: skip
    assert (first["version"], first["input"], first["cached"]) == (1, 280_000, 28_000)
    assert (first["batch_input"], first["batch_cached"]) == (280_000, 28_000)
    second = run_json(
        layout, "prices", "set", "guide",
        "--input", "0.30", "--output", "1.20", "--batch-input", "0.15", "--batch-output", "0.60",
    )  # fmt: skip
    assert (second["version"], second["cached"]) == (2, 300_000)
    assert (second["batch_cached"], second["batch_output"]) == (150_000, 600_000)
    assert run_json(layout, "prices", "list")["prices"] == [second]
    history = run_json(layout, "prices", "show", "guide")
    assert (history["currency"], history["prices"]) == ("USD", [first, second])
    assert "0.028" in run(layout, "prices", "show", "guide")
    records = [e for _, e in read_events(layout.audit) if isinstance(e, Admin)]
    assert [(r.action, r.target, r.version) for r in records] == [
        ("prices.set", "guide", "1"),
        ("prices.set", "guide", "2"),
    ]
    assert records[0].reason == "0.28/0.028/0.42 batch 0.28/0.028/0.42"


def test_a_price_of_a_model_that_is_not_there_is_set_with_a_note(layout: Layout) -> None:
    words = ["prices", "set", "giude", "--input", "1", "--output", "1", "--root", str(layout.root)]
    done = CliRunner().invoke(app, words)
    assert "giude has price version 1" in done.stdout
    assert "note: no model on this node is called 'giude' yet" in done.stderr


def test_a_price_that_cannot_be_recorded_is_not_set(layout: Layout) -> None:
    (layout.audit_key / "audit.key").unlink()
    with pytest.raises(NotFoundError):
        run(layout, "prices", "set", "guide", "--input", "1", "--output", "1")
    assert run_json(layout, "prices", "list")["prices"] == []


def test_wrong_prices_and_unknown_models_are_typed_errors(layout: Layout) -> None:
    with pytest.raises(UsageError):
        run(layout, "prices", "set", "guide", "--input", "1e3", "--output", "1")
    with pytest.raises(NotFoundError, match="no price"):
        run(layout, "prices", "show", "guide")
    with pytest.raises(NotFoundError, match="no prices"):
        run(Layout(layout.root / "elsewhere"), "prices", "list")


def test_a_report_has_names_and_cost(layout: Layout) -> None:
    key = served(layout)
    table = run(layout, "usage", "report")
    assert key in table
    assert "crm" in table
    assert "1.50" in table
    assert "cost USD" in table
    rows = run_json(layout, "usage", "report")["rows"]
    assert [(r["group"], r["name"], r["requests"], r["cost"]) for r in rows] == [
        (key, "crm", 3, 1_500_000),
        ("gone", "gone", 1, 1_000_000),
    ]
    by_project = run_json(layout, "usage", "report", "--by", "project")["rows"]
    assert [(r["name"], r["cost"]) for r in by_project] == [("default", 2_500_000)]


def test_a_report_of_some_days(layout: Layout) -> None:
    served(layout)
    days = run_json(layout, "usage", "report", "--by", "day", "--since", "2026-11-24")["rows"]
    assert [(r["group"], r["cost"]) for r in days] == [("2026-11-24", 1_750_000)]
    assert run_json(layout, "usage", "report", "--until", "2026-11-23")["rows"] == []
    with pytest.raises(UsageError, match="not a day"):
        run(layout, "usage", "report", "--since", "yesterday")
    with pytest.raises(UsageError, match="nothing lies between"):
        run(layout, "usage", "report", "--since", "2026-12-01", "--until", "2026-11-01")


def test_csv_and_json_say_the_same(layout: Layout) -> None:
    served(layout)
    text = run(layout, "usage", "report", "--by", "day", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    told = json.loads(run(layout, "usage", "report", "--by", "day", "--format", "json"))
    assert [r["day"] for r in rows] == [r["group"] for r in told["rows"]]
    assert [r["cost"] for r in rows] == ["0.750000", "1.750000"]
    assert [int(r["completion_tokens"]) for r in rows] == [
        r["completion_tokens"] for r in told["rows"]
    ]
    assert {r["currency"] for r in rows} == {told["currency"]} == {"USD"}


def test_a_chart_draws_cost_or_tokens(layout: Layout) -> None:
    served(layout)
    assert "No request" in run(layout, "usage", "report", "--chart", "--until", "2026-01-01")
    chart = run(layout, "usage", "report", "--chart")
    assert chart.startswith("cost, USD")
    assert "█" in chart
    assert "1.50" in chart
    with pytest.raises(UsageError, match="chart"):
        run(layout, "usage", "report", "--chart", "--format", "csv")


def test_a_rebuild_reproduces_cost(layout: Layout) -> None:
    served(layout)
    before = run_json(layout, "usage", "report", "--by", "key")
    layout.usage_db.unlink()
    assert run_json(layout, "usage", "rebuild") == {"requests": 4}
    assert run_json(layout, "usage", "report", "--by", "key") == before


def test_bars_are_in_proportion_and_nothing_is_nothing() -> None:
    assert bar(0, 10, 8) == ""
    assert bar(10, 10, 8) == "█" * 8
    assert bar(5, 10, 8) == "█" * 4
    assert bar(1, 10**6, 8) == "▏", "what is not nothing shows"
    assert bar(3, 64, 8) == "▍"
    lines = bars([("a", 10, "10"), ("long", 0, "0")], 30)
    assert {len(line) for line in lines} == {30}
    assert bars([], 30) == []

"""Pruning the log loses no bill: what is pruned is settled first, and rebuilding keeps it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from appliance.audit.log import AuditLog
from appliance.audit.reader import first_record
from appliance.audit.signer import create_signer
from appliance.config import AuditSettings, Layout
from appliance.metering import Meter, prune_settled, rebuild
from tests.audit.sample import assert_verifies, exchange, open_log
from tests.fakes.command import run_command


def test_pruned_requests_stay_in_the_usage_database(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.metering.mkdir(parents=True)
    with open_log(tmp_path) as log:
        log.append([event for i in range(400) for event in exchange(i)])
        assert prune_settled(log, layout, days=0.0) == 768
        log.append(exchange("after"))
        log.checkpoint()
    assert first_record(tmp_path / "audit") == 768
    assert_verifies(tmp_path)
    with Meter(layout.usage_db) as meter:
        assert len(list(meter.rows())) == 400
        assert rebuild(meter, tmp_path / "audit") == 401
        assert [row.audit_seq for row in meter.rows()][:3] == [1, 3, 5]


def test_a_database_lost_after_pruning_is_told_and_not_taken_for_whole(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    create_signer(layout.audit_key, "node.example/audit")
    layout.metering.mkdir(parents=True)
    report = ["usage", "report", "--root", str(tmp_path), "--json"]
    with AuditLog.open(layout.audit, layout.audit_key, AuditSettings()) as log:
        log.append([event for i in range(400) for event in exchange(i)])
        assert run_command(*report).stderr == ""
        assert prune_settled(log, layout, days=0.0) == 768
    assert run_command(*report).stderr == ""
    layout.usage_db.unlink()
    done = run_command(*report)
    assert json.loads(done.stdout)["rows"][0]["requests"] == 16
    assert "first 768 records were pruned" in done.stderr
    assert "it was lost" in run_command("usage", "rebuild", "--root", str(tmp_path)).stderr


def test_nothing_younger_is_pruned(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.metering.mkdir(parents=True)
    with open_log(tmp_path) as log:
        log.append([event for i in range(400) for event in exchange(i)])
        assert prune_settled(log, layout, days=1.0) == 0
    assert_verifies(tmp_path)


def test_content_sealed_on_earlier_days_is_erased(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.metering.mkdir(parents=True)
    today = datetime.now(UTC).date()
    for age in (0, 1, 29, 30, 31, 400):
        day = layout.audit_content / f"{today - timedelta(days=age):%Y%m%d}"
        day.mkdir(parents=True)
        (day / "req-1.asked").touch()
    with open_log(tmp_path) as log:
        prune_settled(log, layout, days=30.0)
    ages = sorted(
        (today - datetime.strptime(path.name, "%Y%m%d").date()).days
        for path in layout.audit_content.iterdir()
    )
    assert ages[:3] == [0, 1, 29]
    assert set(ages[3:]) <= {30, 31}, "midnight may pass meanwhile"

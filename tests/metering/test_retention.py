"""Pruning the log loses no bill: what is pruned is settled first, and rebuilding keeps it."""

from __future__ import annotations

from pathlib import Path

from appliance.audit.reader import first_record
from appliance.metering import Meter, prune_settled, rebuild
from tests.audit.sample import assert_verifies, exchange, open_log


def test_pruned_requests_stay_in_the_usage_database(tmp_path: Path) -> None:
    usage = tmp_path / "usage.db"
    with open_log(tmp_path) as log:
        log.append([event for i in range(400) for event in exchange(i)])
        assert prune_settled(log, usage, days=0.0) == 768
        log.append(exchange("after"))
        log.checkpoint()
    assert first_record(tmp_path / "audit") == 768
    assert_verifies(tmp_path)
    with Meter(usage) as meter:
        assert len(list(meter.rows())) == 400
        assert rebuild(meter, tmp_path / "audit") == 401
        assert [row.audit_seq for row in meter.rows()][:3] == [1, 3, 5]


def test_nothing_younger_is_pruned(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.append([event for i in range(400) for event in exchange(i)])
        assert prune_settled(log, tmp_path / "usage.db", days=1.0) == 0
    assert_verifies(tmp_path)

"""A service that systemd gave up is said to have failed, with the way out."""

from __future__ import annotations

import pytest

from installer.failures import failure_of
from installer.units import SHIM_UNIT


@pytest.mark.parametrize("active", ["active", "inactive", "activating", "reloading"])
def test_a_service_that_runs_starts_or_was_stopped_has_not_failed(active: str) -> None:
    assert failure_of(SHIM_UNIT, active, "running", "success") is None


def test_a_service_that_was_started_too_often_says_how_to_start_it() -> None:
    failure = failure_of(SHIM_UNIT, "failed", "failed", "start-limit-hit")
    assert failure
    assert (failure.service, failure.result) == ("appliance-shim", "start-limit-hit")
    assert "five times in five minutes" in failure.message
    assert "`systemctl reset-failed appliance-engine appliance-shim`" in failure.hint
    assert failure.hint.endswith("`systemctl start appliance.target`")


def test_a_service_that_failed_otherwise_does_not_blame_the_limit() -> None:
    failure = failure_of(SHIM_UNIT, "failed", "failed", "exit-code")
    assert failure
    assert failure.message == "appliance-shim failed (exit-code) and stays down"


def test_a_service_that_is_started_again_and_again_says_so() -> None:
    failure = failure_of(SHIM_UNIT, "activating", "auto-restart", "exit-code")
    assert failure
    assert "is being started again" in failure.message
    assert "journalctl -u appliance-shim" in failure.hint

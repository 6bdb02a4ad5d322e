"""A short soak: everything that the half hour of scripts/soak does, but for growth."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conftest import BuildOnce
from tests.power.machine import EXT4, require
from tests.soak.ground import build_models
from tests.soak.report import lines
from tests.soak.soak import Course, soak

COURSE = Course(
    seconds=70.0,
    every=8.0,
    rate=6.0,
    faults=(
        "engine killed",
        "disk full",
        "endpoint killed",
        "flushes fail",
        "keys revoked under load",
        "flood of connections",
    ),
    judge_growth=False,
)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_minute_of_load_and_faults_leaves_nothing_wrong_and_nothing_lost(
    build_once: BuildOnce, record_property: Callable[[str, object], None]
) -> None:
    require(EXT4)
    outcome = soak(build_once("soak-models", build_models), COURSE, lambda _: None)
    record_property("measured", f"soak: {lines(outcome)[0]}")
    assert outcome.faults == []
    assert outcome.counted.compared > 100
    assert outcome.batches
    assert len(outcome.windows) == len(outcome.strikes)

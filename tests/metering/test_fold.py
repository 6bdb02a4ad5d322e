"""Billing is fold(log): the database is what the audit log says, however it came about."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.audit.event import Event, Heartbeat, Outcome, Reject, Request, Response, Tokens
from appliance.audit.log import AuditLog
from appliance.config import AuditSettings
from appliance.errors import AuditError
from appliance.metering import Meter, UsageRow, catch_up, rebuild, usage_row
from tests.audit.sample import exchange, open_log, request

OUTCOMES: tuple[Outcome, ...] = ("ok", "ok", "cancelled", "error")
SMALL = AuditSettings(segment_bytes=65_536)


@pytest.fixture
def open_meter(tmp_path: Path) -> Iterator[Callable[[str], Meter]]:
    """`open_meter(name)`: a usage database beside the log, closed at the end."""
    with ExitStack() as stack:
        yield lambda name: stack.enter_context(Meter(tmp_path / f"{name}.db"))


def traffic(rng: random.Random, start: int, count: int) -> list[Event]:
    """Records as a shim writes them: requests, refusals, silence."""
    events: list[Event] = []
    for i in range(start, start + count):
        key, model = f"key-{rng.randrange(3)}", rng.choice(["guide", "minilm"])
        counts = [rng.randrange(1000) for _ in range(3)]
        tokens = Tokens(prompt=counts[0], cached=counts[1], generated=counts[2], reasoning=1)
        name, route = f"req-{i}", "/v1"
        events.append(Request(request_id=name, key_id=key, route=route, model=model))
        if rng.random() < 0.1:
            events.append(Reject(request_id=f"no-{i}", route="/v1", status=429, code="limit"))
        ended = Response(
            request_id=name,
            key_id=key,
            route=route,
            model=model,
            outcome=rng.choice(OUTCOMES),
            tokens=tokens,
            tenant=rng.choice(["", "proj_search"]),
            price=rng.randrange(3),
            cost=rng.randrange(10**6),
            batch=rng.random() < 0.2,
        )
        events.append(ended)
    return [*events, Heartbeat()]


def live_rows(log: AuditLog, events: list[Event]) -> list[UsageRow]:
    """The rows that the shim settles while it serves."""
    rows = [usage_row(seq, event) for seq, event in zip(log.append(events), events, strict=True)]
    return [row for row in rows if row is not None]


def test_the_rebuilt_database_is_the_live_one(
    tmp_path: Path, open_meter: Callable[[str], Meter]
) -> None:
    rng = random.Random(3)
    live, rebuilt = open_meter("live"), open_meter("rebuilt")
    with open_log(tmp_path, SMALL) as log:
        for i in range(30):
            live.settle(*live_rows(log, traffic(rng, 20 * i, 20)))
            if i % 4 == 0:
                log.checkpoint()
        assert rebuild(rebuilt, tmp_path / "audit") == 600
        assert rebuilt.settled_to == log.size
    assert list(rebuilt.rows()) == list(live.rows())
    for by in ("key", "project", "model", "day"):
        assert rebuilt.report(by) == live.report(by)
        assert sum(row.cost for row in live.report(by)) == sum(row.cost for row in live.rows())


def test_rows_lost_in_a_crash_are_caught_up(
    tmp_path: Path, open_meter: Callable[[str], Meter]
) -> None:
    rng = random.Random(4)
    live, full = open_meter("live"), open_meter("full")
    with open_log(tmp_path, SMALL) as log:
        for i in range(12):
            rows = live_rows(log, traffic(rng, 20 * i, 20))
            live.settle(*rng.sample(rows, 15))  # what a crash may leave: any subset
            if i % 5 == 4:
                log.checkpoint()
                catch_up(live, tmp_path / "audit")
                assert live.settled_to == log.size
        catch_up(live, tmp_path / "audit")
        assert catch_up(live, tmp_path / "audit") == 0
    rebuild(full, tmp_path / "audit")
    assert list(live.rows()) == list(full.rows())


def test_an_aborted_request_is_billed_nothing_and_counted(
    tmp_path: Path, open_meter: Callable[[str], Meter]
) -> None:
    with open_log(tmp_path) as log:
        log.append([request("lost")])
        log.recover()
    meter = open_meter("usage")
    rebuild(meter, tmp_path / "audit")
    [row] = meter.rows()
    assert (row.request_id, row.outcome, row.completion_tokens) == ("req-lost", "aborted", 0)


def test_a_rebuild_from_a_damaged_log_leaves_the_old_content(
    tmp_path: Path, open_meter: Callable[[str], Meter]
) -> None:
    meter = open_meter("usage")
    with open_log(tmp_path) as log:
        log.append(exchange("a"))
        log.checkpoint()
    rebuild(meter, tmp_path / "audit")
    before = list(meter.rows())
    path = tmp_path / "audit/tile/entries/000.p/2"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(AuditError):
        rebuild(meter, tmp_path / "audit")
    assert list(meter.rows()) == before
    assert meter.settled_to == 2


@settings(max_examples=30)
@given(st.integers(0, 2**53), st.integers(0, 2**53), st.sampled_from(OUTCOMES))
def test_a_row_takes_every_figure_from_its_record(
    prompt: int, generated: int, outcome: Outcome
) -> None:
    event = Response(
        request_id="r",
        key_id="k",
        route="/v1",
        model="m",
        outcome=outcome,
        t_utc="2026-11-23T00:00:00.999999Z",
        tokens=Tokens(prompt=prompt, cached=2, generated=generated, reasoning=3, delivered=1),
        tenant="proj_a",
        price=4,
        cost=generated,
        batch=True,
    )
    assert usage_row(9, event) == UsageRow(
        "r", 9, 1_795_392_000, "k", "m", "/v1", prompt, 2, generated, 3, outcome,
        project="proj_a", batch=1, price=4, cost=generated,
    )  # fmt: skip


def test_only_a_response_is_a_row() -> None:
    assert usage_row(0, request("a")) is None
    assert usage_row(0, Heartbeat()) is None

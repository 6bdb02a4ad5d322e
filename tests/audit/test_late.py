"""What was refused while the log failed is closed exactly once when it works again."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from appliance.audit.event import Response
from appliance.audit.log import AuditLog
from appliance.audit.reader import read_events
from appliance.audit.writer import AuditWriter
from appliance.config import AuditSettings
from appliance.errors import AuditUnavailableError
from tests.audit.sample import assert_verifies, open_log, request, response
from tests.audit.test_writer import eventually

SETTINGS = AuditSettings(checkpoint_seconds=0.05)
both_ways = pytest.mark.parametrize("kept", [False, True], ids=["cut off", "kept"])
"""Whether the disk kept what it said not to have written."""


@contextmanager
def failing_flush(monkeypatch: pytest.MonkeyPatch, *, kept: bool) -> Iterator[list[str]]:
    """No flush is acknowledged; if `kept`, nothing can be cut off either. Gives what has failed."""
    failed: list[str] = []

    def failing(name: str) -> Callable[..., None]:
        def fail(*_: object) -> None:
            failed.append(name)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        return fail

    with monkeypatch.context() as patch:
        # What was patched first is put back last: nothing is cut off while a flush still fails.
        for name in (*(["ftruncate"] if kept else []), "fdatasync", "fsync"):
            patch.setattr(os, name, failing(name))
        yield failed


async def published(log: AuditLog) -> None:
    """Nothing is being written: what fails from now on is what is recorded next, not a checkpoint,
    after which nothing would reach the disk."""
    await eventually(lambda: log.published.size == log.size)


def responses(base: Path) -> list[Response]:
    return [event for _, event in read_events(base / "audit") if isinstance(event, Response)]


@both_ways
def test_a_refused_request_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    async def scenario(log: AuditLog) -> None:
        async with AuditWriter(log, SETTINGS) as writer:
            await writer.record(request("before"))
            await writer.record(response("before"))
            await published(log)
            with failing_flush(monkeypatch, kept=kept), pytest.raises(AuditUnavailableError):
                await writer.record(request("a"))
            await eventually(lambda: writer.available)
            await published(log)  # before, nobody knows of what the disk kept that it is open
            await eventually(lambda: not log.open_requests())
            await published(log)

    with open_log(tmp_path) as log:
        asyncio.run(scenario(log))
    report = assert_verifies(tmp_path)
    assert report.open_requests == 0
    closed = {r.request_id: (r.outcome, r.status, r.code) for r in responses(tmp_path)}
    expected: dict[str, tuple[str, int, str]] = {"req-before": ("ok", 200, "")}
    if kept:
        expected["req-a"] = ("error", 503, "audit_unavailable")
    assert closed == expected


@both_ways
def test_the_end_of_a_request_is_recorded_once_when_the_log_works_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    async def scenario(log: AuditLog) -> int | None:
        async with AuditWriter(log, SETTINGS) as writer:
            await writer.record(request("a"))
            await published(log)
            with failing_flush(monkeypatch, kept=kept) as failed:
                with pytest.raises(AuditUnavailableError):
                    await writer.record(response("a"))
                late = asyncio.create_task(writer.record_late(response("a")))
                await eventually(lambda: failed.count("fsync") >= 2)  # attempts to go on
                assert not late.done()
            return await late

    with open_log(tmp_path) as log:
        seq = asyncio.run(scenario(log))
    assert assert_verifies(tmp_path).open_requests == 0
    (found,) = responses(tmp_path)
    assert found.tokens == response("a").tokens
    assert seq == (None if kept else found.seq)


def test_what_is_refused_again_while_it_is_made_up_for_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(log: AuditLog) -> None:
        async with AuditWriter(log, SETTINGS) as writer:
            names = range(20)
            for name in names:
                await writer.record(request(name))
            late = []
            for name in names:
                with failing_flush(monkeypatch, kept=bool(name % 2)):
                    with suppress(AuditUnavailableError):
                        await writer.record(response(name))
                    late.append(asyncio.create_task(writer.record_late(response(name))))
                    await asyncio.sleep(0.02)
                await asyncio.sleep(0.02 * (name % 4))
            await asyncio.gather(*late)

    with open_log(tmp_path) as log:
        asyncio.run(scenario(log))
    report = assert_verifies(tmp_path)
    assert (report.open_requests, report.records["RES"]) == (0, 20)


def test_closing_gives_up_what_is_owed_and_the_next_start_closes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(log: AuditLog) -> None:
        async with AuditWriter(log, SETTINGS) as writer:
            await writer.record(request("a"))
            with failing_flush(monkeypatch, kept=False):
                late = asyncio.create_task(writer.record_late(response("a")))
                with pytest.raises(AuditUnavailableError):
                    await writer.record(response("a"))
                await writer.close()
        with pytest.raises(AuditUnavailableError):
            await late
        with pytest.raises(AuditUnavailableError):
            await writer.record_late(response("a"))

    with open_log(tmp_path) as log:
        asyncio.run(scenario(log))
    with open_log(tmp_path) as log:
        assert log.recover() == 1
    assert assert_verifies(tmp_path).open_requests == 0
    assert [r.outcome for r in responses(tmp_path)] == ["aborted"]

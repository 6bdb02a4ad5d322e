"""The asyncio writer: order, group commit, fail closed, resume by itself."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.audit.admin import admin_event
from appliance.audit.event import Admin, Heartbeat, Reject, Request
from appliance.audit.log import AuditLog
from appliance.audit.reader import read_events
from appliance.audit.room import BALLAST_NAME, Room
from appliance.audit.signer import create_signer
from appliance.audit.writer import AuditWriter
from appliance.config import AuditSettings, Layout
from appliance.errors import AuditUnavailableError
from tests.audit.sample import ORIGIN, assert_verifies, exchange, open_log, request, response

SETTINGS = AuditSettings(checkpoint_seconds=0.05)


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not condition():  # noqa: ASYNC110 - what is awaited happens in other threads
            await asyncio.sleep(0.01)


def reject(name: str) -> Reject:
    return Reject(request_id=name, route="/v1", status=401, code="key_unknown")


def test_records_keep_the_order_of_the_calls(tmp_path: Path) -> None:
    async def scenario(log: AuditLog) -> list[int]:
        async with AuditWriter(log, SETTINGS) as writer:
            return await asyncio.gather(*(writer.record(reject(f"r{i}")) for i in range(1000)))

    with open_log(tmp_path) as log:
        assert asyncio.run(scenario(log)) == list(range(1000))
        assert log.published.size == 1000
    names = [e.request_id for _, e in read_events(tmp_path / "audit") if isinstance(e, Reject)]
    assert names == [f"r{i}" for i in range(1000)]
    assert_verifies(tmp_path)


def test_each_task_sees_its_own_records_in_order(tmp_path: Path) -> None:
    async def scenario(log: AuditLog) -> None:
        async with AuditWriter(log, SETTINGS) as writer:

            async def client(name: int) -> None:
                for i in range(20):
                    before = await writer.record(request(f"{name}-{i}"))
                    after = await writer.record(response(f"{name}-{i}"))
                    assert before < after

            await asyncio.gather(*(client(name) for name in range(25)))

    with open_log(tmp_path) as log:
        asyncio.run(scenario(log))
    report = assert_verifies(tmp_path)
    assert report.records == {"REQ": 500, "RES": 500}
    assert report.open_requests == 0


def test_an_acknowledged_record_is_on_disk_at_once(tmp_path: Path) -> None:
    async def scenario(log: AuditLog) -> None:
        async with AuditWriter(log, AuditSettings(checkpoint_seconds=3600)) as writer:
            for i in range(10):
                seq = await writer.record(reject(f"r{i}"))
                on_disk = [seq for seq, _ in read_events(tmp_path / "audit")]
                assert on_disk[-1] == seq

    with open_log(tmp_path) as log:
        asyncio.run(scenario(log))


def test_checkpoints_follow_by_themselves(tmp_path: Path) -> None:
    async def scenario(log: AuditLog) -> None:
        async with AuditWriter(log, SETTINGS) as writer:
            seq = await writer.record(reject("a"))
            await eventually(lambda: log.published.size > seq)

    with open_log(tmp_path) as log:
        asyncio.run(scenario(log))


def test_silence_is_filled_with_heartbeats(tmp_path: Path) -> None:
    async def scenario(log: AuditLog) -> None:
        settings = AuditSettings(heartbeat_seconds=0.05, checkpoint_seconds=0.05)
        async with AuditWriter(log, settings):
            await eventually(lambda: log.published.size >= 2)

    with open_log(tmp_path) as log:
        asyncio.run(scenario(log))
    assert all(isinstance(e, Heartbeat) for _, e in read_events(tmp_path / "audit"))


def test_a_cancelled_caller_does_not_hold_up_the_others(tmp_path: Path) -> None:
    async def scenario(log: AuditLog) -> None:
        async with AuditWriter(log, SETTINGS) as writer:
            tasks = [asyncio.create_task(writer.record(reject(f"r{i}"))) for i in range(10)]
            await asyncio.sleep(0)
            tasks[3].cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(done[3], asyncio.CancelledError)
            assert [seq for i, seq in enumerate(done) if i != 3] == [
                0, 1, 2, 4, 5, 6, 7, 8, 9,
            ]  # fmt: skip

    with open_log(tmp_path) as log:
        asyncio.run(scenario(log))


def test_closing_writes_what_waits_and_refuses_the_rest(tmp_path: Path) -> None:
    async def scenario(log: AuditLog) -> None:
        writer = AuditWriter(log, SETTINGS)
        await writer.start()
        waiting = [asyncio.create_task(writer.record(reject(f"r{i}"))) for i in range(600)]
        await asyncio.sleep(0)
        await writer.close()
        assert sorted(await asyncio.gather(*waiting)) == list(range(600))
        assert not writer.available
        with pytest.raises(AuditUnavailableError):
            await writer.record(reject("late"))

    with open_log(tmp_path) as log:
        asyncio.run(scenario(log))
        assert log.published.size == 600
    assert_verifies(tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB with a ballast file that leaves little room."""
    mount_point = tmp_path / "disk"
    mount_point.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount_point)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        (mount_point / "ballast").write_bytes(bytes(700_000))
        yield mount_point
    finally:
        subprocess.run(["umount", str(mount_point)], check=True)


def fill(path: Path) -> None:
    """Leave no room at all."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_full_disk_closes_the_log_and_free_space_opens_it_again(small_disk: Path) -> None:
    acknowledged: dict[str, int] = {}
    refused: set[str] = set()

    async def scenario(log: AuditLog) -> None:
        async with AuditWriter(log, replace(SETTINGS, ballast_bytes=0)) as writer:

            async def record(name: str) -> None:
                try:
                    acknowledged[f"req-{name}"] = await writer.record(request(name))
                except AuditUnavailableError:
                    refused.add(f"req-{name}")

            for i in range(10_000):
                await asyncio.gather(*(record(f"{i}-{j}") for j in range(50)))
                if not writer.available:
                    break
            fill(small_disk / "filler")
            for i in range(1000):  # the last page may still take a few
                await record(f"full-{i}")
                if f"req-full-{i}" in refused:
                    break
            assert refused
            (small_disk / "filler").unlink()
            (small_disk / "ballast").unlink()
            await eventually(lambda: writer.available)
            await record("after")

    settings = AuditSettings(segment_bytes=65_536)
    with open_log(small_disk, settings) as log:
        asyncio.run(scenario(log))
    assert "req-after" in acknowledged
    logged = {
        event.request_id: seq
        for seq, event in read_events(small_disk / "audit")
        if isinstance(event, Request)
    }
    assert logged == acknowledged
    assert_verifies(small_disk)


def test_on_a_full_disk_what_has_begun_is_closed_and_nothing_new_begins(small_disk: Path) -> None:
    settings = replace(SETTINGS, ballast_bytes=128 * 1024)
    open_requests: list[str] = []

    async def begin(writer: AuditWriter, name: str) -> bool:
        try:
            await writer.record(request(name))
        except AuditUnavailableError:
            return False
        open_requests.append(name)
        return True

    async def scenario(log: AuditLog) -> None:
        async with AuditWriter(log, settings) as writer:
            assert await begin(writer, "first")
            fill(small_disk / "filler")
            for i in range(2000):
                if not await begin(writer, f"full-{i}"):
                    break
            assert not writer.available
            for name in open_requests:
                await writer.record(response(name))
            await writer.record(Admin(action="keys.revoke", target="key-1"))
            assert not await begin(writer, "refused")
            await eventually(lambda: log.published.size == log.size)
            (small_disk / "filler").unlink()
            (small_disk / "ballast").unlink()
            await eventually(lambda: writer.available)
            assert await begin(writer, "again")
            await writer.record(response("again"))

    with open_log(small_disk, settings) as log:
        asyncio.run(scenario(log))
    assert (small_disk / "audit/ballast").stat().st_size == settings.ballast_bytes
    report = assert_verifies(small_disk)
    assert report.open_requests == 0
    assert report.records["RES"] == report.records["REQ"] == len(open_requests)
    assert report.records["ADMIN"] == 1


def test_room_seen_just_before_it_was_given_up_is_not_taken_for_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The publisher has seen the ballast when the appender gives it up."""
    settings = replace(SETTINGS, ballast_bytes=128 * 1024)
    seen, given_up = threading.Event(), threading.Event()
    size, give_up, flush = Room._size, Room.give_up, os.fdatasync

    def sized(room: Room) -> int:
        found = size(room)
        seen.set()
        given_up.wait(1)  # in vain if the appender waits for us
        return found

    def gives_up(room: Room) -> bool:
        done = give_up(room)
        given_up.set()
        return done

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full_once(fd: int) -> None:
        monkeypatch.setattr(os, "fdatasync", flush)
        full()

    async def scenario(log: AuditLog) -> None:
        async with AuditWriter(log, settings) as writer:
            await writer.record(request("first"))
            monkeypatch.setattr(Room, "_size", sized)
            monkeypatch.setattr(Room, "give_up", gives_up)
            monkeypatch.setattr(Room, "_reserve", full)
            await asyncio.to_thread(seen.wait)
            monkeypatch.setattr(os, "fdatasync", full_once)
            for name in ("refused at the disk", "refused at once"):
                with pytest.raises(AuditUnavailableError):
                    await writer.record(request(name))
            await writer.record(response("first"))

    with open_log(tmp_path, settings) as log:
        asyncio.run(scenario(log))
    assert given_up.is_set()
    assert "there is room again" not in caplog.text
    assert assert_verifies(tmp_path).records == {"REQ": 1, "RES": 1}


def test_an_administrative_record_takes_the_ballast_of_a_full_disk(small_disk: Path) -> None:
    settings = replace(SETTINGS, ballast_bytes=128 * 1024)
    layout = Layout(small_disk)
    create_signer(layout.audit_key, ORIGIN)
    admin_event(layout, settings, "keys.create", target="key-1")
    assert Room(layout.audit, settings.ballast_bytes).keep()
    fill(small_disk / "filler")
    admin_event(layout, settings, "keys.revoke", target="key-1")
    assert not (layout.audit / BALLAST_NAME).exists()
    assert [e.action for _, e in read_events(layout.audit) if isinstance(e, Admin)] == [
        "keys.create",
        "keys.revoke",
    ]


def test_a_disk_that_fills_is_warned_of_once_per_level(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    room = Room(small_disk, 0)
    room.warn()
    assert not caplog.records
    for size in (100_000, 200_000):
        (small_disk / f"filler-{size}").write_bytes(bytes(size))
        room.warn()
        room.warn()
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2
    assert all("the disk of the audit log is" in warning for warning in warnings)


def test_exchanges_recorded_before_and_after_a_restart_are_one_log(tmp_path: Path) -> None:
    async def scenario(log: AuditLog, name: str) -> None:
        async with AuditWriter(log, SETTINGS) as writer:
            for event in exchange(name):
                await writer.record(event)

    for name in ("first", "second", "third"):
        with open_log(tmp_path) as log:
            asyncio.run(scenario(log, name))
    assert assert_verifies(tmp_path).size == 6

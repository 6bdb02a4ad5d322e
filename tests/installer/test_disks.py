"""What is left on the disks of a node, on real file systems."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from appliance.config import ApiSettings, Config, Layout
from installer.cli.app import app
from installer.disks import (
    FULL_BYTES,
    FULL_INODES,
    NEAR_BYTES,
    Disk,
    disks_of,
    inodes_of,
    room_of,
)
from installer.node import PrefixNode
from installer.status import status_of

MIB, GIB = 1024**2, 1024**3


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A prefix that was prepared, with a port on which nothing listens."""
    config = Config(Layout(tmp_path / "node"), api=ApiSettings(listen_port=1))
    PrefixNode(config.layout).prepare()
    return config


@pytest.fixture
def audit_disk(config: Config) -> Iterator[Path]:
    """A file system of 128 MiB for the audit log alone."""
    with small(config.layout.audit, "size=128m") as mount_point:
        yield mount_point


@pytest.fixture
def many_files(config: Config) -> Iterator[Path]:
    """A file system for the programs alone that holds 1,000 files."""
    config.layout.releases.mkdir(parents=True, exist_ok=True)
    with small(config.layout.releases, "size=128m,nr_inodes=1000") as mount_point:
        yield mount_point


@contextmanager
def small(mount_point: Path, options: str) -> Iterator[Path]:
    """A file system in memory at `mount_point`."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(mount_point)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        yield mount_point
    finally:
        subprocess.run(["umount", str(mount_point)], check=True)


def leave(mount_point: Path, mib: int) -> None:
    """Take the disk, but for `mib`."""
    with (mount_point / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, (128 - mib) * MIB)


@pytest.mark.parametrize(
    ("free", "total", "room"),
    [
        (20 * GIB, 100 * GIB, "enough"),
        (9 * GIB, 100 * GIB, "short"),
        (11 * GIB, 10_000 * GIB, "enough"),
        (9 * GIB, 10_000 * GIB, "short"),
        (2 * GIB, 10 * GIB, "enough"),
        (FULL_BYTES - 1, 10 * GIB, "none"),
        (0, 0, "none"),
    ],
)
def test_a_tenth_or_ten_gib_of_a_large_disk_is_nearly_full(
    free: int, total: int, room: str
) -> None:
    assert NEAR_BYTES == 10 * GIB
    assert room_of(free, total) == room


@pytest.mark.parametrize(
    ("free", "total", "room"),
    [
        (99, 1000, "short"),
        (100, 1000, "enough"),
        (9_999, 1_000_000, "short"),
        (10_000, 1_000_000, "enough"),
        (FULL_INODES - 1, 1000, "none"),
        (0, 0, "enough"),
    ],
)
def test_a_tenth_or_ten_thousand_of_many_inodes_is_nearly_none(
    free: int, total: int, room: str
) -> None:
    assert inodes_of(free, total) == room


def test_what_is_on_one_file_system_is_one_disk(config: Config) -> None:
    (disk,) = disks_of(config)
    assert disk.path == str(config.layout.state)
    assert disk.holds == (
        "keys and usage",
        "programs",
        "the audit log",
        "models",
        "compiled models",
    )
    assert 0 < disk.free_bytes <= disk.total_bytes
    assert disk.remedies[0] == "`appliance models remove NAME VERSION`"


def test_files_count_where_they_are_kept(config: Config) -> None:
    (disk,) = disks_of(replace(config, api=replace(config.api, store_files=True)))
    assert "stored responses and files" in disk.holds


def test_sealed_content_counts_where_it_is_kept(config: Config) -> None:
    config.layout.audit_content.mkdir(parents=True, exist_ok=True)
    assert "content that is sealed to the auditor" not in disks_of(config)[0].holds
    (disk,) = disks_of(replace(config, audit=replace(config.audit, content="sealed")))
    assert "content that is sealed to the auditor" in disk.holds


def test_where_nothing_is_installed_there_are_no_disks(tmp_path: Path) -> None:
    config = Config(Layout(tmp_path / "no/such/place"), api=ApiSettings(listen_port=1))
    assert disks_of(config) == ()
    assert status_of(config, PrefixNode(config.layout)).disk_free_bytes > 0


def test_a_disk_of_the_logs_own_is_warned_of_by_itself(config: Config, audit_disk: Path) -> None:
    def said() -> str:
        return CliRunner().invoke(app, ["status", "--root", str(config.layout.root)]).stdout

    leave(audit_disk, 20)
    state, log = disks_of(config)
    assert log.holds == ("the audit log",)
    assert "the audit log" not in state.holds
    assert log.room == "enough"
    assert str(audit_disk) not in said()

    leave(audit_disk, 10)
    log = disks_of(config)[1]
    assert log.room == "short"
    assert f"The disk of {audit_disk} is nearly full: 0.01 GiB of 0.12 GiB free" in said()
    assert "When it is full: requests are refused (503 `audit_unavailable`)" in said()

    leave(audit_disk, 4)
    log = disks_of(config)[1]
    assert log.room == "none"
    assert "FULL" in said()
    assert "Until there is room: requests are refused" in said()
    assert "To make room: `appliance audit prune --older-than DAYS`" in said()


def test_a_disk_that_can_hold_no_more_files_is_full(config: Config, many_files: Path) -> None:
    def said() -> str:
        return CliRunner().invoke(app, ["status", "--root", str(config.layout.root)]).stdout

    def programs() -> Disk:
        (found,) = [disk for disk in disks_of(config) if disk.holds == ("programs",)]
        return found

    assert programs().room == "enough"
    assert str(many_files) not in said()
    for number in range(programs().free_inodes - 50):
        (many_files / str(number)).touch()
    assert (programs().room, programs().inodes) == ("short", "short")
    assert f"The disk of {many_files} is nearly full: 0.12 GiB of 0.12 GiB free" in said()
    assert "room for 50 of 1000 files (inodes). It holds programs." in said()
    assert "When it is full: no release can be installed." in said()
    for number in range(programs().free_inodes - FULL_INODES + 1):
        (many_files / f"more-{number}").touch()
    assert programs().room == "none"
    assert "disk of programs  " in said()
    assert ", FULL" in said()

"""Preflight names every blocker at once, each with what to do about it."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.config import ApiSettings, Config, Layout
from installer.gpu import Gpus
from installer.preflight import Facts, Needs, blockers, measure
from installer.room import Disk, Share, look
from tests.fakes.disk import small_disk

GIB = 1024**3
STATE, PROGRAMS, MODELS = (Path("/var"), Path("/opt"), Path("/var/models"))
ROOT_DISK = Disk(Path("/"), 10 * GIB)
GOOD = Facts(
    system="Linux",
    architecture="x86_64",
    python=(3, 11),
    implementation="CPython",
    glibc=(2, 36),
    is_root=True,
    has_systemd=True,
    writable=True,
    memory=32 * GIB,
    port_taken=False,
    socket_path_bytes=30,
    now=1_800_000_000,
    installed="",
    disks={STATE: ROOT_DISK, PROGRAMS: ROOT_DISK, MODELS: ROOT_DISK},
)
NEEDS = Needs(
    system_install=True,
    root=Path("/"),
    port=8400,
    version="0.10.0",
    memory=8 * GIB,
    issued_at=1_800_000_000,
    room=(
        Share(STATE, "what the node records", 1 * GIB),
        Share(PROGRAMS, "the programs", 2 * GIB),
        Share(MODELS, "the models", 7 * GIB),
    ),
)
FULL = dict.fromkeys(GOOD.disks, replace(ROOT_DISK, free=10 * GIB - 1))


def codes(facts: Facts, needs: Needs = NEEDS) -> list[str]:
    return [blocker.code for blocker in blockers(facts, needs)]


def test_a_machine_that_fits_has_no_blockers() -> None:
    assert blockers(GOOD, NEEDS) == []


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"system": "Darwin"}, "platform"),
        ({"architecture": "aarch64"}, "platform"),
        ({"python": (3, 10)}, "python"),
        ({"python": (3, 14)}, "python"),
        ({"implementation": "PyPy"}, "python"),
        ({"glibc": (2, 31)}, "glibc"),
        ({"is_root": False}, "root"),
        ({"writable": False}, "not_writable"),
        ({"has_systemd": False}, "systemd"),
        ({"disks": FULL}, "disk"),
        ({"memory": 8 * GIB - 1}, "memory"),
        ({"port_taken": True}, "port"),
        ({"socket_path_bytes": 108}, "socket_path"),
        ({"now": 1_800_000_000 - 86_401}, "clock"),
        ({"installed": "0.11.0"}, "newer_installed"),
    ],
)
def test_each_obstacle_is_one_blocker_with_a_remedy(change: dict[str, object], code: str) -> None:
    (blocker,) = blockers(replace(GOOD, **change), NEEDS)  # type: ignore[arg-type]
    assert blocker.code == code
    assert blocker.message
    assert blocker.remedy


def test_all_obstacles_are_named_together() -> None:
    bad = replace(
        GOOD, python=(3, 9), is_root=False, has_systemd=False, disks=FULL, memory=0,
        port_taken=True, socket_path_bytes=200, now=0, installed="1.0",
    )  # fmt: skip
    expected = {
        "python", "root", "systemd", "disk", "memory", "port", "socket_path", "clock",
        "newer_installed",
    }  # fmt: skip
    assert set(codes(bad)) == expected


def test_each_disk_is_reckoned_by_itself_and_named_by_where_it_is_mounted() -> None:
    """Room on another disk does not help the programs."""
    small = Disk(Path("/opt"), 1 * GIB)
    models = Disk(Path("/var/models"), 6 * GIB)
    facts = replace(GOOD, disks={STATE: ROOT_DISK, PROGRAMS: small, MODELS: models})
    assert [(b.code, b.message, b.remedy) for b in blockers(facts, NEEDS)] == [
        (
            "disk",
            "the disk at /opt has 1.0 GiB free, 2.0 GiB are needed for the programs",
            "free 1.0 GiB on it, or use a larger disk",
        ),
        (
            "disk",
            "the disk at /var/models has 6.0 GiB free, 7.0 GiB are needed for the models",
            "free 1.0 GiB on it, or use a larger disk",
        ),
    ]


def test_a_disk_that_nothing_is_put_on_may_be_full() -> None:
    """As the models' is where all of them are there."""
    facts = replace(GOOD, disks={**GOOD.disks, MODELS: Disk(Path("/var/models"), 0)})
    rest = tuple(replace(s, size=0) if s.directory == MODELS else s for s in NEEDS.room)
    assert codes(facts, replace(NEEDS, room=rest)) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a disk")
def test_a_directory_is_on_the_disk_that_it_would_be_made_on(tmp_path: Path) -> None:
    with small_disk(tmp_path / "opt", 1 << 20):
        inside, outside = tmp_path / "opt/not/there", tmp_path / "var/not/there"
        found = look((inside, outside, tmp_path))
        assert found[inside].mount == tmp_path / "opt"
        assert found[inside].free <= 1 << 20
        assert found[outside] == found[tmp_path]
        assert tmp_path.is_relative_to(found[tmp_path].mount)


def test_a_prefix_needs_neither_root_nor_systemd() -> None:
    needs = replace(NEEDS, system_install=False, root=Path("/srv/node"))
    assert codes(replace(GOOD, is_root=False, has_systemd=False), needs) == []


@pytest.mark.parametrize("installed", ["0.10.0", "0.9.9", "0.2", ""])
def test_the_same_or_an_older_release_is_no_obstacle(installed: str) -> None:
    assert codes(replace(GOOD, installed=installed)) == []


def test_measuring_changes_nothing_and_knows_this_machine(tmp_path: Path) -> None:
    config = Config(Layout(tmp_path / "not-there"))
    facts = measure(config, running=False, installed="", gpus=Gpus())
    assert (facts.system, facts.architecture) == ("Linux", "x86_64")
    assert facts.glibc >= (2, 28)
    assert all(disk.free > 0 for disk in facts.disks.values())
    assert facts.memory > GIB
    assert facts.writable
    assert list(tmp_path.iterdir()) == []


def test_a_port_in_use_is_seen_unless_the_node_itself_uses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("installer.preflight._PORT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        config = Config(Layout(tmp_path), api=ApiSettings(listen_port=server.getsockname()[1]))
        assert measure(config, running=False, installed="", gpus=Gpus()).port_taken
        assert not measure(config, running=True, installed="", gpus=Gpus()).port_taken
    assert not measure(config, running=False, installed="", gpus=Gpus()).port_taken

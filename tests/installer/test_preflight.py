"""Preflight names every blocker at once, each with what to do about it."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.config import ApiSettings, Config, Layout
from installer.gpu import Gpus
from installer.preflight import Facts, Needs, blockers, measure

GIB = 1024**3
GOOD = Facts(
    system="Linux",
    architecture="x86_64",
    python=(3, 11),
    implementation="CPython",
    glibc=(2, 36),
    is_root=True,
    has_systemd=True,
    writable=True,
    disk_free=100 * GIB,
    memory=32 * GIB,
    port_taken=False,
    socket_path_bytes=30,
    now=1_800_000_000,
    installed="",
)
NEEDS = Needs(
    system_install=True,
    root=Path("/"),
    port=8400,
    version="0.10.0",
    disk=10 * GIB,
    memory=8 * GIB,
    issued_at=1_800_000_000,
)


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
        ({"disk_free": 10 * GIB - 1}, "disk"),
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
        GOOD, python=(3, 9), is_root=False, has_systemd=False, disk_free=0, memory=0,
        port_taken=True, socket_path_bytes=200, now=0, installed="1.0",
    )  # fmt: skip
    expected = {
        "python", "root", "systemd", "disk", "memory", "port", "socket_path", "clock",
        "newer_installed",
    }  # fmt: skip
    assert set(codes(bad)) == expected


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
    assert facts.disk_free > 0
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

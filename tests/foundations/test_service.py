"""What a daemon tells its supervisor."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from appliance.service import notify_alive, notify_ready, notify_stopping


def test_without_a_supervisor_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify_ready()


@pytest.mark.parametrize("abstract", [False, True])
def test_a_supervisor_hears_each_state(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, abstract: bool
) -> None:
    name = f"{os.getpid()}-{tmp_path.name}"  # of this machine, not of this run
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(f"\0{name}" if abstract else str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}" if abstract else str(tmp_path / "notify"))
        assert notify_ready()
        assert notify_stopping()
        assert [supervisor.recv(64), supervisor.recv(64)] == [b"READY=1", b"STOPPING=1"]


def test_a_supervisor_that_went_away_stops_nobody(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert not notify_ready()


def test_a_supervisor_that_does_not_read_stops_nobody(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        for _ in range(10_000):
            if not notify_alive():
                break
        else:
            pytest.fail("its queue never fills")
        supervisor.recv(64)
        assert notify_alive()
        assert not notify_stopping()

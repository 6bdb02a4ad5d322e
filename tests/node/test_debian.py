"""What is mounted while the bare tree is made is gone before anything there is removed."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.node.debian import apart, unmount_below
from tests.node.machine import mounted
from tests.shim.node import eventually

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")


def mounts_below(tree: Path) -> list[str]:
    return [
        line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(tree) in line
    ]


def test_what_a_killed_run_left_mounted_is_found_and_unmounted(tmp_path: Path) -> None:
    tree = tmp_path / "a tree.partial"
    inner = tree / "proc"
    inner.mkdir(parents=True)
    with mounted(["-t", "tmpfs", "tmpfs", str(tmp_path)], tmp_path):
        inner.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(inner)], check=True)
        (inner / "sys").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(inner / "sys")], check=True)
        unmount_below(tree)
        assert list(inner.iterdir()) == []
        assert len(mounts_below(tmp_path)) == 1, "what is beside it stays"


def test_what_a_killed_debootstrap_mounts_goes_with_it(tmp_path: Path) -> None:
    inner, ready = tmp_path / "proc", tmp_path / "ready"
    inner.mkdir()
    script = 'mount -t proc proc "$1" && touch "$2" && sleep 600'
    command = apart(["sh", "-c", script, "sh", str(inner), str(ready)])
    with subprocess.Popen(command, start_new_session=True) as process:
        eventually(ready.exists)
        assert mounts_below(tmp_path) == []
        process.send_signal(signal.SIGKILL)
    assert list(inner.iterdir()) == []
    assert eventually(lambda: not any(_runs_with(str(inner))))


def _runs_with(argument: str) -> list[bool]:
    """One entry for each process that has `argument`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue  # it has just ended
        if argument.encode() in words:
            found.append(True)
    return found

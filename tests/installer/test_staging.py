"""What an installation starts outlives its being killed: the next one waits for it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.errors import LockedError
from appliance.fsops import exclusive_lock
from tests.conftest import REPOSITORY

INSTALLER = """
import sys
from pathlib import Path
from appliance.fsops import exclusive_lock
from installer.staging import _run

work = Path(sys.argv[1])
step = 'import pathlib, time; pathlib.Path("begun").touch(); time.sleep(1); open("written", "x")'
with exclusive_lock(work / "lock") as held:
    _run([sys.executable, "-I", "-c", step], work, held)
"""


def test_what_a_killed_installer_started_keeps_its_lock_until_it_has_written_everything(
    tmp_path: Path,
) -> None:
    """Only the installer is killed, as the kernel does for want of memory: pip goes on."""
    command = [sys.executable, "-c", INSTALLER, str(tmp_path)]
    with subprocess.Popen(command, cwd=REPOSITORY) as installer:
        while not (tmp_path / "begun").exists():
            assert installer.poll() is None
        installer.send_signal(signal.SIGKILL)
    with pytest.raises(LockedError), exclusive_lock(tmp_path / "lock"):
        pass
    with exclusive_lock(tmp_path / "lock", wait=True):
        assert (tmp_path / "written").exists()

"""The `appliance` command in the test's own process: all but the interpreter's start is real.

That the command starts as a process of its own is seen by tests/foundations/test_output.py, and
by the tests that interrupt or kill it.
"""

from __future__ import annotations

import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest

from installer.cli import main


def run_command(*words: str) -> subprocess.CompletedProcess[str]:
    """`appliance WORDS`: its exit status and what it wrote."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(stdout),
        redirect_stderr(stderr),
    ):
        patch.setattr(sys, "argv", ["appliance", *words])
        try:
            main()
            status = 0
        except SystemExit as ended:
            status = int(ended.code or 0)
    return subprocess.CompletedProcess(words, status, stdout.getvalue(), stderr.getvalue())

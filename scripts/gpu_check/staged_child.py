"""Starts gpu_check.staged in the GPU's interpreter."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from appliance.errors import UnsupportedError
from bench_peers.work import REPOSITORY


def run_staged(python: Path, paths: Sequence[Path]) -> bytes:
    """What it writes. Raises UnsupportedError with the last thing it said if it fails."""
    path = os.pathsep.join((str(REPOSITORY / "scripts"), str(REPOSITORY)))
    done = subprocess.run(
        [python, "-m", "gpu_check.staged", *paths],
        capture_output=True,
        check=False,
        env=os.environ | {"PYTHONPATH": path},
    )
    if done.returncode != 0:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["it said nothing"]
        raise UnsupportedError(f"two stages on one card failed: {lines[-1]}")
    return done.stdout

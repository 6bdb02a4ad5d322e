"""What the engine's unit takes away, CUDA can do without. On a machine with a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = Path(__file__).with_name("cuda_in_sandbox.py")
_DENIED = "denied: memory that is written and executed, resources, networks"


def test_cuda_compiles_and_computes_inside_the_engines_sandbox() -> None:
    done = subprocess.run([sys.executable, "-I", _PROGRAM], capture_output=True, text=True)
    assert done.stdout.splitlines()[0] == _DENIED, done.stderr
    if not Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has no NVIDIA GPU: the sandbox is right, CUDA was not tried")
    assert done.stdout.splitlines()[1] == "CUDA computed 42", done.stderr

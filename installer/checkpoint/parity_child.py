"""The reference implementation, asked in a process of its own.

Owns that process' limits (memory, time, environment), and what it cannot answer: `NotAskedError`
says why, in words that may stand in a manifest. The reference (transformers on torch) is no
dependency: it is asked where it is installed. What runs in the process: parity_reference.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]

LIBRARIES = ("torch", "transformers")
_MEMORY_FACTOR, _MEMORY_BASE = 2, 3_000_000_000
"""Bytes for the reference: its weights while they are converted, and its libraries."""
_MEMORY_SHARE = 0.6
"""Of the machine's memory; a model whose first layers want more is not compared."""
_SECONDS_BASE, _BYTES_A_SECOND = 300, 20_000_000
_CHILD = Path(__file__).with_name("parity_reference.py")


class NotAskedError(Exception):
    """Why nothing was compared. `reason` goes into the manifest: no paths, no sizes, no times."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = f" ({detail})" if detail else ""


def expect_libraries() -> None:
    """Raise NotAskedError where the reference is not installed."""
    for library in LIBRARIES:
        if find_spec(library) is None:
            raise NotAskedError(f"{library} is not installed")


def run_reference(
    asked: Mapping[str, object], directory: Path, size: int, *, mxfp4: bool
) -> tuple[Float32, str]:
    """What the reference computes over the checkpoint in `directory`, and its versions.

    `size` is of the weights as 32-bit floats; `mxfp4`: they are 4-bit floats, to be unpacked.
    Raises NotAskedError.
    """
    memory = _MEMORY_FACTOR * size + _MEMORY_BASE
    if memory > _MEMORY_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        raise NotAskedError("the machine has too little memory for the reference")
    result = directory / "result.npy"
    more = {"checkpoint": str(directory), "memory": memory, "result": str(result), "mxfp4": mxfp4}
    versions = answer({**asked, **more}, directory, _SECONDS_BASE + size / _BYTES_A_SECOND)
    rows: Float32 = np.load(result, allow_pickle=False)
    return rows, versions


def answer(asked: Mapping[str, object], directory: Path, seconds: float) -> str:
    """Run the reference in its process for at most so long; its versions."""
    environment = {
        "PATH": os.defpath,
        "HOME": str(directory),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(_CHILD)],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            env=environment,
            cwd=directory,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NotAskedError("the reference took too long") from None
    if done.returncode != 0:
        raise NotAskedError("the reference ended without an answer", done.stderr[-200:].strip())
    said = json.loads(done.stdout)
    if "failed" in said:
        raise NotAskedError(f"the reference was not able to: {said['failed']}", said["detail"])
    return str(said["versions"])

"""What a compiled artifact depends on besides its bundle: this machine and its runtime.

Owns the fingerprint and the artifact key made from it. An artifact made on another processor,
by another runtime or by another way of compiling has another key, and is never looked at.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

REVISION = "2"
"""Raised when this package compiles differently."""

_IDENTITY = ("vendor_id", "cpu family", "model", "model name")
_EXTENSIONS = ("sse", "ssse", "avx", "fma", "f16c", "amx", "bmi")
"""Prefixes of the instruction sets that kernels and prepacked weights are chosen by. Others are
left out: a kernel update that shows one more security flag is not another machine."""


def fingerprint(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """Names and values, the same on each call on the same machine and runtime."""
    first = _first_processor(cpuinfo.read_text("utf-8"))
    flags = sorted(f for f in first.get("flags", "").split() if f.startswith(_EXTENSIONS))
    return {
        "variant": "cpu",
        "revision": REVISION,
        "onnxruntime": version("onnxruntime"),
        "machine": platform.machine(),
        "cpu": ", ".join(first.get(name, "?") for name in _IDENTITY),
        "extensions": " ".join(flags),
    }


def artifact_key(bundle_digest: str, values: Mapping[str, str]) -> str:
    """The name of the artifact of this bundle on a machine with this fingerprint, hex."""
    text = json.dumps([bundle_digest, dict(values)], sort_keys=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:40]


def _first_processor(text: str) -> dict[str, str]:
    lines = text.split("\n\n", 1)[0].splitlines()
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}

"""What a compiled artifact depends on besides its bundle: this machine and its runtime.

Owns the fingerprints, one for each provider, and the artifact key made from one. An artifact made
on another processor or GPU, under another driver, by another runtime or by another way of
compiling has another key, and is never looked at.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from pathlib import Path

from appliance.compiler.hardware import Gpu, NoGpu, read_gpu
from appliance.compiler.libraries import (
    Libraries,
    has_gpu_runtime,
    read_libraries,
    runtime_version,
)
from appliance.compiler.record import Provider
from appliance.config import EngineSettings
from appliance.native import library

REVISION = "2"
"""Raised when this package compiles differently for the CPU."""
GPU_REVISION = "5"
"""Raised when it compiles differently for a GPU."""

_IDENTITY = ("vendor_id", "cpu family", "model", "model name")
_EXTENSIONS = ("sse", "ssse", "avx", "fma", "f16c", "amx", "bmi")
"""Prefixes of the instruction sets that kernels and prepacked weights are chosen by. Others are
left out: a kernel update that shows one more security flag is not another machine."""

Fingerprint = Mapping[str, str]
"""Names and values, the same on each call on the same machine and runtime."""


def fingerprint(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """What an artifact for the CPU depends on."""
    first = _first_processor(cpuinfo.read_text("utf-8"))
    flags = sorted(f for f in first.get("flags", "").split() if f.startswith(_EXTENSIONS))
    return {
        "variant": "cpu",
        "revision": REVISION,
        "onnxruntime": runtime_version(),
        "machine": platform.machine(),
        "cpu": ", ".join(first.get(name, "?") for name in _IDENTITY),
        "extensions": " ".join(flags),
        "native": library.identity(),
    }


def gpu_fingerprint(provider: Provider, gpu: Gpu, libraries: Libraries) -> dict[str, str]:
    """What an artifact for a provider of the GPU depends on.

    The driver is part of it: a new one may compile kernels that give other numbers, so that the
    comparison with the CPU has to be made again.
    """
    values = {
        "variant": provider,
        "revision": GPU_REVISION,
        "onnxruntime": runtime_version(),
        "machine": platform.machine(),
        "gpu": gpu.name,
        "capability": f"{gpu.capability[0]}.{gpu.capability[1]}",
        "memory": str(gpu.memory_bytes),
        "driver": gpu.driver,
        "cuda": libraries.cuda,
        "cudnn": libraries.cudnn,
    }
    if provider == "tensorrt":
        values["tensorrt"] = libraries.tensorrt
    return values


def cpu_beside(gpu: Gpu | NoGpu) -> dict[str, str]:
    """What an artifact for the CPU depends on where the runtime is the GPU's.

    The GPU is part of it: where it or its driver changes, the model may take it again.
    """
    there = f"{gpu.name}, driver {gpu.driver}" if isinstance(gpu, Gpu) else ""
    return fingerprint() | {"gpu": there}


def fingerprints() -> dict[Provider, dict[str, str]]:
    """The fingerprint of each provider that this interpreter has here, fastest first.

    Providers whose libraries or hardware are missing have none: no artifact can be for them.
    """
    if not has_gpu_runtime():
        return {"cpu": fingerprint()}
    gpu = read_gpu()
    return fingerprints_of(gpu, read_libraries())


def fingerprints_of(gpu: Gpu | NoGpu, libraries: Libraries) -> dict[Provider, dict[str, str]]:
    """As `fingerprints`, for an interpreter with the GPU's runtime."""
    found: dict[Provider, dict[str, str]] = {}
    if isinstance(gpu, Gpu) and not libraries.missing_cuda:
        if not libraries.missing_tensorrt:
            found["tensorrt"] = gpu_fingerprint("tensorrt", gpu, libraries)
        found["cuda"] = gpu_fingerprint("cuda", gpu, libraries)
    return found | {"cpu": cpu_beside(gpu)}


def for_settings(values: Fingerprint, settings: EngineSettings) -> dict[str, str]:
    """`values` with what of the engine's settings an artifact depends on: TensorRT's shapes."""
    if values["variant"] != "tensorrt":
        return dict(values)
    sized = settings.sized(gpu=True)
    shapes = (sized.max_sequences, sized.token_budget, sized.max_context)
    return {**values, "shapes": " ".join(map(str, shapes))}


def artifact_key(bundle_digest: str, values: Fingerprint) -> str:
    """The name of the artifact of this bundle on a machine with this fingerprint, hex."""
    text = json.dumps([bundle_digest, dict(values)], sort_keys=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:40]


def _first_processor(text: str) -> dict[str, str]:
    lines = text.split("\n\n", 1)[0].splitlines()
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}

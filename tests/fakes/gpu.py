"""GPUs that are not there: a driver's answers, and an interpreter whose GPU is the processor."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from appliance.compiler import machine as machines
from appliance.compiler.fingerprint import fingerprints_of
from appliance.compiler.hardware import Gpu
from appliance.compiler.libraries import Libraries
from appliance.compiler.machine import Machine

H100 = Gpu(
    name="NVIDIA H100 80GB HBM3",
    capability=(9, 0),
    memory_bytes=85_520_809_984,
    free=(84_000_000_000,),
    driver="580.95.05",
    cuda=(13, 0),
    numbers=(0,),
    count=1,
)
NO_TENSORRT = "libnvinfer.so.10: cannot open shared object file: No such file or directory"
LIBRARIES = Libraries("13.0", "9.15.1", "", "", NO_TENSORRT)
ALL_LIBRARIES = Libraries("13.0", "9.15.1", "10.16.1", "", "")

_CHILD = Path(__file__).with_name("gpu_child.py")


class FakeNvmlError(Exception):
    """What the fake driver raises."""


@dataclass
class FakeMemory:
    total: int
    free: int


@dataclass
class FakeNvml:
    """A driver with `gpus`, of which name, capability and memory are used.

    `broken` names a call that fails.
    """

    gpus: Sequence[Gpu] = ()
    driver: str = "580.95.05"
    cuda: int = 13_000
    broken: str = ""
    calls: list[str] = field(default_factory=list)
    NVMLError: type[Exception] = FakeNvmlError

    def nvmlInit(self) -> None:  # noqa: N802
        self._called("nvmlInit")

    def nvmlShutdown(self) -> None:  # noqa: N802
        self._called("nvmlShutdown")

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        self._called("nvmlSystemGetDriverVersion")
        return self.driver

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:  # noqa: N802
        self._called("nvmlSystemGetCudaDriverVersion_v2")
        return self.cuda

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        self._called("nvmlDeviceGetCount")
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> object:  # noqa: N802
        self._called("nvmlDeviceGetHandleByIndex")
        return self.gpus[index]

    def nvmlDeviceGetName(self, handle: object) -> str:  # noqa: N802
        return self._gpu("nvmlDeviceGetName", handle).name

    def nvmlDeviceGetMemoryInfo(self, handle: object) -> FakeMemory:  # noqa: N802
        gpu = self._gpu("nvmlDeviceGetMemoryInfo", handle)
        return FakeMemory(gpu.memory_bytes, gpu.free[0])

    def nvmlDeviceGetCudaComputeCapability(self, handle: object) -> tuple[int, int]:  # noqa: N802
        return self._gpu("nvmlDeviceGetCudaComputeCapability", handle).capability

    def _gpu(self, call: str, handle: object) -> Gpu:
        self._called(call)
        assert isinstance(handle, Gpu)
        return handle

    def _called(self, call: str) -> None:
        self.calls.append(call)
        if call == self.broken:
            raise FakeNvmlError("Unknown Error")


def machine_with(gpu: Gpu = H100, libraries: Libraries = LIBRARIES) -> Machine:
    """A machine with this GPU, as its interpreter would describe it."""
    return Machine(gpu=gpu, libraries=libraries, fingerprints=fingerprints_of(gpu, libraries))


def with_driver(gpu: Gpu, driver: str) -> Gpu:
    return replace(gpu, driver=driver)


def write_release(directory: Path, machine: Machine | None) -> Path:
    """A release whose interpreter for the GPU, if any, sees `machine`; its other interpreter.

    The GPU computes with the processor's provider: all but CUDA itself is what runs on a node.
    """
    python = directory / "venv/bin/python"
    _script(python, f'exec {sys.executable} "$@"')
    if machine is not None:
        seen = directory / "machine.json"
        seen.write_bytes(machines.encode(machine))
        on_gpu = directory / "venv-cuda13/bin/python"
        _script(on_gpu, f'shift 3; exec {sys.executable} -I {shlex.quote(str(_CHILD))} {seen} "$@"')
    return python


def _script(path: Path, line: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)

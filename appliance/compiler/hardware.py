"""The GPUs of this machine, as their driver describes them.

Owns reading them, through NVML, and which of them are used: those of one kind, since what is
compiled on one of these runs on each. Knows nothing of models. A machine without a GPU, without a
driver or without the library that asks the driver has no GPU, and the reason is a sentence for a
person: nothing here raises.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

DRIVER_FAILS = "driver_fails"
"""Code of reasons that a driver gives which the kernel has loaded."""
NO_DRIVER = "this machine has no NVIDIA GPU, or no driver for it"

_DRIVER = Path("/proc/driver/nvidia/version")


class Memory(Protocol):
    """Bytes of a GPU's memory."""

    total: int
    free: int


class Nvml(Protocol):
    """The calls of NVML that are used, with the names of its Python library."""

    NVMLError: type[Exception]

    def nvmlInit(self) -> None: ...  # noqa: N802
    def nvmlShutdown(self) -> None: ...  # noqa: N802
    def nvmlSystemGetDriverVersion(self) -> str: ...  # noqa: N802
    def nvmlSystemGetCudaDriverVersion_v2(self) -> int: ...  # noqa: N802
    def nvmlDeviceGetCount(self) -> int: ...  # noqa: N802
    def nvmlDeviceGetHandleByIndex(self, index: int) -> object: ...  # noqa: N802
    def nvmlDeviceGetName(self, handle: object) -> str: ...  # noqa: N802
    def nvmlDeviceGetMemoryInfo(self, handle: object) -> Memory: ...  # noqa: N802
    def nvmlDeviceGetCudaComputeCapability(  # noqa: N802
        self, handle: object
    ) -> tuple[int, int]: ...


@dataclass(frozen=True, slots=True)
class Gpu:
    """One kind of GPU, of which a machine may have several.

    Attributes:
        name: the model, as "NVIDIA H100 80GB HBM3".
        capability: compute capability, major and minor.
        memory_bytes: all of the memory of one.
        free: of it, what nobody used of each when it was asked.
        driver: version of the driver, as "580.95.05".
        cuda: newest CUDA that the driver serves, major and minor.
        numbers: of all GPUs of this kind, as the PCI bus numbers them; the one that had most free
            memory first, as in `free`.
        count: GPUs of this machine; those of other kinds are left alone.
    """

    name: str
    capability: tuple[int, int]
    memory_bytes: int
    free: tuple[int, ...]
    driver: str
    cuda: tuple[int, int]
    numbers: tuple[int, ...]
    count: int


@dataclass(frozen=True, slots=True)
class NoGpu:
    """There is none to use: the reason for a person, and its stable name."""

    reason: str
    code: str = "no_gpu"


def read_gpu(nvml: Nvml | None = None) -> Gpu | NoGpu:
    """The GPUs to compute on: those like the one with most memory, the first of equal ones.

    `nvml` is asked instead of this machine's driver.
    """
    library = nvml or _library()
    if isinstance(library, NoGpu):
        return library
    try:
        library.nvmlInit()
    except library.NVMLError as error:
        if not has_driver():
            return NoGpu(NO_DRIVER)
        return NoGpu(f"the NVIDIA driver does not answer: {error}", DRIVER_FAILS)
    try:
        return _alike(library)
    except library.NVMLError as error:
        return NoGpu(f"the NVIDIA driver does not say what it drives: {error}", DRIVER_FAILS)
    finally:
        library.nvmlShutdown()


def has_driver(driver: Path = _DRIVER) -> bool:
    """Whether the kernel drives an NVIDIA GPU."""
    return driver.exists()


def _library() -> Nvml | NoGpu:
    try:
        import pynvml
    except ImportError:
        return NoGpu("the library that asks the NVIDIA driver is not installed", "library_missing")
    library: Nvml = pynvml
    return library


def _alike(nvml: Nvml) -> Gpu | NoGpu:
    count = nvml.nvmlDeviceGetCount()
    gpus = [_gpu(nvml, number, count) for number in range(count)]
    if not gpus:
        return NoGpu("the NVIDIA driver finds no GPU", DRIVER_FAILS)
    largest = max(gpus, key=lambda gpu: gpu.memory_bytes)
    alike = [gpu for gpu in gpus if _kind(gpu) == _kind(largest)]
    alike.sort(key=lambda gpu: -gpu.free[0])
    return replace(
        largest,
        free=tuple(free for gpu in alike for free in gpu.free),
        numbers=tuple(number for gpu in alike for number in gpu.numbers),
    )


def _kind(gpu: Gpu) -> tuple[str, tuple[int, int], int]:
    return gpu.name, gpu.capability, gpu.memory_bytes


def _gpu(nvml: Nvml, number: int, count: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(number)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    cuda = nvml.nvmlSystemGetCudaDriverVersion_v2()  # 13020 is 13.2
    return Gpu(
        name=nvml.nvmlDeviceGetName(handle),
        capability=(major, minor),
        memory_bytes=int(memory.total),
        free=(int(memory.free),),
        driver=nvml.nvmlSystemGetDriverVersion(),
        cuda=(cuda // 1000, cuda % 1000 // 10),
        numbers=(number,),
        count=count,
    )

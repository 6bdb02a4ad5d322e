"""Memory that a model's cache and logits live in: a graphics processor's, or this machine's own.

Owns every copy between the two. Addresses are plain integers, as the runtime's bindings take
them. `HostDevice` is the same thing over ordinary memory, so that what runs on a GPU runs in the
same way where there is none.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any, Protocol

import numpy.typing as npt

from appliance.compiler import libraries
from appliance.engine.device.recordings import beside_recordings
from appliance.errors import CapacityError, UnsupportedError

HostArray = npt.NDArray[Any]


class Device(Protocol):
    """One device. Copies are done when the call returns.

    Attributes:
        kind: ONNX Runtime's word for it, "cuda" or "cpu".
        number: which of that kind.
    """

    kind: str
    number: int

    def allocate(self, size: int) -> int:
        """The address of `size` zeroed bytes. Raises CapacityError."""
        ...

    def release(self, address: int) -> None:
        """Give back what `allocate` gave."""
        ...

    def write(self, address: int, array: HostArray) -> None:
        """Copy a contiguous array to the device."""
        ...

    def read(self, address: int, array: HostArray) -> None:
        """Fill a contiguous array from the device."""
        ...

    def copy_rows(self, target: int, source: int, pitches: tuple[int, int], rows: Rows) -> None:
        """Copy rows of bytes; `pitches` are the distances between rows at target and source."""
        ...

    def fetch(self, target: int, other: Device, source: int, size: int) -> None:
        """Copy `size` bytes from `source` on another device of this kind."""
        ...

    def free_bytes(self) -> int:
        """What can be allocated, about."""
        ...


Rows = tuple[int, int]
"""How many rows, and bytes of each."""


class HostDevice:
    """Ordinary memory."""

    kind = "cpu"
    number = 0

    def __init__(self, size: int) -> None:
        self._size = size
        self._blocks: dict[int, mmap.mmap] = {}

    def allocate(self, size: int) -> int:
        if size > self.free_bytes():
            raise _full(size)
        block = mmap.mmap(-1, size)
        address = ctypes.addressof(ctypes.c_char.from_buffer(block))
        self._blocks[address] = block
        return address

    def release(self, address: int) -> None:
        del self._blocks[address]

    def write(self, address: int, array: HostArray) -> None:
        assert array.flags.c_contiguous
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def read(self, address: int, array: HostArray) -> None:
        assert array.flags.c_contiguous
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def copy_rows(self, target: int, source: int, pitches: tuple[int, int], rows: Rows) -> None:
        count, size = rows
        for row in range(count):
            ctypes.memmove(target + row * pitches[0], source + row * pitches[1], size)

    def fetch(self, target: int, _other: Device, source: int, size: int) -> None:
        ctypes.memmove(target, source, size)

    def free_bytes(self) -> int:
        return self._size - sum(map(len, self._blocks.values()))


class CudaDevice:
    """The memory of one NVIDIA GPU, through CUDA's runtime API (CUDA Toolkit 13, chapter 6.11).

    `number` is the GPU's among those that this process sees. Raises UnsupportedError if the driver
    cannot be used.
    """

    kind = "cuda"

    def __init__(self, number: int = 0) -> None:
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise UnsupportedError(
                f"this interpreter has no runtime for a GPU: {error}",
                hint="`appliance status` says what this node lacks",
                code="no_runtime",
            ) from None

        self._cuda = runtime
        self.number = number
        self._choose()

    def allocate(self, size: int) -> int:
        self._choose()
        error, address = self._cuda.cudaMalloc(size)
        if error != self._cuda.cudaError_t.cudaSuccess:
            raise _full(size)
        self._call("cudaMemset", address, 0, size)
        self._wait()
        return int(address)

    def release(self, address: int) -> None:
        self._call("cudaFree", address)

    def write(self, address: int, array: HostArray) -> None:
        assert array.flags.c_contiguous
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpy", address, array.ctypes.data, array.nbytes, kind)
        # A short copy returns when it is staged; the model runs in a stream that does not wait.
        self._wait()

    def read(self, address: int, array: HostArray) -> None:
        assert array.flags.c_contiguous
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpy", array.ctypes.data, address, array.nbytes, kind)

    def copy_rows(self, target: int, source: int, pitches: tuple[int, int], rows: Rows) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        if rows[0] == 1:
            self._call("cudaMemcpy", target, source, rows[1], kind)
        else:
            self._call(
                "cudaMemcpy2D", target, pitches[0], source, pitches[1], rows[1], rows[0], kind
            )
        self._wait()

    def fetch(self, target: int, other: Device, source: int, size: int) -> None:
        self._call("cudaMemcpyPeer", target, self.number, source, other.number, size)
        self._wait()

    def free_bytes(self) -> int:
        free, _total = self._call("cudaMemGetInfo")
        return int(free)

    def count(self) -> int:
        """GPUs that this process sees."""
        (count,) = self._call("cudaGetDeviceCount")
        return count

    def _wait(self) -> None:
        self._call("cudaStreamSynchronize", 0)

    def _call(self, name: str, *arguments: object) -> list[int]:
        self._choose()
        return self._asked(name, *arguments)

    def _choose(self) -> None:
        """This GPU is what this thread means: the runtime's sessions may have meant another."""
        beside_recordings()
        self._asked("cudaSetDevice", self.number)

    def _asked(self, name: str, *arguments: object) -> list[int]:
        error, *results = getattr(self._cuda, name)(*arguments)
        if error != self._cuda.cudaError_t.cudaSuccess:
            raise UnsupportedError(
                f"the GPU's driver failed in {name}: {error.name}",
                hint="see `dmesg` for the driver's messages, and `appliance status`",
                code="gpu_failed",
            )
        return [int(result) for result in results]


def cuda_devices() -> list[CudaDevice]:
    """The GPUs that this process uses, the one with most free memory first.

    Raises UnsupportedError if the driver cannot be used.
    """
    libraries.preload()
    first = CudaDevice()
    devices = [first, *(CudaDevice(number) for number in range(1, first.count()))]
    return sorted(devices, key=lambda device: -device.free_bytes())


def _full(size: int) -> CapacityError:
    return CapacityError(
        f"the device has no {size} bytes left",
        hint="unload a model, or lower engine.max_sequences or engine.max_context",
        code="cache_full",
    )

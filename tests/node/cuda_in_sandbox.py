"""CUDA inside what the engine's unit takes away: `python3 cuda_in_sandbox.py`, on a GPU machine.

systemd enforces MemoryDenyWriteExecute, SystemCallFilter and RestrictAddressFamilies by seccomp;
this program puts the same filter on itself, gives up root, and then has the driver compile a
kernel just in time and run it. Standard library alone, so that it runs beside any system.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import sys

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 38, 22, 2
_LOAD, _JUMP_IF_EQUAL, _AND, _RETURN = 0x20, 0x15, 0x54, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER, _FIRST, _THIRD = 0, 16, 32
"""Offsets in struct seccomp_data (little-endian, lower halves): number, arguments 0 and 2."""
MMAP, MPROTECT, SOCKET, SETAFFINITY = 9, 10, 41, 203
RESOURCES = (141, 142, 144, 160, SETAFFINITY, 237, 238, 251, 256, 279, 314, 450)
"""@resources of systemd.exec(5), as numbers of x86-64."""
_WRITE, _EXEC = 2, 4
_NOBODY = 65534

PTX = b"""\
.version 7.0
.target sm_75
.address_size 64
.visible .entry answer(.param .u64 out) {
    .reg .u64 %p;
    .reg .u32 %v;
    ld.param.u64 %p, [out];
    cvta.to.global.u64 %p, %p;
    mov.u32 %v, 42;
    st.global.u32 [%p], %v;
    ret;
}
\0"""
"""A kernel as text for the driver's just-in-time compiler: writes 42."""


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


def _deny(error: int) -> bytes:
    return _instruction(_RETURN, _ERRNO | error)


def program() -> bytes:
    """The filter, in classic BPF."""
    code = _instruction(_LOAD, _NUMBER)
    for number in RESOURCES:
        code += _instruction(_JUMP_IF_EQUAL, number, 0, 1) + _deny(errno.EPERM)
    for number, mask in ((MMAP, _WRITE | _EXEC), (MPROTECT, _EXEC)):
        code += _instruction(_JUMP_IF_EQUAL, number, 0, 5)
        code += _instruction(_LOAD, _THIRD) + _instruction(_AND, mask)
        code += _instruction(_JUMP_IF_EQUAL, mask, 0, 1) + _deny(errno.EPERM)
        code += _instruction(_RETURN, _ALLOW)
    code += _instruction(_JUMP_IF_EQUAL, SOCKET, 0, 3) + _instruction(_LOAD, _FIRST)
    code += _instruction(_JUMP_IF_EQUAL, socket.AF_UNIX, 1, 0) + _deny(errno.EAFNOSUPPORT)
    return code + _instruction(_RETURN, _ALLOW)


def confine() -> None:
    """Put the filter on this process, which gives up root before. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
    code = ctypes.create_string_buffer(program())
    description = struct.pack("HP", len(program()) // 8, ctypes.addressof(code))
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _FILTER, ctypes.create_string_buffer(description), 0, 0),
    ):
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


def denied() -> list[str]:
    """What the filter takes away, tried."""
    found = []
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    address = libc.mmap(None, 4096, 1 | _WRITE | _EXEC, 0x22, -1, 0)
    if address == ctypes.c_void_p(-1).value and ctypes.get_errno() == errno.EPERM:
        found.append("memory that is written and executed")
    try:
        os.sched_setaffinity(0, {0})
    except PermissionError:
        found.append("resources")
    try:
        socket.socket(socket.AF_INET).close()
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            found.append("networks")
    socket.socket(socket.AF_UNIX).close()
    return found


def compute() -> int:
    """What the kernel wrote. Raises OSError without a driver, RuntimeError where a call fails."""
    cuda = ctypes.CDLL("libcuda.so.1")

    def call(name: str, *arguments: object) -> None:
        status = getattr(cuda, name)(*arguments)
        if status != 0:
            raise RuntimeError(f"{name}: {status}")

    device, context = ctypes.c_int(), ctypes.c_void_p()
    module, kernel = ctypes.c_void_p(), ctypes.c_void_p()
    memory, pinned = ctypes.c_uint64(), ctypes.c_void_p()
    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(device), 0)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    call("cuCtxSetCurrent", context)
    call("cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t(1 << 28))
    call("cuMemAllocHost_v2", ctypes.byref(pinned), ctypes.c_size_t(1 << 24))
    call("cuModuleLoadData", ctypes.byref(module), PTX)
    call("cuModuleGetFunction", ctypes.byref(kernel), module, b"answer")
    parameters = (ctypes.c_void_p * 1)(ctypes.addressof(memory))
    call("cuLaunchKernel", kernel, *([1] * 6), 0, None, parameters, None)
    call("cuCtxSynchronize")
    call("cuMemcpyDtoH_v2", pinned, memory, ctypes.c_size_t(4))
    return int(ctypes.cast(pinned, ctypes.POINTER(ctypes.c_uint32))[0])


if __name__ == "__main__":
    confine()
    sys.stdout.write(f"denied: {', '.join(denied())}\n")
    sys.stdout.flush()
    sys.stdout.write(f"CUDA computed {compute()}\n")

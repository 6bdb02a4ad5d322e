"""What one interpreter of a release can compute on, as it sees it itself.

Owns the document that the compiler's process prints when it is asked, since only the interpreter
with the GPU's runtime has the libraries to ask. Hardware and libraries that are missing are
reasons in it, never errors.
"""

from __future__ import annotations

import msgspec

from appliance.compiler.fingerprint import fingerprint, fingerprints_of
from appliance.compiler.hardware import Gpu, read_gpu
from appliance.compiler.libraries import Libraries, has_gpu_runtime, read_libraries
from appliance.compiler.record import Provider
from appliance.errors import UnsupportedError


class Machine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A machine, seen by one interpreter.

    Attributes:
        gpu: the GPU to compute on, if there is one.
        reason: why there is none.
        code: stable name of that reason.
        libraries: what could be loaded; None without the GPU's runtime.
        fingerprints: of each provider that artifacts can be compiled for, fastest first.
    """

    gpu: Gpu | None = None
    reason: str = ""
    code: str = "no_gpu"
    libraries: Libraries | None = None
    fingerprints: dict[Provider, dict[str, str]]


def read_machine() -> Machine:
    """This machine, seen by this interpreter."""
    if not has_gpu_runtime():
        return without_gpu("this interpreter has no runtime for a GPU", "no_runtime")
    gpu, libraries = read_gpu(), read_libraries()
    found = fingerprints_of(gpu, libraries)
    if isinstance(gpu, Gpu):
        return Machine(gpu=gpu, libraries=libraries, fingerprints=found)
    return Machine(reason=gpu.reason, code=gpu.code, libraries=libraries, fingerprints=found)


def without_gpu(reason: str, code: str) -> Machine:
    """This machine, seen by an interpreter with the processor's runtime."""
    return Machine(reason=reason, code=code, fingerprints={"cpu": fingerprint()})


def encode(machine: Machine) -> bytes:
    return msgspec.json.encode(machine)


def decode(data: bytes) -> Machine:
    """Raises UnsupportedError."""
    try:
        return msgspec.json.decode(data, type=Machine)
    except msgspec.DecodeError as error:
        raise UnsupportedError(
            f"the compiler's process does not describe this machine: {error}",
            hint="run `appliance install` again: it repairs the virtual environment",
        ) from None

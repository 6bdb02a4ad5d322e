"""The compiled library of the native operators: where it is, whether this processor runs it.

Owns finding it and registering it with a session. Refuses to load it where it cannot run: who asks
gets the reason. The wheel for other platforms than x86-64 Linux has no library, which is no error.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.errors import UnsupportedError

if TYPE_CHECKING:
    import onnxruntime as ort

NAME = "libappliance_native.so"


@dataclass(frozen=True, slots=True)
class NoLibrary:
    """This installation has no library: none is made for its platform."""

    def __str__(self) -> str:
        return "the native operators are not made for this platform"


@dataclass(frozen=True, slots=True)
class ProcessorLacks:
    """The processor, or the system for it, lacks `feature`."""

    feature: str

    def __str__(self) -> str:
        return f"the native operators need a processor with {self.feature}"


Missing = NoLibrary | ProcessorLacks


def path() -> Path | None:
    """The library's file, if this installation has one."""
    found = Path(__file__).with_name(NAME)
    return found if found.is_file() else None


@functools.cache
def missing() -> Missing | None:
    """Why the operators cannot run here; None if they can."""
    file = path()
    if file is None:
        return NoLibrary()
    lacks = ctypes.CDLL(str(file)).appliance_native_lacks
    lacks.restype = ctypes.c_char_p
    feature: bytes | None = lacks()
    return None if feature is None else ProcessorLacks(feature.decode())


def supported() -> bool:
    """Whether the operators can run here."""
    return missing() is None


def instructions() -> str:
    """The instructions that the operators use here: AVX2, or AVX-512 VNNI.

    Raises UnsupportedError where they cannot run.
    """
    named = _library().appliance_native_instructions
    named.restype = ctypes.c_char_p
    found: bytes = named()
    return found.decode()


def choose(name: str) -> bool:
    """Use other instructions from the next run on. False if this processor lacks them.

    For tests and benchmarks of those that it would not choose. Raises UnsupportedError where none
    of them can run.
    """
    return bool(_library().appliance_native_choose(name.encode()))


@functools.cache
def identity() -> str:
    """The digest of the library, SHA-256 in hex, or why the operators cannot run here."""
    file, reason = path(), missing()
    if file is None or reason is not None:
        return str(reason)
    return hashlib.sha256(file.read_bytes()).hexdigest()


def register(options: ort.SessionOptions) -> None:
    """Let sessions with these options have the operators.

    Raises UnsupportedError where they cannot run.
    """
    options.register_custom_ops_library(str(_found()))


def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(_found()))


def _found() -> Path:
    file, reason = path(), missing()
    if file is None or reason is not None:
        raise UnsupportedError(str(reason), hint="use the graphs of standard operators")
    return file

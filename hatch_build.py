"""Compiles the library of the native operators into the wheel, or into the checkout.

Owns compiler, flags and the wheel's tag. A wheel is compiled by ziglang, a fixed compiler from the
package index that needs nothing of the machine: the same sources give the same bytes. A checkout's
editable install may take the machine's own C++ compiler where ziglang is absent. Other platforms
than x86-64 Linux get a wheel without the library. Why: docs/decisions/0231-native-build.md.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = Path("appliance/native/src")
LIBRARY = Path("appliance/native/libappliance_native.so")
STAMP = LIBRARY.with_suffix(".sources")
TARGET = ("-target", "x86_64-linux-gnu.2.28")
TAG = "py3-none-manylinux_2_28_x86_64"
FLAGS = (
    *("-std=c++17", "-O3", "-g0", "-fPIC", "-fvisibility=hidden", "-fno-math-errno"),
    *("-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics", "-ffp-contract=off"),
)
SETS = {
    "wide": ("avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni"),
    "narrow": ("avx2", "fma"),
}
"""Instructions that kernels are compiled to, by the namespace that holds them."""
KERNELS = frozenset({"attention.cpp", "blocks.cpp", "linear.cpp", "table.cpp"})
"""The files that are compiled to each of SETS; the others run on any x86-64."""


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Hatchling's hook of this name."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; `version` is "standard" or "editable"."""
        if not has_library():
            return
        root = Path(self.root)
        compile_library(root, any_compiler=version == "editable")
        if version == "standard":
            build_data["pure_python"] = False
            build_data["tag"] = TAG
            build_data["force_include"][str(root / LIBRARY)] = str(LIBRARY)


def has_library() -> bool:
    """Whether this platform gets a library."""
    return sys.platform == "linux" and platform.machine() == "x86_64"


def compile_library(root: Path, *, any_compiler: bool) -> None:
    """Compile `root`'s sources into its LIBRARY, unless that was made of the same.

    Raises RuntimeError where there is no compiler, CalledProcessError where it fails.
    """
    compiler, linker, name = _compiler(any_compiler=any_compiler)
    made_of = _digest(root, name)
    stamp = root / STAMP
    if (root / LIBRARY).is_file() and stamp.is_file() and stamp.read_text() == made_of:
        return
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        sources = sorted((root / SOURCES).glob("*.cpp"))
        with ThreadPoolExecutor(os.cpu_count()) as together:
            objects = list(
                together.map(lambda made: _object(root, *made, compiler, work), _units(sources))
            )
        made = work / LIBRARY.name
        _run([*linker, "-shared", "-s", "-o", str(made), *objects], work, root)
        # Another process may have the old one mapped: it keeps its file.
        fresh = root / f"{LIBRARY}.{os.getpid()}"
        shutil.copy(made, fresh)
        fresh.replace(root / LIBRARY)
    stamp.write_text(made_of)


def _compiler(*, any_compiler: bool) -> tuple[list[str], list[str], str]:
    """Commands that compile and link, and what identifies them."""
    if importlib.util.find_spec("ziglang") is not None:
        zig = [sys.executable, "-m", "ziglang"]
        return [*zig, "c++", *TARGET], [*zig, "cc", *TARGET], "ziglang"
    found = shutil.which("c++")
    if any_compiler and found is not None:
        return [found], [found], found
    raise RuntimeError("no compiler for the native operators: install ziglang")


def _units(sources: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """What is compiled: a source, and the set of instructions if it is one of kernels."""
    for source in sources:
        if source.name in KERNELS:
            yield from ((source, name) for name in SETS)
        else:
            yield source, ""


def _object(root: Path, source: Path, name: str, compiler: list[str], work: Path) -> str:
    flags = [f"-m{feature}" for feature in SETS.get(name, ())]
    if name:
        flags.append(f"-DAPPLIANCE_VECTORS={name}")
    made = work / f"{source.stem}.{name}.o"
    relative = str(source.relative_to(root))
    _run([*compiler, *FLAGS, *flags, "-c", relative, "-o", str(made)], work, root)
    return str(made)


def _run(command: list[str], work: Path, root: Path) -> None:
    """The compiler's own cache lasts as long as the build: nothing is left in a home folder."""
    cache = {
        "ZIG_GLOBAL_CACHE_DIR": str(work / "cache"),
        "ZIG_LOCAL_CACHE_DIR": str(work / "cache"),
    }
    subprocess.run(command, cwd=root, env={**os.environ, **cache}, check=True)


def _digest(root: Path, compiler: str) -> str:
    digest = hashlib.sha256(compiler.encode())
    for file in (Path(__file__), *sorted((root / SOURCES).iterdir())):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()

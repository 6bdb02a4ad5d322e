"""A small set of wheels for GPU nodes: real wheels of the right names, without the gigabytes.

Names, tags, locks and hashes are as true as the real ones'; of NVIDIA's libraries there is only
the file that each is known by. onnxruntime-gpu is this machine's onnxruntime under the other
name, so that the environment made from it computes, on the processor.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from appliance.fsops import hash_regular
from installer.media.gpu_wheels import TENSORRT_VERSION
from installer.media.lockfile import Pin, parse_lock, write_lock
from installer.media.wheelhouse import Locks, Wheelhouse
from tests.fakes.media import WHEELS

LIBRARIES = {
    "cuda-bindings": "cuda/bindings/__init__.py",
    "cuda-pathfinder": "cuda/pathfinder/__init__.py",
    "nvidia-cublas": "nvidia/cu13/lib/libcublas.so.13",
    "nvidia-cuda-nvrtc": "nvidia/cu13/lib/libnvrtc.so.13",
    "nvidia-cuda-runtime": "nvidia/cu13/lib/libcudart.so.13",
    "nvidia-cudnn-cu13": "nvidia/cudnn/lib/libcudnn.so.9",
    "nvidia-cufft": "nvidia/cu13/lib/libcufft.so.12",
    "nvidia-curand": "nvidia/cu13/lib/libcurand.so.10",
    "nvidia-ml-py": "pynvml.py",
    "nvidia-nvjitlink": "nvidia/cu13/lib/libnvJitLink.so.13",
}
_NO_DRIVER = b"""\
class NVMLError(Exception):
    pass


def nvmlInit():
    raise NVMLError("Driver Not Loaded")
"""
"""What NVIDIA's library for asking the driver says on a machine without one."""
TENSORRT_LIBRARY = "tensorrt_libs/libnvinfer.so.10"


@dataclass(frozen=True, slots=True)
class FakeGpuWheels:
    """A cache of wheels with the set in it, and the locks that name it."""

    cache: Path
    locks: Locks


def fake_gpu_wheels(
    cache: Path, *, pythons: tuple[str, ...], tensorrt: bool, only: Collection[str] = ()
) -> FakeGpuWheels:
    """Make the set in the new directory `cache`, beside copies of the repository's wheels.

    `only`: projects that are enough for the test, without their contents, which take long to
    install; all that a node runs, whole, if there are none.
    """
    locks = Locks.of_checkout()
    if only:
        locks = replace(locks, node=_only(locks.node, only), cuda13=_only(locks.cuda13, only))
    cache.mkdir(parents=True)
    wheels = Wheelhouse(WHEELS).wheels(locks.node + locks.bootstrap, pythons=pythons)
    if only:
        emptied = [
            _renamed(wheel.path, cache, wheel.project, wheel.path.name.split("-")[1], whole=False)
            for wheel in wheels
            if wheel.project in only
        ]
        locks = replace(locks, node=write_lock(_pins(emptied), markers=True))
    for wheel in wheels:
        if wheel.project not in only:
            shutil.copy(wheel.path, cache)
    versions = {pin.name: pin.version for pin in parse_lock(Locks.of_checkout().cuda13)}
    made = [
        write_wheel(
            cache, name, versions[name], "py3-none-manylinux_2_27_x86_64", {path: _content(path)}
        )
        for name, path in LIBRARIES.items()
    ]
    made += [
        _renamed(
            wheel.path,
            cache,
            "onnxruntime-gpu",
            versions["onnxruntime-gpu"],
            whole="onnxruntime" not in only,
        )
        for wheel in wheels
        if wheel.project == "onnxruntime"
    ]
    pins = [pin for pin in parse_lock(locks.cuda13) if pin.name not in _projects(made)]
    lock = write_lock([*pins, *_pins(made)], markers=True)
    if tensorrt:
        give_tensorrt(cache)
    return FakeGpuWheels(cache, replace(locks, cuda13=lock))


def _only(lock: str, projects: Collection[str]) -> str:
    return write_lock([pin for pin in parse_lock(lock) if pin.name in projects], markers=True)


def give_tensorrt(cache: Path, version: str = TENSORRT_VERSION) -> Path:
    """Put TensorRT's libraries there, as a packager does."""
    files = {TENSORRT_LIBRARY: b"lib"}
    return write_wheel(
        cache, "tensorrt-cu13-libs", version, "py3-none-manylinux_2_28_x86_64", files
    )


def write_wheel(
    directory: Path, project: str, version: str, tag: str, files: Mapping[str, bytes]
) -> Path:
    """A wheel that any installer takes."""
    stem = f"{project.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n"
    members = {
        **files,
        f"{info}/METADATA": metadata.encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n".encode(),
    }
    record = "".join(_line(name, data) for name, data in members.items()) + f"{info}/RECORD,,\n"
    path = directory / f"{stem}-{tag}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in {**members, f"{info}/RECORD": record.encode()}.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return path


def _content(path: str) -> bytes:
    if path == "pynvml.py":
        return _NO_DRIVER
    return b"" if path.endswith(".py") else b"lib"


def _renamed(runtime: Path, cache: Path, project: str, version: str, *, whole: bool) -> Path:
    """The wheel at `runtime` as one of another name or version; of what it installs only what
    its package begins with unless it is `whole`."""
    tag = runtime.stem.split("-", 2)[2]
    with zipfile.ZipFile(runtime) as archive:
        files = {
            name: archive.read(name)
            for name in archive.namelist()
            if ".dist-info/" not in name
            and not name.endswith("/")
            and (whole or re.fullmatch(r"\w+/__init__\.py", name))
        }
    return write_wheel(cache, project, version, tag, files)


def _projects(wheels: list[Path]) -> set[str]:
    return {wheel.name.split("-")[0].replace("_", "-") for wheel in wheels}


def _pins(wheels: list[Path]) -> list[Pin]:
    hashes: dict[tuple[str, str], set[str]] = {}
    for wheel in wheels:
        project, version = wheel.name.split("-")[:2]
        digest = hash_regular(wheel, name=wheel.name)[1]
        hashes.setdefault((project.replace("_", "-"), version), set()).add(digest)
    return [Pin(name, version, "", frozenset(found)) for (name, version), found in hashes.items()]


def _line(name: str, data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(data)}\n"

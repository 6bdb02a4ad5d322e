"""TensorRT's libraries of a machine that has neither them nor a GPU.

`write_libraries` makes stand-ins with which the published TensorRT provider of ONNX Runtime loads,
takes a graph, "builds" an engine, opens it and runs. They compute nothing: see tensorrt/tables.h.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.fakes import no_cuda

_SOURCE = Path(__file__).with_name("tensorrt") / "libraries.cpp"
_COMPILE = ("c++", "-std=c++17", "-O1", "-w", "-fPIC", "-c")
_LINK = ("c++", "-shared")


def write_libraries(capi: Path, folder: Path) -> None:
    """Put what the providers in `capi` ask for into `folder`: CUDA's libraries as they are, for
    the loader, and TensorRT's where the wheel would have them, if `folder` is looked into."""
    no_cuda.write_libraries(capi / "libonnxruntime_providers_cuda.so", folder, device=True)
    (folder / "tensorrt_libs").mkdir()
    compiled = folder / "libraries.o"
    _run(*_COMPILE, "-o", str(compiled), str(_SOURCE))
    for name in ("libnvinfer.so.10", "libnvonnxparser.so.10"):
        # The parser fills what the builder reads, so that both are one source.
        out = folder / "tensorrt_libs" / name
        _run(*_LINK, f"-Wl,-soname,{name}", "-o", str(out), str(compiled))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)

"""The shared libraries that computing on a GPU takes: found, loaded, and asked their versions.

Owns the list of them. They come as wheels into the same virtual environment, which no loader
looks into by itself: `preload` loads them by path, so that ONNX Runtime's provider finds them in
the process. A process that was started with an empty environment needs nothing else.
"""

from __future__ import annotations

import ctypes
import io
import os
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution
from importlib.util import find_spec
from pathlib import Path

from appliance.compiler.hardware import Gpu, read_gpu
from appliance.errors import UnsupportedError

CPU_WHEEL = "onnxruntime"
GPU_WHEEL = "onnxruntime-gpu"

_CUDA_RUNTIME = "libcudart.so.13"
_CUDA = (
    *("libcuda.so.1", _CUDA_RUNTIME, "libcublasLt.so.13", "libcublas.so.13"),
    *("libcurand.so.10", "libcudnn.so.9"),
)
"""What the CUDA provider of onnxruntime-gpu 1.31.1 is linked with, and cuDNN, which it opens."""
_TENSORRT = ("libnvinfer.so.10", "libnvonnxparser.so.10")
"""What the TensorRT provider takes besides."""
_TENSORRT_FOLDER = "tensorrt_libs"
"""Where the wheel tensorrt-cu13-libs puts them."""


MIXED_PRODUCTS = ("ep.cuda.fpa_intb_gemm", "1")
"""A session's setting: the CUDA provider multiplies floats with integers as they are.

Without it, it widens the integers first wherever there are more than a few rows of floats."""

_FLASH, _EFFICIENT, _UNFUSED = 1, 2, 16
ATTENTION_KERNELS = ("sdpa_kernel", str(_FLASH | _EFFICIENT | _UNFUSED))
"""An option of the CUDA provider: kernels for attention that take any shape as it comes.

By itself it prefers cuDNN's from Hopper on, which plans anew, for a tenth of a second, for each
number of sequences and of tokens, and keeps every plan (docs/decisions/0258-attention-kernels.md).
The numbers are ONNX Runtime's `AttentionBackend`."""

CUDA_OPTIONS = dict([ATTENTION_KERNELS, ("arena_extend_strategy", "kSameAsRequested")])
"""Options of the CUDA provider, in every session.

By itself it doubles what it takes of the device's memory each time that it needs more: for weights
of 16 GB it takes 32."""

WIDEST_HEAD = 256
"""Numbers of a head, for which the CUDA provider has kernels that store no products."""


def cuda_options(head_dim: int) -> dict[str, str]:
    """Options of the CUDA provider for a decoder, of whose heads the widest has `head_dim` numbers.

    Of its two kernels for wider ones, memory-efficient attention widens keys and values to all
    heads that read them, as many as a slot has positions; the other one stores products, of what
    is read alone (docs/decisions/0307-gemma-4-on-a-gpu.md).
    """
    if head_dim <= WIDEST_HEAD:
        return CUDA_OPTIONS
    return {**CUDA_OPTIONS, ATTENTION_KERNELS[0]: str(_FLASH | _UNFUSED)}


@dataclass(frozen=True, slots=True)
class Libraries:
    """What this process could load; a version is empty where its library is missing.

    Attributes:
        cuda: version of the CUDA runtime, as "13.0".
        cudnn: of cuDNN, as "9.15.1".
        tensorrt: of TensorRT, as "10.16.1".
        missing_cuda: the first library that the CUDA provider lacks, and why; or empty.
        missing_tensorrt: the same of the TensorRT provider, beyond those.
    """

    cuda: str
    cudnn: str
    tensorrt: str
    missing_cuda: str
    missing_tensorrt: str


def runtime_version() -> str:
    """Version of the ONNX Runtime that this interpreter has; says so if it is the GPU's."""
    name, version = _runtime()
    return f"{version} gpu" if name == GPU_WHEEL else version


def has_gpu_runtime() -> bool:
    """Whether this interpreter's ONNX Runtime is the one with the GPU's providers."""
    return _runtime()[0] == GPU_WHEEL


def _runtime() -> tuple[str, str]:
    """Name and version of the wheel that `import onnxruntime` would load; without loading it."""
    spec = find_spec("onnxruntime")
    assert spec is not None, "every environment has a runtime"
    assert spec.origin is not None
    folder = str(Path(spec.origin).parent.parent)
    for name in (GPU_WHEEL, CPU_WHEEL):
        for wheel in Distribution.discover(name=name, path=[folder]):
            return name, wheel.version
    raise UnsupportedError(
        f"the onnxruntime in {folder} was not installed from a wheel",
        hint="run `appliance install` again: it repairs the virtual environment",
    )


def preload() -> None:
    """Load what the wheels of this virtual environment bring. Needs the GPU's ONNX Runtime.

    This process then sees the GPUs that `read_gpu` chose and no others, as numbers 0, 1, ... in
    that order.
    """
    _choose_gpus()
    import onnxruntime as ort

    with redirect_stdout(io.StringIO()):  # it prints what it does not find; `missing` says that
        ort.preload_dlls()
    for name in _TENSORRT:
        for folder in sys.path:
            path = Path(folder) / _TENSORRT_FOLDER / name
            if path.is_file():
                _load(str(path))
                break


@cache
def _choose_gpus() -> None:
    """Once: CUDA looks at this when it begins, and an order by what is free does not last."""
    # CUDA's own order of GPUs is another than the driver's, which says what each of them is.
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    gpu = read_gpu()
    if isinstance(gpu, Gpu) and gpu.count > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpu.numbers))


def read_libraries() -> Libraries:
    """Load everything that can be loaded, and say what cannot."""
    preload()
    return Libraries(
        cuda=_cuda_version(),
        cudnn=_cudnn_version(),
        tensorrt=_tensorrt_version(),
        missing_cuda=_missing(_CUDA),
        missing_tensorrt=_missing(_TENSORRT),
    )


def cuda_runtime() -> ctypes.CDLL | None:
    """CUDA's runtime library, if this process can load it."""
    library = _load(_CUDA_RUNTIME)
    return library if isinstance(library, ctypes.CDLL) else None


def _missing(names: tuple[str, ...]) -> str:
    """What the loader says of the first library that cannot be loaded."""
    for name in names:
        loaded = _load(name)
        if isinstance(loaded, str):
            return loaded
    return ""


def _load(name: str) -> ctypes.CDLL | str:
    """The library, or what the loader says. It stays in the process, where providers find it."""
    try:
        return ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        return str(error)


def _cuda_version() -> str:
    library = _load(_CUDA_RUNTIME)
    if isinstance(library, str):
        return ""
    number = ctypes.c_int()
    if library.cudaRuntimeGetVersion(ctypes.byref(number)) != 0:
        return ""
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def _cudnn_version() -> str:
    library = _load("libcudnn.so.9")
    if isinstance(library, str):
        return ""
    library.cudnnGetVersion.restype = ctypes.c_size_t
    number = int(library.cudnnGetVersion())
    return f"{number // 10_000}.{number % 10_000 // 100}.{number % 100}"


def _tensorrt_version() -> str:
    library = _load("libnvinfer.so.10")
    if isinstance(library, str):
        return ""
    number = int(library.getInferLibVersion())
    return f"{number // 10_000}.{number % 10_000 // 100}.{number % 100}"

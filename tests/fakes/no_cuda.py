"""CUDA's libraries of a machine without a GPU.

As `write_libraries` makes them whatever is called says that there is no device: the CUDA provider
loads with them and reads its options. With a `device` there are two of them, every call succeeds,
their memory is this machine's and their kernels do nothing: sessions open and run, so it can be
seen which nodes the provider takes and which kernel for attention it chooses, but no number that
comes out means anything. Recordings are slow, and spoilt by other threads as CUDA's are. cuDNN is
there, too, as far as its version: it plans nothing. At its end the process says on standard error
how much of each device's memory it took.
"""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from pathlib import Path

_NEEDED = re.compile(r"\(NEEDED\).*\[(lib(?:cuda|cudart|cublas|cublasLt|curand)\.so\.\d+)\]")
_CUDNN = re.compile(rb"\0(cudnn[A-Z]\w+)(?=\0)")
_EXCHANGE = "cudaThreadExchangeStreamCaptureMode"
"""Of the runtime's library; it is asked for by us, not by the provider."""
_NO_DEVICE = 100
"""cudaErrorNoDevice, CUDA Runtime API, section 6.36."""

_INCLUDED = """
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static volatile char *recorder;  /* the thread that records in the global mode */
static volatile int spoilt;
static __thread char me;         /* has an address of its own in each thread */
static __thread int mode;        /* 0: the global one */
static __thread int device;
#define DEVICES 2
static int prohibited(void) {
  if (!recorder || recorder == &me || mode) return 0;
  spoilt = 1;
  return 1;
}
#define UNSAFE if (prohibited()) return 900;
"""
"""CUDA Runtime API, cudaStreamCaptureModeGlobal; 900 is cudaErrorStreamCaptureUnsupported."""
_ALLOCATED = "int NAME(void **p, size_t n) { UNSAFE *p = calloc(1, n + 256); return 0; }\n"
_COUNTED = """
#include <stdio.h>
static size_t taken[DEVICES];
static void told(void) {
  for (int n = 0; n < DEVICES; n++) fprintf(stderr, "taken of device %d: %zu\\n", n, taken[n]);
}
int NAME(void **p, size_t n) {
  static int asked;
  UNSAFE
  if (!asked++) atexit(told);
  taken[device] += n;
  *p = calloc(1, n + 256);
  return 0;
}
"""
_HANDLE = "int NAME(void **p) { *p = malloc(64); return 0; }\n"
_COPY = "int NAME(void *to, void *from, size_t n) { BEFORE memcpy(to, from, n); return 0; }\n"
_VERSION = "int NAME(int *n) { *n = 13000; return 0; }\n"
_DEVICE = {
    "cudaGetDeviceCount": "int NAME(int *n) { *n = DEVICES; return 0; }\n",
    "cudaGetDevice": "int NAME(int *n) { *n = device; return 0; }\n",
    "cudaSetDevice": "int NAME(int n) { device = n; return n < DEVICES ? 0 : 101; }\n",
    "cudaDriverGetVersion": _VERSION,
    "cudaRuntimeGetVersion": _VERSION,
    # cudaDeviceProp of CUDA 13, CUDA Runtime API, section 7.5: a name, then at these bytes memory,
    # shared memory, width of a warp, threads of a block, sides of a block and of a grid, compute
    # capability, multiprocessors, shared memory that a kernel can ask for.
    "cudaGetDeviceProperties": (
        "int NAME(char *p) { memset(p, 0, 700); *p = 'G'; *(size_t *)(p + 288) = 80UL << 30;"
        " *(size_t *)(p + 296) = 49152; *(int *)(p + 308) = 32; *(int *)(p + 320) = 1024;"
        " int sides[] = {1024, 1024, 64, 2147483647, 65535, 65535}; memcpy(p + 324, sides, 24);"
        " *(int *)(p + 360) = 9; *(int *)(p + 384) = 132;"
        " *(size_t *)(p + 672) = 232448; return 0; }\n"
    ),
    "cudaMemGetInfo": "int NAME(size_t *f, size_t *t) { *f = *t = 80UL << 30; return 0; }\n",
    "cudaMalloc": _COUNTED,
    "cudaMallocHost": _ALLOCATED,
    "cudaHostAlloc": _ALLOCATED,
    "cudaFree": "int NAME(void *p) { UNSAFE return 0; }\n",
    "cudaMemcpy": _COPY.replace("BEFORE", "UNSAFE"),
    "cudaMemcpyAsync": _COPY.replace("BEFORE", ""),
    "cudaMemcpyFromSymbol": "int NAME(char *p, void *s, size_t n) { memset(p, 0, n); return 0; }\n",
    "cudaStreamIsCapturing": "int NAME(void *s, int *is) { *is = 0; return 0; }\n",
    "cudaStreamBeginCapture": "int NAME() { spoilt = 0; recorder = &me; return 0; }\n",
    "cudaStreamEndCapture": (
        "int NAME(void *s, void **graph) { usleep(50000); recorder = 0;"
        " *graph = malloc(64); return spoilt ? 901 : 0; }\n"
    ),
    _EXCHANGE: "int NAME(int *p) { int old = mode; mode = *p; *p = old; return 0; }\n",
    "cudaGraphInstantiate": _HANDLE,
    "cudaStreamCreateWithFlags": _HANDLE,
    "cudaEventCreateWithFlags": _HANDLE,
    "cublasCreate_v2": _HANDLE,
    "cublasLtCreate": _HANDLE,
    "cudnnCreate": _HANDLE,
    "cudnnGetVersion": "size_t NAME() { return 91900; }\n",
}
"""What a device answers with more than success."""


def write_libraries(provider: Path, folder: Path, *, device: bool = False) -> None:
    """Put into `folder` each library of CUDA's that the shared object `provider` asks for."""
    names = _NEEDED.findall(_said("readelf", "-dW", str(provider)))
    symbols: dict[str, set[str]] = defaultdict(set)
    for line in _said("nm", "-D", "-u", "--with-symbol-versions", str(provider)).splitlines():
        symbol, _, version = line.split()[-1].partition("@")
        if "cu" in symbol:
            symbols[version if version in names else ""].add(symbol)
    for name in names:
        own = symbols[name] if name in symbols else symbols[""]
        if name.startswith("libcudart."):
            own = own | {_EXCHANGE}
        _write(folder / name, own, versioned=name in symbols, device=device)
    if device:
        # Opened by name, so its functions are not among the symbols that are asked for.
        named = _CUDNN.findall(provider.read_bytes())
        own = {name.decode() for name in named}
        _write(folder / "libcudnn.so.9", own, versioned=False, device=True)


def _write(path: Path, symbols: set[str], *, versioned: bool, device: bool) -> None:
    source = path.with_suffix(".c")
    functions = (_function(symbol, device=device) for symbol in sorted(symbols))
    source.write_text(_INCLUDED + "".join(functions))
    script = path.with_suffix(".map")
    script.write_text(f"{path.name} {{ *; }};" if versioned else "{ global: *; };")
    _said(
        *("cc", "-w", "-shared", "-fPIC", f"-Wl,-soname,{path.name}"),
        *(f"-Wl,--version-script={script}", "-o", str(path), str(source)),
    )


def _function(symbol: str, *, device: bool) -> str:
    if symbol.endswith(("String", "Name")):
        return f'const char *{symbol}() {{ return "no device"; }}\n'
    if device and symbol in _DEVICE:
        return _DEVICE[symbol].replace("NAME", symbol)
    return f"long {symbol}() {{ return {0 if device else _NO_DEVICE}; }}\n"


def _said(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout

"""Lets the threads of a process use a GPU while one of them records a model's steps.

The runtime records in CUDA's global mode: until a recording ends, every call of another thread that
could not be part of one, such as to take or give back memory, fails, and the recording with it.
A thread that says so is not concerned (CUDA Runtime API, cudaThreadExchangeStreamCaptureMode). Each
model has a thread of its own and is loaded in another, so all of them say so here.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import onnxruntime as ort

from appliance.compiler import libraries

_THREAD_LOCAL = 1
"""cudaStreamCaptureModeThreadLocal: recordings of other threads are ignored."""

_SUCCESS = 0
"""cudaSuccess."""

_said = threading.local()


def beside_recordings() -> None:
    """Leave other threads' recordings alone, and be left alone by them, in this thread from now on.

    Where CUDA does not answer there is no GPU to use: a session that wants one says so.
    """
    if getattr(_said, "so", False):
        return
    library = libraries.cuda_runtime()
    mode = ctypes.c_int(_THREAD_LOCAL)
    _said.so = (
        library is not None
        and library.cudaThreadExchangeStreamCaptureMode(ctypes.byref(mode)) == _SUCCESS
    )


class GpuSession(ort.InferenceSession):  # type: ignore[misc] # the runtime has no types
    """A session on a GPU, which any thread may open and run."""

    def __init__(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401 - the runtime's own
        beside_recordings()
        super().__init__(*arguments, **named)

    def run(self, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        beside_recordings()
        return super().run(*arguments, **named)

    def run_with_iobinding(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401
        beside_recordings()
        super().run_with_iobinding(*arguments, **named)

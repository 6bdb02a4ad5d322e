"""Memory that takes no more than what was written of it."""

from __future__ import annotations

import math
import mmap
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt


def zeros(sizes: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Zeros in memory that becomes resident page by page, as positions are written.

    Not np.zeros: it asks for huge pages, and a slot's heads are so far apart that a few hundred
    tokens would make most of the slot resident (8 GB instead of 0.5, measured).
    """
    memory = mmap.mmap(-1, math.prod(sizes) * dtype.itemsize)
    with suppress(OSError):  # a kernel built without huge pages refuses the advice
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype).reshape(sizes)

"""Random weights of the tiny models whose layers no published checkpoint of that size has."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt


def drawn(
    random: np.random.Generator, sizes: tuple[int, ...], centre: float = 0.0
) -> npt.NDArray[np.float32]:
    """Of a matrix about as large as trained weights; of a vector around `centre`."""
    spread = 0.1 if len(sizes) == 1 else 1 / math.sqrt(math.prod(sizes[1:]))
    return random.normal(centre, spread, sizes).astype(np.float32)

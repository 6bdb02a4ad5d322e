"""Weights in blocks are laid out as the kernels read them."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.compiler.native_layout import Integers, Layout, Scales, ZeroPoints
from installer.checkpoint.quantize import pack_bits


def laid_out(layout: Layout, stored: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    data = b"".join(layout.pieces(io.BytesIO(stored.tobytes()), stored.shape))
    return np.frombuffer(data, stored.dtype).reshape(layout.shape(stored.shape))


@settings(max_examples=20, deadline=None)
@given(
    bits=st.sampled_from([4, 8]),
    panels=st.integers(1, 3),
    runs=st.integers(1, 5),
    block=st.sampled_from([16, 32, 128]),
    seed=st.integers(0),
)
def test_sixteen_rows_lie_side_by_side(
    bits: int, panels: int, runs: int, block: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    outer, top = panels * 16, 1 << bits
    integers = rng.integers(0, top, (outer, runs, block)).astype(np.uint8)
    scales = rng.normal(size=(outer, runs)).astype(np.float32)
    zeros = rng.integers(0, top, (outer, runs)).astype(np.uint8)
    made = laid_out(Integers(bits), pack_bits(integers, bits))
    beside = laid_out(Scales(), scales)
    points = laid_out(ZeroPoints(bits, runs), pack_bits(zeros, bits))
    depth = 32 // bits
    assert made.shape == (panels, runs, block // depth, 64)
    for _ in range(50):
        row, run, k = (int(rng.integers(0, most)) for most in (outer, runs, block))
        byte = made[row // 16, run, k // depth, row % 16 * 4 + k % 4]
        assert (byte >> (4 if k % depth >= 4 else 0)) & (top - 1) == integers[row, run, k]
        assert beside[row // 16, run, row % 16] == scales[row, run]
        assert points[row // 16, run, row % 16] == zeros[row, run]

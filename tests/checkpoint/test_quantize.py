"""Rounding keeps its promises: bounded error, exact layout, no dependence on neighbours."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from installer.checkpoint.quantize import (
    block_size,
    dequantize,
    float_run,
    quantize,
    quantize_floats,
)

BITS = [4, 8]


def _meaning(byte: int) -> float:
    """Of E4M3: "FP8 Formats for Deep Learning" (2022), section 3."""
    sign, exponent, mantissa = -1.0 if byte >> 7 else 1.0, byte >> 3 & 15, byte & 7
    if byte & 127 == 127:
        return float("nan")
    return sign * (
        mantissa / 8 * 2**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    )


BYTE_FLOATS = np.array([_meaning(byte) for byte in range(256)])


@pytest.mark.parametrize("bits", BITS)
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 9),
    width=st.integers(1, 200),
    block=st.sampled_from([16, 32, 128]),
    scale=st.sampled_from([1e-20, 1e-4, 1.0, 1e6]),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_weight_moves_further_than_the_grid_is_wide(
    bits: int, rows: int, width: int, block: int, scale: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    weights = (random.standard_normal((rows, width)) * scale).astype(np.float32)
    blocks = quantize(weights, bits, block)
    runs = -(-width // block)
    assert blocks.packed.shape == (rows, runs, block * bits // 8)
    assert blocks.scales.shape == (rows, runs)
    assert blocks.zero_points is not None
    assert blocks.zero_points.shape == (rows, -(-runs * bits // 8))
    rounded = dequantize(blocks, bits, width)
    padded = np.pad(weights, ((0, 0), (0, runs * block - width))).reshape(rows, runs, block)
    span = np.maximum(padded.max(-1), 0) - np.minimum(padded.min(-1), 0)
    step = np.repeat(span / ((1 << bits) - 1), block, axis=-1).reshape(rows, -1)[:, :width]
    # Half a step, plus the zero point's rounding, plus what clipping to 82 % can cost.
    allowed = 1.01 * step if bits == 8 else 0.2 * np.repeat(span, block, -1)[:, :width] + step
    assert (np.abs(rounded - weights) <= allowed + 1e-30).all()


@pytest.mark.parametrize("bits", BITS)
def test_rows_are_independent_of_the_piece_they_come_in(bits: int) -> None:
    weights = np.random.default_rng(0).standard_normal((7, 96)).astype(np.float32)
    whole = quantize(weights, bits, 32)
    for row in range(7):
        alone = quantize(weights[row : row + 1], bits, 32)
        assert alone.zero_points is not None
        assert whole.zero_points is not None
        assert (alone.packed == whole.packed[row : row + 1]).all()
        assert (alone.scales == whole.scales[row : row + 1]).all()
        assert (alone.zero_points == whole.zero_points[row : row + 1]).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("value", [0.0, 0.25, -3.0])
def test_a_constant_block_is_exact(bits: int, value: float) -> None:
    weights = np.full((2, 64), value, np.float32)
    assert np.allclose(dequantize(quantize(weights, bits, 32), bits, 64), weights, rtol=1e-6)


@pytest.mark.parametrize("bits", BITS)
def test_zeros_stay_zeros(bits: int) -> None:
    weights = np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32)
    weights[:, ::3] = 0
    assert (dequantize(quantize(weights, bits, 32), bits, 64)[:, ::3] == 0).all()


def test_clipping_never_costs_more_than_not_clipping() -> None:
    random = np.random.default_rng(2)
    weights = random.standard_t(3, (64, 256)).astype(np.float32)
    span = weights.reshape(64, -1, 32)
    low, high = np.minimum(span.min(-1), 0), np.maximum(span.max(-1), 0)
    scale = ((high - low) / 15)[..., None]
    zero = np.rint(-low[..., None] / scale)
    plain = (np.rint(span / scale + zero).clip(0, 15) - zero) * scale
    ours = dequantize(quantize(weights, 4, 32), 4, 256)
    assert np.linalg.norm(ours - weights) < np.linalg.norm(plain - span)


def test_blocks_are_finer_where_rows_are_short() -> None:
    assert [block_size(width) for width in (64, 1023, 1024, 8192)] == [32, 32, 128, 128]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 9),
    runs=st.integers(1, 4),
    run=st.sampled_from([16, 32, 128]),
    scale=st.sampled_from([1e-20, 1e-4, 1.0, 1e6]),
    seed=st.integers(0, 2**32 - 1),
)
def test_each_weight_becomes_the_nearest_8_bit_float_of_its_run(
    rows: int, runs: int, run: int, scale: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    weights = (random.standard_normal((rows, runs * run)) * scale).astype(np.float32)
    weights[0, :run] = 0
    found = quantize_floats(weights, run)
    assert found.values.shape == weights.shape
    assert found.scales.shape == (rows, runs)
    scales = found.scales.repeat(run, axis=1).astype(np.float64)
    meant = BYTE_FLOATS[found.values] * scales
    assert np.isfinite(meant).all()
    finite = BYTE_FLOATS[np.isfinite(BYTE_FLOATS)]
    away = np.abs(finite[:, None, None] * scales - weights).min(0)
    # The quotient that is rounded is itself the nearest 32-bit float.
    assert (np.abs(meant - weights) <= away + 1e-6 * np.abs(weights)).all()
    for row in range(rows):
        alone = quantize_floats(weights[row : row + 1], run)
        assert (alone.values == found.values[row : row + 1]).all()
        assert (alone.scales == found.scales[row : row + 1]).all()


def test_runs_are_as_long_as_rows_and_shared_scales_let_them_be() -> None:
    assert [float_run(width) for width in (4096, 1600, 96, 48, 40)] == [128, 64, 32, 16, None]
    assert [float_run(4096, shared) for shared in (4096, 256, 64, 48, 24)] == [
        *(128, 128, 64, 16),
        None,
    ]

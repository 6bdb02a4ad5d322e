"""Weight quantization: in blocks for ONNX Runtime's MatMulNBits, by rows for its integer product.

Owns rounding: each run of `block` weights of a row gets a scale and a zero point, or each row one
scale; or a run gets a scale and each weight is an 8-bit float. Pure: floats in, packed numbers out,
row by row, so that a matrix can be quantized in pieces. Measurements behind the choices:
docs/decisions/0022-weight-quantization.md, 0080-eight-bit-products.md and 0266-eight-bit-floats.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]
Int8 = npt.NDArray[np.int8]
Precision = Literal["fp32", "fp16", "fp8", "int8", "int4", "w8a8", "w4a8"]

_SHRINK = (1.0, 0.94, 0.88, 0.82)
"""Fractions of a block's range that are tried: clipping outliers often costs less than a coarse
step for all others."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """How weights are stored. Bits are 4, 8, or 16 and 32 for plain floats; `float_bits` are those
    of floats that stay plain."""

    layer_bits: int
    table_bits: int
    """Embedding and output tables, which rounding hurts most."""
    integer_products: bool = False
    """Rows with one scale each, multiplied as integers."""
    byte_cache: bool = False
    """The cache holds 8 bits, and native operators round each token's activations to as many."""
    byte_floats: bool = False
    """The 8 bits of layers are floats, with a scale for each run of a row."""

    @property
    def float_bits(self) -> int:
        return 16 if self.table_bits == 16 else 32


SCHEMES: dict[Precision, Scheme] = {
    "fp32": Scheme(32, 32),
    "fp16": Scheme(16, 16),
    "fp8": Scheme(8, 16, byte_floats=True),
    "int8": Scheme(8, 8),
    "int4": Scheme(4, 8),
    "w8a8": Scheme(8, 8, integer_products=True, byte_cache=True),
    "w4a8": Scheme(4, 8, byte_cache=True),
}


FLOAT_BITS = (16, 32)


@dataclass(frozen=True, slots=True)
class Blocks:
    """Quantized rows. weight = (integer - zero_point) * scale.

    Attributes:
        packed: uint8 [rows, blocks, block * bits / 8], the lower nibble first.
        scales: float32 [rows, blocks].
        zero_points: uint8 [rows, ceil(blocks * bits / 8)], the lower nibble first; None if all
            are half of the range.
    """

    packed: UInt8
    scales: Float32
    zero_points: UInt8 | None


LARGEST_BYTE_FLOAT = 448.0
"""E4M3 has no infinities: "FP8 Formats for Deep Learning" (2022), table 1."""
_FLOAT_RUN, _SHORTEST_RUN = 128, 16
"""Neighbours in a row that share a scale; the kernels for GPUs read 16 of them at a time."""


@dataclass(frozen=True, slots=True)
class FloatRows:
    """Rows of 8-bit floats (E4M3). weight = float * scale.

    Attributes:
        values: uint8 [rows, width], the floats' bits.
        scales: float32 [rows, runs].
    """

    values: UInt8
    scales: Float32


def float_run(width: int, shared: int = _FLOAT_RUN) -> int | None:
    """The longest run that rows of `width` are whole multiples of, within neighbours that share
    a scale; None if it would be shorter than kernels take."""
    run = math.gcd(width, shared, _FLOAT_RUN)
    return run if run % _SHORTEST_RUN == 0 else None


def quantize_floats(rows: Float32, run: int) -> FloatRows:
    """The 8-bit floats nearest to `rows` [n, width]; the largest of a run is the largest float."""
    count, width = rows.shape
    runs = rows.reshape(count, width // run, run)
    scales = np.abs(runs).max(-1) / np.float32(LARGEST_BYTE_FLOAT)
    scales = np.where(scales > 0, scales, np.float32(1)).astype(np.float32)
    scaled = runs / scales[..., None]
    # What a division's rounding lifts over the largest would become no number.
    np.clip(scaled, -LARGEST_BYTE_FLOAT, LARGEST_BYTE_FLOAT, out=scaled)
    values = scaled.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    return FloatRows(values.reshape(count, width), scales)


def block_size(width: int) -> int:
    """Weights that share a scale in rows of `width`: 128 is faster, 32 is finer."""
    return 128 if width >= 1024 else 32


def quantize(rows: Float32, bits: int, block: int) -> Blocks:
    """Quantize `rows` [n, width]; the last block of a row is padded with zeros."""
    assert bits in {4, 8}, bits
    count, width = rows.shape
    padded = np.pad(rows, ((0, 0), (0, -width % block))) if width % block else rows
    blocks = padded.reshape(count, -1, block)
    top = (1 << bits) - 1
    low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
    shrinks = _SHRINK if bits == 4 else _SHRINK[:1]
    integers, scales, zeros = _best(blocks, low, high, top, shrinks)
    return Blocks(pack_bits(integers, bits), scales, pack_bits(zeros, bits))


def dequantize(blocks: Blocks, bits: int, width: int) -> Float32:
    """The weights that `blocks` stand for, [n, width]."""
    integers = unpack_bits(blocks.packed, bits).astype(np.float32)
    zeros: Float32 | float = float(1 << (bits - 1))
    if blocks.zero_points is not None:
        points = unpack_bits(blocks.zero_points, bits)[:, : blocks.scales.shape[1]]
        zeros = points.astype(np.float32)[..., None]
    weights = (integers - zeros) * blocks.scales[..., None]
    return weights.reshape(len(weights), -1)[:, :width].astype(np.float32)


def quantize_rows(rows: Float32) -> tuple[Int8, Float32]:
    """Integers -127..127 of `rows` [n, width], and the scale of each row [n].

    Symmetric: a zero point would cost a correction in every product.
    """
    scales = np.abs(rows).max(-1) / np.float32(127)
    scales = np.where(scales > 0, scales, np.float32(1)).astype(np.float32)
    return np.rint(rows / scales[:, None]).astype(np.int8), scales


def _best(
    blocks: Float32, low: Float32, high: Float32, top: int, shrinks: tuple[float, ...]
) -> tuple[UInt8, Float32, UInt8]:
    """Of the ranges tried, the one with the least squared error, block by block."""
    integers, scales, zeros, error = _round(blocks, low, high, top)
    for shrink in shrinks[1:]:
        factor = np.float32(shrink)
        other = _round(blocks, low * factor, high * factor, top)
        better = other[3] < error
        integers[better], scales[better] = other[0][better], other[1][better]
        zeros[better], error[better] = other[2][better], other[3][better]
    return integers, scales, zeros


def _round(
    blocks: Float32, low: Float32, high: Float32, top: int
) -> tuple[UInt8, Float32, UInt8, Float32]:
    """Round to a grid over low..high, then refit the scale to the integers (least squares).

    One array of the blocks' size is worked on in place: fresh ones cost more than the arithmetic.
    """
    scales = (high - low) / np.float32(top)
    scales = np.where(scales > 0, scales, np.float32(1)).astype(np.float32)
    zeros = np.rint(-low / scales).clip(0, top)
    steps = blocks / scales[..., None]
    steps += zeros[..., None]
    np.rint(steps, out=steps).clip(0, top, out=steps)
    integers = steps.astype(np.uint8)
    steps -= zeros[..., None]
    squares = np.einsum("nbk,nbk->nb", steps, steps)
    fitted = np.einsum("nbk,nbk->nb", blocks, steps) / np.maximum(squares, 1)
    scales = np.where((squares > 0) & (fitted > 0), fitted, scales).astype(np.float32)
    steps *= scales[..., None]
    np.subtract(blocks, steps, out=steps)
    steps *= steps
    return integers, scales, zeros.astype(np.uint8), steps.sum(-1)


def pack_bits(values: UInt8, bits: int) -> UInt8:
    """Two nibbles a byte along the last axis, the lower first; an odd end is padded."""
    if bits == 8:
        return values
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros_like(values[..., :1])], axis=-1)
    packed: npt.NDArray[Any] = values[..., 0::2] | (values[..., 1::2] << 4)
    return packed


def unpack_bits(values: UInt8, bits: int) -> UInt8:
    """What `pack_bits` packed; an odd end has one more."""
    if bits == 8:
        return values
    nibbles = np.stack([values & 15, values >> 4], axis=-1)
    return nibbles.reshape(*values.shape[:-1], -1)

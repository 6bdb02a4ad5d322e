"""compressed-tensors: integers packed along the input, or 8-bit floats, one scheme for all.

`pack-quantized`: weight_packed [outer, inner / n] in words of n integers that are shifted to be
positive, weight_scale [outer, groups], weight_shape [2], weight_zero_point [outer / n, groups] if
they are not symmetric, weight_g_idx [inner] if groups are not neighbours. `float-quantized`: weight
F8_E4M3, weight_scale for all, for each row or square. `nvfp4-pack-quantized`: weight_packed U8,
weight_scale F8_E4M3, and weight_global_scale [1], by which they are divided. Schemes that differ
from layer to layer, and scales of activations that were fixed beforehand, are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from appliance.errors import CheckpointError
from installer.checkpoint.packed.four_bits import INTEGER_BITS
from installer.checkpoint.packed.fp8 import ScaledBytes
from installer.checkpoint.packed.gptq import WHOLE_ROWS, described, fits, indices, two
from installer.checkpoint.packed.groups import (
    WORD_BITS,
    GroupedMatrix,
    Groups,
    unpack,
    unpack_columns,
)
from installer.checkpoint.packed.nvfp4 import GROUP, Names, read_matrix
from installer.checkpoint.packed.packing import Method, Packed, Stored
from installer.checkpoint.quantize import UInt8
from installer.checkpoint.settings import Settings

PACKED, FLOATS, FOUR_BITS = "pack-quantized", "float-quantized", "nvfp4-pack-quantized"


def read(settings: Settings) -> Method:
    """Read quantization_config. Raises CheckpointError."""
    # What is left plain shows in the tensors themselves; the rest is of its making.
    settings.ignore("ignore", "global_compression_ratio", "version", "quantization_status")
    settings.expect("format", PACKED, FLOATS, FOUR_BITS)
    for key in ("kv_cache_scheme", "sparsity_config", "transform_config"):
        settings.expect(key, {})
    groups = settings.section("config_groups")
    scheme = None if groups is None else groups.section("group_0")
    if groups is None or scheme is None:
        raise CheckpointError("config.json: quantization_config: config_groups has no group_0")
    groups.finish()
    kind = settings.text("format")
    method = _read_scheme(scheme, kind)
    scheme.finish()
    return method


def _read_scheme(scheme: Settings, kind: str) -> Method:
    scheme.expect("targets", ["Linear"])
    scheme.expect("format", kind)
    scheme.expect("output_activations")
    activations, weights = scheme.section("input_activations"), scheme.section("weights")
    if activations is not None:
        # Rounded as they come: the grades have rounding of their own.
        activations.expect("dynamic", *(["local"] if kind == FOUR_BITS else [True]))
    if weights is None:
        raise CheckpointError("config.json: quantization_config: group_0 has no weights")
    weights.ignore("observer", "observer_kwargs", "actorder", "scale_dtype", "zp_dtype")
    weights.expect("dynamic", False)
    weights.expect("type", "int" if kind == PACKED else "float")
    method = {PACKED: _integers, FLOATS: _floats, FOUR_BITS: _four_bits}[kind](weights)
    weights.finish()
    return method


def _integers(weights: Settings) -> Method:
    weights.expect("strategy", "group", "channel")
    weights.expect("num_bits", 4, 8)
    weights.expect("block_structure")
    whole = weights.text("strategy") == "channel"
    if whole:
        weights.expect("group_size", WHOLE_ROWS)
    size = WHOLE_ROWS if whole else weights.integer("group_size")
    return Words(weights.integer("num_bits"), size, weights.flag("symmetric", True))


def _floats(weights: Settings) -> Method:
    weights.expect("strategy", "tensor", "channel", "block")
    weights.expect("num_bits", 8)
    weights.expect("symmetric", True)
    weights.expect("group_size")
    if weights.text("strategy") != "block":
        weights.expect("block_structure")
        return Floats(weights.text("strategy"), 1, 0)
    sides = weights.ids("block_structure")
    if len(sides) != 2 or 0 in sides:
        raise CheckpointError(
            f"config.json: quantization_config: block_structure {list(sides)} is not supported"
        )
    return Floats("block", *sides)


def _four_bits(weights: Settings) -> Method:
    weights.expect("strategy", "tensor_group")
    weights.expect("num_bits", 4)
    weights.expect("symmetric", True)
    weights.expect("group_size", GROUP)
    weights.expect("block_structure")
    return FourBits()


@dataclass(frozen=True, slots=True)
class Words:
    """The method of integers; if symmetric, zero is in their middle."""

    bits: int
    group: int
    symmetric: bool

    @property
    def label(self) -> str:
        return f"compressed-tensors, {self.bits} bits in {described(self.group)}"

    def matrix(self, stored: Stored, weight: str) -> Packed | None:
        """The matrix `weight`, if it is packed."""
        if not stored.holds(f"{weight}_packed"):
            return None
        per_word = WORD_BITS // self.bits
        outer, words = two(stored, f"{weight}_packed")
        shape = stored.stored(f"{weight}_shape", "I32", "I64").tolist()
        if len(shape) != 2 or (shape[0], -(-shape[1] // per_word)) != (outer, words):
            raise CheckpointError(f"{weight}_shape {shape} contradicts {weight}_packed")
        inner = int(shape[1])
        size = inner if self.group == WHOLE_ROWS else self.group
        fits(stored, f"{weight}_scale", (outer, -(-inner // size)))
        if not self.symmetric:
            zeros = (-(-outer // per_word), -(-inner // size))
            fits(stored, f"{weight}_zero_point", zeros)
        load, of = partial(self._load, stored, weight), indices(stored, f"{weight}_g_idx", inner)
        return GroupedMatrix(weight, (outer, inner), self.bits, size, load, of)

    def _load(self, stored: Stored, weight: str) -> Groups:
        words = stored.stored(f"{weight}_packed", "I32")
        scales = stored.stored_floats(f"{weight}_scale")
        integers = partial(unpack_columns, words, self.bits)
        return Groups(integers, scales, self._zeros(stored, weight, scales.shape))

    def _zeros(self, stored: Stored, weight: str, shape: tuple[int, ...]) -> UInt8:
        if self.symmetric:
            return np.full(shape, 1 << (self.bits - 1), np.uint8)
        words = stored.stored(f"{weight}_zero_point", "I32")
        zeros: UInt8 = unpack(words.T, self.bits).T[: shape[0]]
        return np.ascontiguousarray(zeros)


@dataclass(frozen=True, slots=True)
class Floats:
    """The method of 8-bit floats; `high` by `wide` of a square."""

    strategy: str
    high: int
    wide: int

    @property
    def label(self) -> str:
        return f"compressed-tensors, 8-bit floats with a scale a {self.strategy}"

    @property
    def bits(self) -> None:
        return None

    def matrix(self, stored: Stored, weight: str) -> Packed | None:
        """The matrix `weight`, if it has scales."""
        scales = f"{weight}_scale"
        if not weight.endswith(".weight") or not stored.holds(scales):
            return None
        outer, inner = two(stored, weight)
        sides = {"tensor": (outer, inner), "channel": (1, inner), "block": (self.high, self.wide)}
        return ScaledBytes(stored, weight, scales, *sides[self.strategy])


@dataclass(frozen=True, slots=True)
class FourBits:
    """The method of 4-bit floats."""

    @property
    def label(self) -> str:
        return f"compressed-tensors, 4-bit floats in groups of {GROUP} (NVFP4)"

    @property
    def bits(self) -> int:
        """Of the integers that hold what the floats mean."""
        return INTEGER_BITS

    def matrix(self, stored: Stored, weight: str) -> Packed | None:
        """The matrix `weight`, if it is packed."""
        packed = f"{weight}_packed"
        if not weight.endswith(".weight") or not stored.holds(packed):
            return None
        given = f"{weight.removesuffix('.weight')}.input_global_scale"
        unused = [given] if stored.holds(given) else []
        number = f"{weight}_global_scale"
        return read_matrix(stored, Names(packed, f"{weight}_scale", number, True, unused))

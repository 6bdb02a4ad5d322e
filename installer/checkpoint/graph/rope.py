"""Rotary position embeddings: the tables of cosines and sines a decoder reads its angles from.

Owns the frequencies of Su et al., RoFormer (2021), and Llama 3.1's rescaling of them for long
contexts. Refuses every other rescaling by its name: a model run with the wrong angles answers
fluently and wrongly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from appliance.errors import CheckpointError
from installer.checkpoint.quantize import Float32
from installer.checkpoint.settings import Settings

_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Wavelengths beyond the old context are stretched by `factor`, short ones are kept."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    old_context: int


@dataclass(frozen=True, slots=True)
class Rope:
    theta: float
    head_dim: int
    linear_factor: float = 1.0
    llama3: Llama3Scaling | None = None

    def frequencies(self) -> Float32:
        """Radians per position, [head_dim / 2]."""
        exponents = np.arange(0, self.head_dim, 2, dtype=np.float32) / np.float32(self.head_dim)
        frequencies = np.float32(1) / np.float32(self.theta) ** exponents
        frequencies = frequencies / np.float32(self.linear_factor)
        if self.llama3 is not None:
            frequencies = _llama3(frequencies, self.llama3)
        return frequencies.astype(np.float32)

    def angles(self, positions: int) -> Iterator[Float32]:
        """Radians of positions 0.. as runs of rows, [positions, head_dim / 2] in all."""
        frequencies = self.frequencies()
        for first in range(0, positions, _ROWS):
            at = np.arange(first, min(first + _ROWS, positions), dtype=np.float32)
            yield at[:, None] * frequencies


def read_rope(config: Settings, head_dim: int) -> Rope:
    """Read `rope_theta` and `rope_scaling`, or the newer `rope_parameters`.

    Raises CheckpointError naming a scaling that is not known here.
    """
    parameters = config.section("rope_parameters")
    scaling = parameters or config.section("rope_scaling")
    theta = (parameters or config).number("rope_theta", 10_000.0)
    if parameters is not None:
        config.expect("rope_theta", theta)
        config.expect("rope_scaling")
    if scaling is None:
        return Rope(theta, head_dim)
    kind = scaling.text("type" if "type" in scaling else "rope_type", "default")
    scaling.expect("rope_type", kind)
    scaling.expect("partial_rotary_factor", 1, 1.0)
    rope = _scaled(scaling, kind, theta, head_dim)
    scaling.finish()
    return rope


def _scaled(scaling: Settings, kind: str, theta: float, head_dim: int) -> Rope:
    if kind == "default":
        return Rope(theta, head_dim)
    if kind == "linear":
        return Rope(theta, head_dim, linear_factor=scaling.number("factor"))
    if kind == "llama3":
        llama3 = Llama3Scaling(
            scaling.number("factor"),
            scaling.number("low_freq_factor"),
            scaling.number("high_freq_factor"),
            scaling.integer("original_max_position_embeddings"),
        )
        return Rope(theta, head_dim, llama3=llama3)
    raise CheckpointError(
        f"config.json: rope_scaling of type {kind!r} is not supported",
        hint="types are default, linear and llama3",
    )


def _llama3(frequencies: Float32, scaling: Llama3Scaling) -> Float32:
    wavelengths = 2 * math.pi / frequencies
    share = scaling.old_context / wavelengths - scaling.low_freq_factor
    smooth = (share / (scaling.high_freq_factor - scaling.low_freq_factor)).clip(0, 1)
    # smooth is 0 for wavelengths beyond old_context / low, 1 below old_context / high.
    scaled = (1 - smooth) * frequencies / scaling.factor + smooth * frequencies
    return scaled.astype(np.float32)

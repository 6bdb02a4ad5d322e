"""Rotary position embeddings: the tables of cosines and sines a decoder reads its angles from.

Owns the frequencies of Su et al., RoFormer (2021), and Llama 3.1's rescaling of them for long
contexts. Refuses every other rescaling by its name: a model run with the wrong angles answers
fluently and wrongly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from appliance.errors import CheckpointError
from installer.checkpoint.quantize import Float32
from installer.checkpoint.settings import Settings

AXES = 3
Axes = Literal["one", "apart", "interleaved"]
"""Whether positions have one axis or three, and how those share the pairs of a head."""
_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Wavelengths beyond the old context are stretched by `factor`, short ones are kept."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    old_context: int


@dataclass(frozen=True, slots=True)
class Sections:
    """Which axis each pair of a head turns with: `counts` pairs for time, row and column.

    `interleaved`: in turns, as long as an axis has pairs left; else one axis after the other.
    Reference: M-RoPE; Wang et al., Qwen2-VL (2024).
    """

    counts: tuple[int, int, int]
    interleaved: bool

    def axes(self, pairs: int) -> list[int]:
        """The axis of each of `pairs` pairs."""
        if not self.interleaved:
            return [axis for axis, count in enumerate(self.counts) for _ in range(count)]
        axes = [0] * pairs
        for axis in (1, 2):
            for pair in range(axis, AXES * self.counts[axis], AXES):
                axes[pair] = axis
        return axes


@dataclass(frozen=True, slots=True)
class Rope:
    theta: float
    head_dim: int
    linear_factor: float = 1.0
    llama3: Llama3Scaling | None = None
    sections: Sections | None = None
    """How its pairs are shared among three axes; None: there is one."""

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


def read_rope(config: Settings, head_dim: int, *, axes: Axes = "one") -> Rope:
    """Read `rope_theta` and `rope_scaling`, or the newer `rope_parameters`.

    `axes`: how three axes share the pairs, where positions have them. Raises CheckpointError
    naming a scaling that is not known here.
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
    sections = None
    if axes != "one":
        sections = _read_sections(scaling, head_dim // 2, interleaved=axes == "interleaved")
        kind = "default" if kind == "mrope" else kind
        scaling.expect("rope_type", kind, "mrope")
    else:
        scaling.expect("rope_type", kind)
    scaling.expect("partial_rotary_factor", 1, 1.0)
    rope = _scaled(scaling, kind, theta, head_dim)
    scaling.finish()
    return replace(rope, sections=sections)


def _read_sections(scaling: Settings, pairs: int, *, interleaved: bool) -> Sections:
    scaling.expect("mrope_interleaved", interleaved)
    counts = scaling.ids("mrope_section")
    # Interleaved pairs of row and column lie at every third place from theirs on.
    fits = len(counts) == AXES and sum(counts) == pairs
    if not fits or (interleaved and AXES * max(counts[1:]) > pairs):
        raise CheckpointError(
            f"config.json: mrope_section = {list(counts)} does not divide {pairs} pairs in three",
            hint="the checkpoint's config.json belongs to another model",
        )
    return Sections((counts[0], counts[1], counts[2]), interleaved)


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

"""Rotary position embeddings: the tables of cosines and sines a decoder reads its angles from.

Owns the frequencies of Su et al., RoFormer (2021), and every rescaling of them for longer contexts
that is published with the families here. Refuses any other by its name: a model run with the wrong
angles answers fluently and wrongly. Where the reference changes its angles with the length of a
sequence, one set is chosen for the whole bundle: docs/decisions/0171-one-set-of-angles.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from appliance.errors import CheckpointError
from installer.checkpoint.quantize import Float32
from installer.checkpoint.settings import Settings

ORIGINAL = "original_max_position_embeddings"
_CONTEXT = "max_position_embeddings"
AXES = 3
Axes = Literal["one", "apart", "interleaved"]
"""Whether positions have one axis or three, and how those share the pairs of a head."""
_ROWS = 4096
_TURNED_UNIT = 16


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
    """The angles of one kind of layer; equal ones share their tables.

    Attributes:
        frequencies: radians per position; the first 2 * len(frequencies) numbers of a head turn.
        magnitude: what cosines and sines are multiplied by.
        reach: positions that a rescaling was made for; 0 says nothing.
        interleaved: whether neighbours turn together, rather than one of each half.
        sections: how three axes share its pairs; None: positions have one.
    """

    frequencies: tuple[float, ...]
    magnitude: float = 1.0
    reach: int = 0
    interleaved: bool = False
    sections: Sections | None = None

    @property
    def turned(self) -> int:
        """How many of a head's numbers turn, from the first on."""
        return 2 * len(self.frequencies)

    def angles(self, positions: int) -> Iterator[Float32]:
        """Radians of positions 0.. as runs of rows, [positions, turned / 2] in all."""
        frequencies = np.array(self.frequencies, np.float32)
        for first in range(0, positions, _ROWS):
            at = np.arange(first, min(first + _ROWS, positions), dtype=np.float32)
            yield at[:, None] * frequencies


STILL = Rope((0.0,) * (_TURNED_UNIT // 2))
"""Of layers whose queries and keys know no positions: as few numbers as kernels turn, by nothing.

Kernels and graphs so need not tell such layers from others, and no bit of a head changes.
"""


@dataclass(frozen=True, slots=True)
class Basis:
    """What a rescaling starts from.

    Attributes:
        theta: the base of the wavelengths.
        turned: how many of a head's numbers turn.
        context: positions that the bundle is built for.
        original: positions that the model was trained on first; None leaves it to the rescaling.
    """

    theta: float
    turned: int
    context: int
    original: int | None = None

    def frequencies(self) -> Float32:
        """Radians per position without any rescaling, [turned / 2]."""
        exponents = np.arange(0, self.turned, 2, dtype=np.float32) / np.float32(self.turned)
        frequencies: Float32 = np.float32(1) / np.float32(self.theta) ** exponents
        return frequencies


def read_rope(
    config: Settings,
    head_dim: int,
    *,
    partial: bool = False,
    names: Mapping[str, str] | None = None,
    axes: Axes = "one",
    theta: float = 10_000.0,
    beside: Collection[str] = (),
) -> Rope:
    """Read `rope_theta` and `rope_scaling`, or the newer `rope_parameters`.

    Args:
        partial: whether the architecture knows `partial_rotary_factor`.
        names: what this architecture calls a rescaling -> its name here.
        axes: how three axes share the pairs, where positions have them.
        theta: the architecture's default of `rope_theta`.
        beside: keys of the rescaling that say nothing of angles, which the caller reads.

    Raises CheckpointError naming a rescaling that is not known here.
    """
    parameters = config.section("rope_parameters")
    scaling = parameters or config.section("rope_scaling")
    theta = (parameters or config).number("rope_theta", theta)
    share = config.number("partial_rotary_factor", 1.0) if partial else 1.0
    if parameters is not None:
        config.expect("rope_theta", theta)
        config.expect("rope_scaling")
        share = parameters.number("partial_rotary_factor", share) if partial else share
    original = config.integer(ORIGINAL) if ORIGINAL in config else None
    basis = Basis(theta, int(head_dim * share), config.integer(_CONTEXT), original)
    if scaling is not None:
        scaling.expect("partial_rotary_factor", share)
        scaling.ignore(*beside)
    sections = None if axes == "one" else _read_sections(scaling, basis, axes)
    return replace(read_scaling(scaling, basis, names or {}), sections=sections)


def read_ropes(
    parameters: Settings,
    thetas: Mapping[str, float],
    basis: Basis,
    share: float | None = None,
) -> dict[str, Rope]:
    """Of each kind of layer in `thetas` what `rope_parameters` says of it, which says no more.

    Args:
        thetas: kind -> what `rope_theta` means where it is absent.
        basis: of all kinds but for that.
        share: of a head that turns in all of them, where the architecture says it for each.
    """
    ropes = {}
    for kind, usual in thetas.items():
        section = parameters.section(kind)
        theta = section.number("rope_theta", usual) if section else usual
        if section is not None and share is not None:
            section.expect("partial_rotary_factor", share)
        ropes[kind] = read_scaling(section, replace(basis, theta=theta))
    parameters.finish()
    return ropes


def _read_sections(scaling: Settings | None, basis: Basis, axes: Axes) -> Sections:
    """Read `mrope_section`; nothing else may be rescaled then."""
    pairs, interleaved = basis.turned // 2, axes == "interleaved"
    counts: tuple[int, ...] = ()
    if scaling is not None:
        for key in ("type", "rope_type"):
            scaling.expect(key, "default", "mrope")
        scaling.expect("mrope_interleaved", interleaved)
        counts = scaling.ids("mrope_section")
    # Interleaved pairs of row and column lie at every third place from theirs on.
    fits = len(counts) == AXES and sum(counts) == pairs
    if not fits or (interleaved and any(AXES * counts[at] - AXES + at >= pairs for at in (1, 2))):
        raise CheckpointError(
            f"config.json: mrope_section = {list(counts)} does not divide {pairs} pairs in three",
            hint="the checkpoint's config.json belongs to another model",
        )
    return Sections((counts[0], counts[1], counts[2]), interleaved)


def read_scaling(
    scaling: Settings | None, basis: Basis, names: Mapping[str, str] | None = None
) -> Rope:
    """The angles that one object of config.json describes; its `rope_theta` is in the basis."""
    if basis.turned % _TURNED_UNIT:
        raise CheckpointError(
            f"config.json: {basis.turned} numbers of a head turn, not a multiple of {_TURNED_UNIT}",
            hint="the attention kernel needs it to be",
        )
    if scaling is None:
        return _default(Settings({}, ""), basis)
    said = scaling.text("type" if "type" in scaling else "rope_type", "default")
    kind = (names or {}).get(said, said)
    scaling.expect("rope_type", said, kind)
    scale = _SCALINGS.get(kind)
    if scale is None:
        raise CheckpointError(
            f"config.json: rope_scaling of type {kind!r} is not supported",
            hint=f"types are {', '.join(_SCALINGS)}",
        )
    rope = scale(scaling, basis)
    scaling.expect("rope_theta", basis.theta)
    scaling.finish()
    return rope


def _default(_scaling: Settings, basis: Basis) -> Rope:
    return _rope(basis.frequencies())


def _linear(scaling: Settings, basis: Basis) -> Rope:
    return _rope(basis.frequencies() / np.float32(scaling.number("factor")))


def _dynamic(scaling: Settings, basis: Basis) -> Rope:
    """Rescales beyond the context that config.json states, which no sequence here exceeds."""
    scaling.number("factor")
    scaling.expect(ORIGINAL, basis.context)
    return _rope(basis.frequencies())


def _llama3(scaling: Settings, basis: Basis) -> Rope:
    """Wavelengths beyond the old context are stretched by `factor`, short ones are kept.

    The Llama 3 Herd of Models (2024).
    """
    factor, low = scaling.number("factor"), scaling.number("low_freq_factor")
    frequencies = basis.frequencies()
    wavelengths = np.float32(2 * math.pi) / frequencies
    share = scaling.integer(ORIGINAL, basis.original) / wavelengths - low
    # Llama 4 has no wavelengths between: as narrow a ramp as there can be is a step.
    span = (scaling.number("high_freq_factor") - low) or np.finfo(np.float32).tiny
    with np.errstate(over="ignore"):
        smooth = (share / np.float32(span)).clip(0, 1)
    # smooth is 0 for wavelengths beyond the old context / low, 1 below the old context / high.
    scaled = (1 - smooth) * frequencies / factor + smooth * frequencies
    return _rope(scaled.astype(np.float32))


def _yarn(scaling: Settings, basis: Basis) -> Rope:
    """Long wavelengths are stretched, short ones kept, with a ramp between, and logits sharpened.

    Peng et al., YaRN (2023), sections 3.2 to 3.4.
    """
    original = _original(scaling, basis)
    factor = scaling.number("factor", basis.context / original)
    # A boundary of zero means that it is not said.
    bounds = scaling.number("beta_fast", 0) or 32.0, scaling.number("beta_slow", 0) or 1.0
    pairs = [_pair_that_turns(rounds, original, basis) for rounds in bounds]
    if scaling.flag("truncate", True):
        pairs = [math.floor(pairs[0]), math.ceil(pairs[1])]
    first, last = max(pairs[0], 0), min(pairs[1], basis.turned - 1)
    span = last - first if last != first else 0.001
    count = np.arange(basis.turned // 2, dtype=np.float32)
    stretched = ((count - np.float32(first)) / np.float32(span)).clip(0, 1)
    frequencies = basis.frequencies()
    blended = frequencies / np.float32(factor) * stretched + frequencies * (1 - stretched)
    magnitude = scaling.number("attention_factor", _sharpening(scaling, factor))
    scaling.ignore("finetuned")
    return _rope(blended, magnitude, round(original * factor))


def _pair_that_turns(rounds: float, original: int, basis: Basis) -> float:
    """Which pair of a head turns so many times in the original context; not a whole number."""
    wavelength = original / (rounds * 2 * math.pi)
    return basis.turned * math.log(wavelength) / (2 * math.log(basis.theta))


def _sharpening(scaling: Settings, factor: float) -> float:
    """The magnitude that YaRN's section 3.4 gives, or the quotient that DeepSeek trains with."""

    def magnitude(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    one, other = scaling.number("mscale", 0), scaling.number("mscale_all_dim", 0)
    return magnitude(one) / magnitude(other) if one and other else magnitude(1)


def _longrope(scaling: Settings, basis: Basis) -> Rope:
    """A factor for each frequency, of one list for short contexts or of one for long ones.

    Ding et al., LongRoPE (2024).
    """
    original = _original(scaling, basis)
    count = basis.turned // 2
    lists = [scaling.numbers(f"{name}_factor", count) for name in ("short", "long")]
    factors = np.array(lists[basis.context > original], np.float32)
    stretched = scaling.number("factor", basis.context / original)
    usual = math.sqrt(1 + math.log(stretched) / math.log(original)) if stretched > 1 else 1.0
    magnitude = scaling.number("attention_factor", usual)
    return _rope((basis.frequencies() / factors).astype(np.float32), magnitude)


def _proportional(scaling: Settings, basis: Basis) -> Rope:
    """A share of the pairs turns, with wavelengths as if all did; Gemma 4 (2026)."""
    pairs = basis.turned // 2
    turning = int(scaling.number("partial_rotary_factor", 1.0) * basis.turned // 2)
    still = np.arange(pairs) >= turning
    frequencies = basis.frequencies() / np.float32(scaling.number("factor", 1.0))
    return _rope(np.where(still, np.float32(0), frequencies))


_SCALINGS: Mapping[str, Callable[[Settings, Basis], Rope]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "proportional": _proportional,
}


def _original(scaling: Settings, basis: Basis) -> int:
    """Positions of the first training; what stands outside the rescaling goes before."""
    if basis.original is None:
        return scaling.integer(ORIGINAL, basis.context)
    scaling.expect(ORIGINAL, basis.original)
    return basis.original


def _rope(frequencies: Float32, magnitude: float = 1.0, reach: int = 0) -> Rope:
    return Rope(tuple(frequencies.astype(np.float32).tolist()), magnitude, reach)

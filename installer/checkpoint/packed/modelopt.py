"""NVIDIA's Model Optimizer: 8-bit floats, or 4-bit ones (NVFP4), as it exports them.

weight F8_E4M3 [outer, inner] with weight_scale [] (FP8), [outer] (FP8_PER_CHANNEL_PER_TOKEN) or
[outer / 128, 1, inner / 128, 1] (FP8_PB_WO); or weight U8 [outer, inner / 2], weight_scale F8_E4M3
[outer, inner / 16] and weight_scale_2 [] (NVFP4, W4A16_NVFP4). What it says is in config.json's
quantization_config, or, of older releases, in hf_quant_config.json. How activations were rounded
(input_scale), and a cache of 8 bits (k_scale, v_scale), is not the model's meaning: the grades have
rounding of their own. Refuses what AWQ scaled without a layer before that does it
(pre_quant_scale), formats that differ from layer to layer, and integers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from appliance.errors import CheckpointError
from installer.checkpoint.packed.four_bits import INTEGER_BITS
from installer.checkpoint.packed.fp8 import WHOLE, ScaledBytes
from installer.checkpoint.packed.nvfp4 import GROUP, Names, read_matrix
from installer.checkpoint.packed.packing import Method, Packed, Stored
from installer.checkpoint.settings import Settings

FILE = "hf_quant_config.json"
CACHE_SCALES = (".k_scale", ".v_scale")
"""How the names of tensors end that are of a cache, and stand beside what makes keys and values."""
_SIDES = {"FP8": (WHOLE, WHOLE), "FP8_PER_CHANNEL_PER_TOKEN": (1, WHOLE), "FP8_PB_WO": (128, 128)}
"""Rows and columns that share a scale."""
_FOUR_BITS = ("NVFP4", "W4A16_NVFP4")
_CACHES: tuple[object, ...] = ("FP8", {}, {"dynamic": False, "num_bits": 8, "type": "float"})
_WEIGHT = ".weight"


def read(settings: Settings) -> Method:
    """Read quantization_config. Raises CheckpointError."""
    # Which matrices stayed plain shows in the tensors themselves; who made it says nothing.
    settings.ignore("ignore", "producer", "quant_library")
    settings.expect("kv_cache_scheme", *_CACHES)
    method = _read_algorithm(settings)
    groups = settings.section("config_groups")
    group = None if groups is None else groups.section("group_0")
    if groups is not None and group is not None:
        _expect_group(group, method.four)
        groups.finish()
    return method


def read_beside(document: Settings) -> Method:
    """Read hf_quant_config.json. Raises CheckpointError."""
    document.ignore("producer")
    settings = document.needed("quantization")
    document.finish()
    settings.ignore("exclude_modules")
    settings.expect("kv_cache_quant_algo", "FP8")
    settings.expect("has_zero_point", False)
    settings.expect("pre_quant_scale", False)
    method = _read_algorithm(settings)
    settings.finish()
    return method


def _read_algorithm(settings: Settings) -> Modelopt:
    name = settings.text("quant_algo")
    known = (*_SIDES, *_FOUR_BITS)
    if name.upper() not in known:
        settings.expect("quant_algo", *known)
    four = name.upper() in _FOUR_BITS
    settings.expect("group_size", *((GROUP,) if four else ()))
    return Modelopt(name.upper(), *_SIDES.get(name.upper(), (0, 0)))


def _expect_group(group: Settings, four: bool) -> None:
    """Refuse a group that says something else than the algorithm's name."""
    # How activations are rounded: the grades have rounding of their own.
    group.ignore("input_activations", "output_activations")
    group.expect("targets", ["Linear"])
    weights = group.section("weights")
    if weights is not None:
        weights.expect("dynamic", False)
        weights.expect("num_bits", 4 if four else 8)
        weights.expect("type", "float")
        weights.expect("group_size", *((GROUP,) if four else ()))
        weights.finish()
    group.finish()


@dataclass(frozen=True, slots=True)
class Modelopt:
    """The method; of 8-bit floats, `high` rows by `wide` columns share a scale."""

    algorithm: str
    high: int
    wide: int

    @property
    def four(self) -> bool:
        """Whether matrices are 4-bit floats."""
        return self.algorithm in _FOUR_BITS

    @property
    def label(self) -> str:
        bits = 4 if self.four else 8
        return f"modelopt, {bits}-bit floats ({self.algorithm})"

    @property
    def bits(self) -> int | None:
        """Of the integers that hold what 4-bit floats mean."""
        return INTEGER_BITS if self.four else None

    def matrix(self, stored: Stored, weight: str) -> Packed | None:
        """The matrix `weight`, if it has scales."""
        if not weight.endswith(_WEIGHT):
            return None
        stem = weight.removesuffix(_WEIGHT)
        if not stored.holds(f"{weight}_scale"):
            for name in _of_caches(stored, stem):
                stored.stored_floats(name)
            return None
        if stored.holds(f"{stem}.pre_quant_scale"):
            raise CheckpointError(
                f"{stem}.pre_quant_scale: what the matrix is multiplied with is scaled first, "
                "which no layer of the model does",
                hint="take the checkpoint in FP8 or NVFP4 without AWQ",
            )
        given = f"{stem}.input_scale"
        unused = [*([given] if stored.holds(given) else []), *_of_caches(stored, stem)]
        if self.four:
            return read_matrix(
                stored, Names(weight, f"{weight}_scale", f"{weight}_scale_2", False, unused)
            )
        return ScaledBytes(stored, weight, f"{weight}_scale", self.high, self.wide, unused)


def _of_caches(stored: Stored, stem: str) -> Iterator[str]:
    names = (f"{stem}{end}" for end in CACHE_SCALES)
    return (name for name in names if stored.holds(name))

"""Small models that read images, built once, and the pictures that the tests show them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from appliance.bundle.files import MANIFEST_NAME
from appliance.bundle.manifest import Manifest, decode
from appliance.bundle.specs import DecoderSpec, VisionSpec
from appliance.engine.vision.decoder import Pixels
from installer.checkpoint.quantize import Precision
from tests.checkpoint.conftest import build_unsigned
from tests.conftest import BuildOnce
from tests.fakes.muse_checkpoints import write_muse_glimmer
from tests.fakes.seeing_states import write_qwen3_5, write_qwen3_5_moe
from tests.fakes.vision_checkpoints import (
    write_qwen2_5_vl,
    write_qwen3_vl,
    write_qwen3_vl_moe,
)
from tests.shim.sdk import client
from tests.sweeps import rarely

__all__ = [
    "COUNTED",
    "EVERY",
    "FAMILIES",
    "LESS_OFTEN",
    "MOST",
    "RECURRENT",
    "WRITERS",
    "Seeing",
    "client",
]

WRITERS: dict[str, Callable[..., Path]] = {
    "qwen3_vl": write_qwen3_vl,
    "qwen2_5_vl": write_qwen2_5_vl,
    "qwen3_vl_moe": write_qwen3_vl_moe,
}
FAMILIES = tuple(WRITERS)
WRITERS |= {"qwen3_5": write_qwen3_5, "qwen3_5_moe": write_qwen3_5_moe}
RECURRENT = tuple(name for name in WRITERS if name not in FAMILIES)
"""Those with layers that keep a running state, which can be cut where one stands alone."""
COUNTED = "muse_glimmer"
"""Whose tokens of images are counted like words; Qwen's processor is not its."""
WRITERS[COUNTED] = write_muse_glimmer
EVERY = (*FAMILIES, *RECURRENT, COUNTED)
LESS_OFTEN = tuple(rarely(RECURRENT[1:]))
MOST = (*FAMILIES, RECURRENT[0], *LESS_OFTEN, COUNTED)
"""Every one, of those with a running state the one with experts in the full run alone."""


@dataclass(frozen=True, slots=True)
class Seeing:
    """A checkpoint and its bundle."""

    checkpoint: Path
    bundle: Path

    @property
    def manifest(self) -> Manifest:
        return decode((self.bundle / MANIFEST_NAME).read_bytes())

    @property
    def decoder(self) -> DecoderSpec:
        spec = self.manifest.decoder
        assert spec is not None
        return spec

    @property
    def vision(self) -> VisionSpec:
        spec = self.manifest.vision
        assert isinstance(spec, VisionSpec)
        return spec


BuildSeeing = Callable[..., Seeing]


@pytest.fixture(scope="session")
def seeing(build_once: BuildOnce) -> BuildSeeing:
    """`seeing(family, precision)`: one of WRITERS' checkpoints, and its unsigned bundle."""

    def build(family: str, precision: Precision = "fp32") -> Seeing:
        checkpoint = (
            build_once(f"seeing-{family}", lambda d: void(WRITERS[family](d / "it"))) / "it"
        )

        def pack(directory: Path) -> None:
            build_unsigned(checkpoint, directory / "it", precision=precision)

        return Seeing(checkpoint, build_once(f"seeing-{family}-{precision}", pack) / "it")

    return build


def void(_made: object) -> None: ...


def picture(height: int, width: int, seed: int = 0) -> Pixels:
    """Random pixels, [height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)

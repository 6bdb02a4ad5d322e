"""What a bundle takes of a node once it is compiled, reckoned from its manifest.

Owns the factors, for the preflight of an installation, which runs before anything that could
compile is there. What of a GPU's memory a model takes: appliance/compiler/memory.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

from appliance.bundle.manifest import Manifest
from appliance.bundle.specs import VisionSpec

_ARTIFACT = 2.5
"""Bytes on the disk for each byte of weights; 1.0 to 2.4 measured (decision 0024)."""
_LOADED = 1.25
"""Bytes of memory for each byte of weights, the model's buffers included."""
_WIDENED: Mapping[str, float] = {"fp16": 2.0, "fp8": 3.75}
"""Grade -> bytes as 32-bit floats, which the processor computes with, for each byte of weights:
tables have 16 bits in either grade. On the disk these are there twice, as they are and laid out."""
_LEAST: Mapping[str, float] = {"fp16": 2.0, "fp8": 7.0}
"""Bytes on the disk, compiled for the processor, that no bundle of the grade does without."""


def least_bytes(manifest: Manifest) -> int:
    """Bytes of the disk without which the bundle cannot be compiled for the processor."""
    return round(_weights(manifest) * _LEAST.get(_grade(manifest), 1.0))


def artifact_bytes(manifest: Manifest, *, gpu: bool) -> int:
    """About how many bytes of the disk the artifact takes, on a node that computes with its GPU
    or does not."""
    return round(_weights(manifest) * max(_ARTIFACT, 2 * _widened(manifest, gpu=gpu)))


def loaded_bytes(manifest: Manifest, *, gpu: bool) -> int:
    """About how many bytes of the node's memory the model takes while it is served."""
    return round(_weights(manifest) * _LOADED * _widened(manifest, gpu=gpu))


def _widened(manifest: Manifest, *, gpu: bool) -> float:
    """Bytes that the node computes with for each byte of weights."""
    return 1.0 if gpu else _WIDENED.get(_grade(manifest), 1.0)


def _grade(manifest: Manifest) -> str:
    """Empty for an adapter, which has no graph."""
    return manifest.graph.precision if manifest.graphs else ""


def _weights(manifest: Manifest) -> int:
    """Bytes beside the graphs for the processor, of the draft model and the tower, too.

    An adapter has none: it is computed by its base's graphs.
    """
    if manifest.kind == "adapter":
        return 0
    folders = {PurePosixPath(manifest.graph.path).parent}
    if isinstance(manifest.vision, VisionSpec):
        folders.add(PurePosixPath(manifest.vision.graph).parent)
    if manifest.of_draft is not None:
        folders.add(PurePosixPath(manifest.of_draft.graph.path).parent)
    return sum(e.size for e in manifest.files if PurePosixPath(e.path).parent in folders)

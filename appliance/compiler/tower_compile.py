"""A vision tower for the CUDA provider, beside the decoder that reads what it makes.

Owns where the tower is computed: by the GPU if its graph runs there and sees what the
processor's graph sees; else by the processor, and then with the reason. A decoder is worth the
GPU without its tower, so a tower that stays behind takes nothing down.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from appliance.bundle.manifest import Manifest
from appliance.bundle.specs import VisionSpec
from appliance.compiler.artifact import VISION_CUDA_NAME, VISION_WEIGHTS_NAME
from appliance.compiler.compile import compile_tower, tower_results
from appliance.compiler.golden import BOUNDS
from appliance.compiler.gpu_compile import Target, load, optimize, refuse_the_processor
from appliance.compiler.probe import run_tower_probe
from appliance.compiler.record import Refusal
from appliance.compiler.sources import verified_graph, verified_weights
from appliance.errors import UnsupportedError


def compile_tower_beside(
    bundle_dir: Path, manifest: Manifest, artifact_dir: Path, target: Target
) -> Refusal | None:
    """Write the tower of a model that has one; why it is the processor's, if it is.

    Raises as `gpu_compile.compile_cuda` does.
    """
    vision = manifest.vision
    if not isinstance(vision, VisionSpec):
        return None
    try:
        _compile(bundle_dir, manifest, vision, artifact_dir, target)
    except UnsupportedError as error:
        for name in (VISION_CUDA_NAME, VISION_WEIGHTS_NAME):
            (artifact_dir / name).unlink(missing_ok=True)
        compile_tower(bundle_dir, manifest, vision, artifact_dir)
        return Refusal(provider="cuda", code=error.code, message=error.message)
    return None


def _compile(
    bundle_dir: Path, manifest: Manifest, vision: VisionSpec, artifact_dir: Path, target: Target
) -> None:
    if not isinstance(vision.cuda, str):
        raise UnsupportedError("the bundle has no graph of its tower for it", code="no_variant")
    folder = vision.graph.rpartition("/")[0]
    weights = verified_weights(bundle_dir, manifest, folder)
    graph = verified_graph(bundle_dir, manifest, vision.cuda, weights)
    names = VISION_CUDA_NAME, VISION_WEIGHTS_NAME
    optimize(graph, bundle_dir / folder, artifact_dir, target, names)
    session = load(artifact_dir / VISION_CUDA_NAME, target)
    refuse_the_processor(session, target)
    expected = tower_results(bundle_dir, manifest, vision)
    bound = BOUNDS[manifest.graph.precision]
    for measured, wanted in zip(run_tower_probe(session, vision), expected, strict=True):
        error = float(np.linalg.norm(measured - wanted) / np.linalg.norm(wanted))
        if not error <= bound:
            raise UnsupportedError(
                f"its tower's features differ from the processor's by {error:.3f}, "
                f"more than {bound}",
                code="golden_differs",
            )

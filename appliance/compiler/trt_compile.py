"""A verified bundle becomes engines of TensorRT, one for each planned profile.

Owns that compilation, as pure work on directories. An engine is a file beside a graph of one node
that names it. What was found out about kernels' speed is kept, so that the next engine is built
faster. Refuses what `gpu_compile` refuses.

The published provider of ONNX Runtime does all this over stand-ins for TensorRT's libraries
(tests/compiler/test_tensorrt_runtime.py). Nobody has run it against TensorRT itself yet
(docs/benchmarks-gpu.md); the golden prompt decides on the node whether what was built is used.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnxruntime as ort

from appliance.bundle.manifest import Manifest
from appliance.bundle.specs import DecoderSpec
from appliance.compiler import golden
from appliance.compiler.folding import fold
from appliance.compiler.gpu_compile import (
    Target,
    load,
    open_on,
    quiet,
    refuse_the_processor,
    session_options,
)
from appliance.compiler.probe import Array
from appliance.compiler.profiles import Profile, find
from appliance.compiler.record import Comparison
from appliance.compiler.sources import verified_graph, verified_weights
from appliance.errors import UnsupportedError

PROVIDER = "TensorrtExecutionProvider"


def compile_tensorrt(
    bundle_dir: Path,
    manifest: Manifest,
    artifact_dir: Path,
    expected: Array,
    profiles: Sequence[Profile],
) -> Comparison:
    """Write a graph and an engine for each profile into the empty `artifact_dir`.

    Raises as `gpu_compile.compile_cuda` does.
    """
    quiet()
    variant, spec = manifest.variant("trt"), manifest.decoder
    assert variant is not None, "the ladder chooses what the bundle has"
    assert spec is not None, "graphs for TensorRT are decoders"
    weights = verified_weights(bundle_dir, manifest)
    graph = verified_graph(bundle_dir, manifest, variant.path, weights)
    scratch = artifact_dir / "folded"
    scratch.mkdir()
    graph, folder = fold(graph, bundle_dir / variant.weights_folder, scratch)
    for profile in profiles:
        _build(graph, folder, artifact_dir, profile, spec)
    shutil.rmtree(scratch)
    return _compare(artifact_dir, profiles, spec, expected, manifest.graph.precision)


def _build(
    graph: bytes, weights: Path, artifact_dir: Path, profile: Profile, spec: DecoderSpec
) -> None:
    """Parse, search kernels, write; minutes for each engine of a large model."""
    options = session_options()
    # The layer that writes the cache wants its length known (decision 0152).
    options.add_free_dimension_override_by_name("capacity", profile.capacity)
    for name, value in (
        # The graph is given as bytes, so its folder must be named; the parser looks there, too.
        ("session.model_external_initializers_file_folder_path", str(weights)),
        # Integers that stand for weights become the weights, as for CUDA.
        ("session.disable_quant_qdq", "1"),
        ("optimization.constant_folding_max_output_size_in_bytes", "0"),
    ):
        options.add_session_config_entry(name, value)
    target = _target(artifact_dir)
    written = {**target.options, **profile.options(spec), **_written(artifact_dir, profile)}
    open_on(graph, options, replace(target, options=written))
    if not (artifact_dir / profile.graph).is_file():
        raise UnsupportedError(
            f"TensorRT built no engine for {profile.name}",
            hint="report this with the output of `appliance status --json`",
        )


def _written(artifact_dir: Path, profile: Profile) -> dict[str, str]:
    """The provider's options for what it writes, and where."""
    return {
        # Else all is computed in 32 bits: ONNX Runtime 1.31.1 does not tell TensorRT to keep to the
        # graph's own types (decision 0269).
        "trt_fp16_enable": "True",
        # Sessions' settings of the same purpose do not reach this provider.
        "trt_dump_ep_context_model": "True",
        "trt_ep_context_file_path": str(artifact_dir / profile.graph),
        # The engine is a file of its own: a protobuf holds less than 2 GB. It lies beside the
        # graph, which names it without a folder: an artifact is built in one place and used in
        # another.
        "trt_ep_context_embed_mode": "0",
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_prefix": profile.name,
    }


def _compare(
    artifact_dir: Path,
    profiles: Sequence[Profile],
    spec: DecoderSpec,
    expected: Array,
    grade: str,
) -> Comparison:
    """Open what was written, and compute the golden prompt with it."""
    capacity = min(profile.capacity for profile in profiles)
    prefill = _opened(artifact_dir, find(profiles, "prefill", 1, 1, capacity))
    decode = _opened(artifact_dir, find(profiles, "decode", 1, 1, capacity))
    measured = golden.on_device([prefill], [decode], spec, [("cuda", 0)], capacity)
    return golden.compare(measured, expected, grade)


def _opened(artifact_dir: Path, profile: Profile) -> ort.InferenceSession:
    target = _target(artifact_dir)
    session = load(artifact_dir / profile.graph, target)
    refuse_the_processor(session, target)
    return session


def _target(artifact_dir: Path) -> Target:
    return Target(
        PROVIDER,
        "cuda",
        {
            "device_id": "0",
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": str(artifact_dir),
        },
    )

"""A verified bundle becomes engines of TensorRT, one for each planned profile.

Owns that compilation, as pure work on directories. An engine is a file beside a graph of one node
that names it; which precision it computes in is the graph's own, so no flag says it again. What
was found out about kernels' speed is kept, so that the next engine is built faster. Refuses what
`gpu_compile` refuses.

Nobody has run this against TensorRT itself yet (docs/benchmarks-gpu.md); the golden prompt decides
on the node whether what was built is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnxruntime as ort

from appliance.bundle.manifest import DecoderSpec, Graph, Manifest
from appliance.compiler import golden
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
    for profile in profiles:
        _build(graph, bundle_dir, variant, artifact_dir, profile, spec)
    return _compare(artifact_dir, profiles, spec, expected, manifest.graph.precision)


def _build(
    graph: bytes,
    bundle_dir: Path,
    variant: Graph,
    artifact_dir: Path,
    profile: Profile,
    spec: DecoderSpec,
) -> None:
    """Parse, search kernels, write; minutes for each engine of a large model."""
    options = session_options()
    # The layer that writes the cache wants its length known (decision 0152).
    options.add_free_dimension_override_by_name("capacity", profile.capacity)
    for name, value in (
        # The graph is given as the bytes that were checked, so its folder must be named.
        (
            "session.model_external_initializers_file_folder_path",
            str(bundle_dir / variant.weights_folder),
        ),
        # Integers that stand for weights become the weights, as for CUDA.
        ("session.disable_quant_qdq", "1"),
        ("optimization.constant_folding_max_output_size_in_bytes", "0"),
        ("ep.context_enable", "1"),
        ("ep.context_file_path", str(artifact_dir / profile.graph)),
        # The engine is a file of its own: a protobuf holds less than 2 GB.
        ("ep.context_embed_mode", "0"),
    ):
        options.add_session_config_entry(name, value)
    built = _target(artifact_dir)
    built = replace(
        built,
        options={
            **built.options,
            **profile.options(spec),
            # The parser gets weights beside the protobuf, which holds less than 2 GB.
            "trt_load_user_initializer": "1",
            "trt_engine_cache_enable": "1",
            # Relative to the graph's own folder: the artifact is built in one place and used in
            # another.
            "trt_engine_cache_path": "",
            "trt_engine_cache_prefix": profile.name,
        },
    )
    open_on(graph, options, built)
    if not (artifact_dir / profile.graph).is_file():
        raise UnsupportedError(
            f"TensorRT built no engine for {profile.name}",
            hint="report this with the output of `appliance status --json`",
        )


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
    measured = golden.on_device(prefill, decode, spec, "cuda", capacity)
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
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(artifact_dir),
        },
    )

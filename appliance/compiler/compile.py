"""A verified bundle becomes what the runtime loads: optimized, weights laid out for this CPU.

Owns the compilation itself, as pure work on directories. ONNX Runtime optimizes the graph and
writes it back with its prepacked weights beside it, so that the engine maps them instead of
computing them at each start (docs/decisions/0024-compiled-artifacts.md). Refuses bundles whose
bytes are not the manifest's, graphs that are not allowed, and results that do not reproduce.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort

from appliance.bundle.manifest import Manifest
from appliance.bundle.specs import DecoderSpec, Graph, HeadSpec, Spec, VisionSpec
from appliance.compiler import golden, golden_texts
from appliance.compiler.artifact import (
    DRAFT_PREFIX,
    GRAPH_NAME,
    NATIVE_ADAPTED_NAME,
    NATIVE_HEAD_NAME,
    NATIVE_NAME,
    VISION_NAME,
    VISION_WEIGHTS_NAME,
    WEIGHTS_NAME,
)
from appliance.compiler.libraries import has_gpu_runtime
from appliance.compiler.native_compile import NativeWeights
from appliance.compiler.probe import Array, run_probe, run_tower_probe
from appliance.compiler.sharing import rename_weights, share_weights
from appliance.compiler.sources import (
    adapted_graphs,
    compiled_graphs,
    plain_graphs,
    verified_graph,
    verified_weights,
)
from appliance.errors import UnsupportedError, first_line
from appliance.native import library

EXACT_PRODUCTS = ("session.x64quantprecision", "1")
"""A session's setting. Without VNNI products of unsigned by signed bytes overflow in silence; where
that is so, an optimized graph has its weights unsigned. Else it changes nothing."""
_SMALLEST_EXTERNAL = "1024"
_PREPACKED = "0" if has_gpu_runtime() else "1"
"""The GPU's runtime (1.31.1) reads back as NaN what it laid out for this processor and saved."""
_WIDENED = frozenset({"fp16", "fp8"})
"""Grades of floats that the processor makes 32-bit floats of."""
_TOLERANCE = 1e-4
_PROVIDER = "CPUExecutionProvider"


def compile_bundle(bundle_dir: Path, manifest: Manifest, artifact_dir: Path) -> None:
    """Write model.onnx, weights.bin and the further graphs there are into the empty `artifact_dir`.

    Raises DigestError for a file that is not the manifest's, VerificationError for a graph that
    is not allowed, UnsupportedError if ONNX Runtime cannot run it here.
    """
    _quiet()
    if manifest.of_draft is not None:
        _compile_draft(bundle_dir, manifest.of_draft, artifact_dir)
    weights = verified_weights(bundle_dir, manifest)
    spec = manifest.spec
    native = manifest.variant("native")
    if native is not None and library.supported():
        _compile_native(bundle_dir, manifest, native, weights, artifact_dir)
        return
    for path, name in compiled_graphs(manifest).items():
        graph = verified_graph(bundle_dir, manifest, path, weights)
        folder = (bundle_dir / path).parent
        if name == GRAPH_NAME:
            before = _compile(graph, folder, artifact_dir, spec)
        else:
            before = _compile_second(graph, folder, artifact_dir, name, spec)
        _compare(before, run_probe(load(artifact_dir / name), spec))
    if isinstance(manifest.vision, VisionSpec):
        compile_tower(bundle_dir, manifest, manifest.vision, artifact_dir)


def _compile_draft(bundle_dir: Path, draft: Manifest, artifact_dir: Path) -> None:
    """Compile the draft model's graphs, and give the files names of their own."""
    apart = artifact_dir / ".draft"
    apart.mkdir()
    try:
        compile_bundle(bundle_dir, draft, apart)
        for path in apart.iterdir():
            if path.suffix == ".onnx":
                renamed = rename_weights(path.read_bytes(), DRAFT_PREFIX + WEIGHTS_NAME)
                path.write_bytes(renamed)
            path.rename(artifact_dir / (DRAFT_PREFIX + path.name))
    finally:
        shutil.rmtree(apart)


def _compile_native(
    bundle_dir: Path,
    manifest: Manifest,
    native: Graph,
    weights: Mapping[str, int],
    artifact_dir: Path,
) -> None:
    """Write native.onnx, the graphs for adapters and of the head if there are, and weights.bin."""
    folder = bundle_dir / native.weights_folder
    paths = (native.path, *native.others)
    made: dict[str, tuple[str, Spec]] = {
        name: (path, manifest.spec)
        for name, path in zip((NATIVE_NAME, NATIVE_ADAPTED_NAME), paths, strict=False)
    }
    if isinstance(manifest.head, HeadSpec):
        made[NATIVE_HEAD_NAME] = manifest.head.graph, manifest.head.decoder
    graphs = {
        name: verified_graph(bundle_dir, manifest, path, weights)
        for name, (path, _) in made.items()
    }
    with (artifact_dir / WEIGHTS_NAME).open("wb") as file:
        written = NativeWeights(folder, file, WEIGHTS_NAME)
        laid_out = {name: written.lay_out(graph) for name, graph in graphs.items()}
    for name, (_, spec) in made.items():
        (artifact_dir / name).write_bytes(laid_out[name])
        expected = run_probe(_session(graphs[name], _over(folder)), spec)
        _compare(expected, run_probe(load(artifact_dir / name), spec))


def compile_tower(
    bundle_dir: Path, manifest: Manifest, vision: VisionSpec, artifact_dir: Path
) -> None:
    """Write vision.onnx and vision-weights.bin, for the processor, which looks at images.

    Raises as `compile_bundle` does.
    """
    graph, folder = _tower(bundle_dir, manifest, vision)
    target = artifact_dir / VISION_NAME
    before = run_tower_probe(_optimized(graph, folder, target, VISION_WEIGHTS_NAME), vision)
    _compare(before, run_tower_probe(load(target), vision))


def tower_results(bundle_dir: Path, manifest: Manifest, vision: VisionSpec) -> list[Array]:
    """What the tower makes of a small image by its graph for the processor.

    Raises as `compile_bundle` does.
    """
    graph, folder = _tower(bundle_dir, manifest, vision)
    return run_tower_probe(_session(graph, _over(folder)), vision)


def _tower(bundle_dir: Path, manifest: Manifest, vision: VisionSpec) -> tuple[bytes, Path]:
    """The tower's graph for the processor, and the folder of its weights; all hashed now."""
    folder = vision.graph.rpartition("/")[0]
    weights = verified_weights(bundle_dir, manifest, folder)
    return verified_graph(bundle_dir, manifest, vision.graph, weights), bundle_dir / folder


def write_golden(bundle_dir: Path, manifest: Manifest, out_dir: Path) -> None:
    """Write what this bundle's graphs for the CPU make of the golden prompt or texts to `out_dir`.

    Raises as `compile_bundle` does.
    """
    _quiet()
    spec, graph = manifest.spec, manifest.graph
    weights = verified_weights(bundle_dir, manifest)
    options = _over(bundle_dir / graph.weights_folder)
    if graph.precision in _WIDENED:
        _widen_as_needed(options)

    def opened(paths: Iterable[str]) -> list[ort.InferenceSession]:
        graphs = (verified_graph(bundle_dir, manifest, path, weights) for path in paths)
        return [_session(graph, options) for graph in graphs]

    if not isinstance(spec, DecoderSpec):
        (session,) = opened(plain_graphs(manifest))
        golden.write(golden_texts.outputs(session, spec), out_dir)
        return

    def logits(paths: Iterable[str]) -> Array:
        decoder, *others = opened(paths)
        (prompts,) = others or [decoder]
        return golden.on_processor(prompts, decoder, spec)

    found = [logits(plain_graphs(manifest))]
    if adapted := adapted_graphs(manifest):
        found.append(logits(adapted))
    golden.write(np.concatenate(found), out_dir)


def _widen_as_needed(options: ort.SessionOptions) -> None:
    """Make 32-bit floats of a weight right before the product that takes them.

    For a few runs that is quicker than to make and lay out all of them first, and takes memory for
    one weight, not for twice the bundle.
    """
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.disable_prepacking", "1")


def load(graph: Path) -> ort.InferenceSession:
    """A session over a compiled graph as it is. Raises UnsupportedError."""
    options = _options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return _session(str(graph), options)


def _compare(before: list[Array], after: list[Array]) -> None:
    """Refuse a saved graph that computes something else than what was saved.

    Integers, which are rounded numbers, may differ by one.
    """
    for one, other in zip(before, after, strict=True):
        tolerance = 1 if one.dtype == np.int8 else _TOLERANCE
        if not np.allclose(
            one.astype(np.float32), other.astype(np.float32), rtol=_TOLERANCE, atol=tolerance
        ):
            raise UnsupportedError(
                "the compiled graph computes something else than the bundle's",
                hint="report this with the output of `appliance status --json`",
            )


def _compile_second(
    graph: bytes, folder: Path, artifact_dir: Path, name: str, spec: Spec
) -> list[Array]:
    """Compile a graph over the weights of the first one: nothing but the graph is kept."""
    apart = artifact_dir / ".second"
    apart.mkdir()
    try:
        probed = _compile(graph, folder, apart, spec)
        first = (artifact_dir / GRAPH_NAME).read_bytes()
        second = (apart / GRAPH_NAME).read_bytes()
        shared = share_weights(first, second, apart / WEIGHTS_NAME)
        (artifact_dir / name).write_bytes(shared)
    finally:
        shutil.rmtree(apart)
    return probed


def _compile(graph: bytes, folder: Path, artifact_dir: Path, spec: Spec) -> list[Array]:
    """Optimize, save, and run once what was optimized."""
    return run_probe(_optimized(graph, folder, artifact_dir / GRAPH_NAME, WEIGHTS_NAME), spec)


def _optimized(graph: bytes, folder: Path, target: Path, weights: str) -> ort.InferenceSession:
    """A session over the optimized graph, which is saved as `target`, and its `weights` beside."""
    options = _over(folder)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(target)
    for name, value in (
        ("session.optimized_model_external_initializers_file_name", weights),
        (
            "session.optimized_model_external_initializers_min_size_in_bytes",
            _SMALLEST_EXTERNAL,
        ),
        ("session.save_external_prepacked_constant_initializers", _PREPACKED),
        # Or 16-bit weights of more than half a gigabyte, as experts have, are widened in each step.
        ("optimization.constant_folding_max_output_size_in_bytes", "0"),
        # 8-bit floats become what they stand for; otherwise each step would work it out again.
        ("session.disable_quant_qdq", "1"),
    ):
        options.add_session_config_entry(name, value)
    return _session(graph, options)


def _quiet() -> None:
    ort.disable_telemetry_events()
    ort.set_default_logger_severity(4)


def _over(weights: Path) -> ort.SessionOptions:
    """For a graph that is given as the bytes that were checked, so its folder must be named."""
    options = _options()
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(weights)
    )
    return options


def _options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry(*EXACT_PRODUCTS)
    if library.supported():
        library.register(options)
    return options


def _session(graph: bytes | str, options: ort.SessionOptions) -> ort.InferenceSession:
    try:
        # The runtime's exceptions share no base class but Exception.
        session = ort.InferenceSession(graph, options, providers=[_PROVIDER])
    except Exception as error:
        raise UnsupportedError(
            f"ONNX Runtime refuses the graph: {first_line(error)}",
            hint="the bundle needs another release of the appliance",
        ) from error
    if session.get_providers() != [_PROVIDER]:
        raise UnsupportedError(f"the session took {session.get_providers()}, not {_PROVIDER}")
    return session

"""A verified bundle becomes what the runtime loads: optimized, weights laid out for this CPU.

Owns the compilation itself, as pure work on directories. ONNX Runtime optimizes the graph and
writes it back with its prepacked weights beside it, so that the engine maps them instead of
computing them at each start (docs/decisions/0024-compiled-artifacts.md). Refuses bundles whose
bytes are not the manifest's, graphs that are not allowed, and results that do not reproduce.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np
import onnxruntime as ort

from appliance.bundle.manifest import DecoderSpec, EncoderSpec, FileEntry, Manifest
from appliance.compiler.artifact import GRAPH_NAME, WEIGHTS_NAME
from appliance.compiler.graph_check import MAX_GRAPH_BYTES, check_graph
from appliance.compiler.probe import Array, run_probe
from appliance.errors import DigestError, UnsupportedError
from appliance.fsops import hash_regular, read_regular, resolve_inside

_SMALLEST_EXTERNAL = "1024"
_TOLERANCE = 1e-4
_PROVIDER = "CPUExecutionProvider"


def compile_bundle(bundle_dir: Path, manifest: Manifest, artifact_dir: Path) -> None:
    """Write model.onnx and weights.bin into the empty directory `artifact_dir`.

    Raises DigestError for a file that is not the manifest's, VerificationError for a graph that
    is not allowed, UnsupportedError if ONNX Runtime cannot run it here.
    """
    ort.disable_telemetry_events()
    ort.set_default_logger_severity(4)
    graph, weights = _verified_graph(bundle_dir, manifest)
    check_graph(graph, weights, path=manifest.graph.path)
    spec = manifest.decoder or manifest.encoder
    assert spec is not None, "a manifest has a decoder or an encoder"
    folder = (bundle_dir / manifest.graph.path).parent
    before = _compile(graph, folder, artifact_dir, spec)
    after = run_probe(load(artifact_dir / GRAPH_NAME), spec)
    if not all(
        np.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE)
        for a, b in zip(before, after, strict=True)
    ):
        raise UnsupportedError(
            "the compiled graph computes something else than the bundle's",
            hint="report this with the output of `appliance status --json`",
        )


def load(graph: Path) -> ort.InferenceSession:
    """A session over a compiled graph as it is. Raises UnsupportedError."""
    options = _options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return _session(str(graph), options)


def _verified_graph(bundle_dir: Path, manifest: Manifest) -> tuple[bytes, dict[str, int]]:
    """The graph's bytes, and name -> size of the weight files; all hashed now."""
    parent = PurePosixPath(manifest.graph.path).parent
    beside = [f for f in manifest.files if PurePosixPath(f.path).parent == parent]
    for entry in beside:
        path = resolve_inside(bundle_dir, entry.path)
        if hash_regular(path, name=entry.path) != (entry.size, entry.sha256):
            raise _altered(entry)
    entry = next(f for f in beside if f.path == manifest.graph.path)
    graph = read_regular(
        resolve_inside(bundle_dir, entry.path), limit=MAX_GRAPH_BYTES, name=entry.path
    )
    return graph, {PurePosixPath(f.path).name: f.size for f in beside if f is not entry}


def _compile(
    graph: bytes, folder: Path, artifact_dir: Path, spec: DecoderSpec | EncoderSpec
) -> list[Array]:
    """Optimize, save, and run once what was optimized."""
    options = _options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(artifact_dir / GRAPH_NAME)
    for name, value in (
        # The graph is given as the bytes that were checked, so its folder must be named.
        ("session.model_external_initializers_file_folder_path", str(folder)),
        ("session.optimized_model_external_initializers_file_name", WEIGHTS_NAME),
        (
            "session.optimized_model_external_initializers_min_size_in_bytes",
            _SMALLEST_EXTERNAL,
        ),
        ("session.save_external_prepacked_constant_initializers", "1"),
    ):
        options.add_session_config_entry(name, value)
    return run_probe(_session(graph, options), spec)


def _options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _session(graph: bytes | str, options: ort.SessionOptions) -> ort.InferenceSession:
    try:
        # The runtime's exceptions share no base class but Exception.
        session = ort.InferenceSession(graph, options, providers=[_PROVIDER])
    except Exception as error:
        raise UnsupportedError(
            f"ONNX Runtime refuses the graph: {str(error).splitlines()[0]}",
            hint="the bundle needs another release of the appliance",
        ) from error
    if session.get_providers() != [_PROVIDER]:
        raise UnsupportedError(f"the session took {session.get_providers()}, not {_PROVIDER}")
    return session


def _altered(entry: FileEntry) -> DigestError:
    return DigestError(
        f"{entry.path} is not the file that was signed",
        path=entry.path,
        hint="the disk may be failing: remove the model and add it again from the media",
    )

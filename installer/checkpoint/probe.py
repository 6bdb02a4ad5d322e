"""The gate before signing: the runtime accepts a freshly built graph and its numbers are finite.

Refuses a graph that does not pass. Weights are mapped and not prepacked, so that the probe needs
no more memory than the rest of the build.
"""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort

from appliance.bundle.manifest import DecoderSpec, EncoderSpec
from appliance.compiler.probe import run_probe
from appliance.errors import CheckpointError, UnsupportedError


def probe(graph: Path, spec: DecoderSpec | EncoderSpec) -> None:
    """Run `graph` on a few tokens. Raises CheckpointError."""
    try:
        run_probe(open_graph(graph), spec)
    except UnsupportedError as error:
        raise CheckpointError(
            error.message, hint="the checkpoint is damaged, or its config.json belongs to another"
        ) from error


def open_graph(graph: Path) -> ort.InferenceSession:
    """A session over a bundle's graph as it was written. Raises CheckpointError."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.log_severity_level = 4
    try:
        # The runtime's exceptions share no base class but Exception.
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CheckpointError(
            f"the runtime refuses the graph: {str(error).splitlines()[0]}",
            hint="the checkpoint's config.json contradicts its weights, or this is a fault here",
        ) from error

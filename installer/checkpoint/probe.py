"""The gate before signing: the runtime accepts a freshly built graph and its numbers are finite.

Refuses a graph that does not pass. Weights are mapped and not prepacked, so that the probe needs
no more memory than the rest of the build.
"""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort

from appliance.bundle.specs import Spec, VisionSpec
from appliance.compiler.probe import run_probe, run_tower_probe
from appliance.errors import CheckpointError, UnsupportedError, first_line
from appliance.native import library
from installer.checkpoint.one_expert import one_expert_at_a_time
from installer.checkpoint.unsigned import exact_products
from installer.checkpoint.widening import spell_out, widen_products


def probe(graph: Path, weights: Path, spec: Spec) -> None:
    """Run `graph` on a few tokens; its weights lie in `weights`. Raises CheckpointError."""
    try:
        run_probe(open_graph(graph, weights), spec)
    except UnsupportedError as error:
        raise CheckpointError(
            error.message, hint="the checkpoint is damaged, or its config.json belongs to another"
        ) from error


def probe_tower(graph: Path, vision: VisionSpec) -> None:
    """Run a tower's `graph` on a small image. Raises CheckpointError."""
    try:
        run_tower_probe(open_graph(graph), vision)
    except UnsupportedError as error:
        raise CheckpointError(
            error.message, hint="the checkpoint is damaged, or its config.json belongs to another"
        ) from error


def open_graph(
    graph: Path, weights: Path | None = None, options: ort.SessionOptions | None = None
) -> ort.InferenceSession:
    """A session over a bundle's graph as it was written. Raises CheckpointError.

    `weights` is the folder of the weight files; the graph's own if not given. What `options` say
    of order and memory is replaced.
    """
    options = options or ort.SessionOptions()
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(weights or graph.parent)
    )
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # What turns a weight into floats runs right before what needs them, not all of it first.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.log_severity_level = 4
    if library.supported():
        library.register(options)
    try:
        # The runtime's exceptions share no base class but Exception.
        read = exact_products(spell_out(graph.read_bytes()))
        data = one_expert_at_a_time(widen_products(read))
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CheckpointError(
            f"the runtime refuses the graph: {first_line(error)}",
            hint="the checkpoint's config.json contradicts its weights, or this is a fault here",
        ) from error

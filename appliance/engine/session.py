"""Opens a compiled graph in ONNX Runtime, the same way for every model."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort

from appliance.engine.machine import physical_cores
from appliance.errors import UnsupportedError

PROVIDER = "CPUExecutionProvider"
GRAPH_NAME = "model.onnx"
PREFILL_NAME = "prefill.onnx"


def open_session(artifact: Path, threads: int, name: str = GRAPH_NAME) -> ort.InferenceSession:
    """A session over a graph of the artifact; `threads` 0 takes the machine's cores.

    Raises UnsupportedError if ONNX Runtime refuses the graph or takes another provider.
    """
    ort.disable_telemetry_events()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or physical_cores()
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # The artifact is optimized already; doing it again would unshare its memory-mapped weights.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Shapes differ from step to step: remembered memory plans would pile up.
    options.enable_mem_pattern = False
    # Spinning threads would eat the cores that the HTTP side and other models need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(
            artifact / name, sess_options=options, providers=[PROVIDER]
        )
    except Exception as error:  # ONNX Runtime's own exceptions have no common base but this
        raise UnsupportedError(
            f"ONNX Runtime refuses the compiled graph: {str(error).splitlines()[0]}",
            hint="run the installer again: it compiles the model anew for this machine",
        ) from error
    if session.get_providers() != [PROVIDER]:
        raise UnsupportedError(f"the session took {session.get_providers()}, not {PROVIDER}")
    return session

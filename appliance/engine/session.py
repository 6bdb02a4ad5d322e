"""Opens a compiled graph in ONNX Runtime, the same way for every model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnxruntime as ort

from appliance.compiler import Provider, libraries
from appliance.compiler.recording import RECORDS
from appliance.engine.device.recordings import GpuSession
from appliance.engine.machine import physical_cores
from appliance.errors import UnsupportedError, first_line
from appliance.native import library

PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"
PROVIDERS: Mapping[Provider, str] = {
    "cpu": PROVIDER,
    "cuda": CUDA_PROVIDER,
    "tensorrt": "TensorrtExecutionProvider",
}
"""ONNX Runtime's name of what an artifact was compiled for."""
GRAPH_NAME = "model.onnx"
PREFILL_NAME = "prefill.onnx"
ADAPTED_NAME = "adapted.onnx"
ADAPTED_PREFILL_NAME = "adapted-prefill.onnx"
NATIVE_NAME = "native.onnx"
NATIVE_ADAPTED_NAME = "native-adapted.onnx"
NATIVE_HEAD_NAME = "native-head.onnx"
VISION_NAME = "vision.onnx"
VISION_CUDA_NAME = "vision-cuda.onnx"
DRAFT_PREFIX = "draft-"
"""Before the names of a draft model's graphs."""


def open_session(
    artifact: Path, threads: int, name: str = GRAPH_NAME, *, spinning: bool = False
) -> ort.InferenceSession:
    """A session over a graph of the artifact; `threads` 0 takes the machine's cores.

    `spinning`: its threads wait for each other actively while a run is under way, and only then.
    Raises UnsupportedError if ONNX Runtime refuses the graph or takes another provider.
    """
    options = _options(threads or physical_cores(), spinning=spinning)
    session = _open(artifact / name, options, PROVIDER, {})
    if session.get_providers() != [PROVIDER]:
        raise _another(session, PROVIDER)
    return session


def open_cuda_session(
    artifact: Path, name: str = GRAPH_NAME, *, record: bool, gpu: int = 0, head_dim: int = 0
) -> ort.InferenceSession:
    """A session on the GPU number `gpu` of this process; with `record` it records runs and replays
    them, in one thread. `name`: of the graph, or of one stage of it; `head_dim`: of its widest
    heads.

    Raises UnsupportedError if ONNX Runtime refuses the graph or does not take the GPU: never is
    the processor used instead.
    """
    settings = {**libraries.cuda_options(head_dim), **(RECORDS if record else {})}
    return _open_on_gpu(artifact / name, CUDA_PROVIDER, settings, gpu)


def open_cuda_reader(
    artifact: Path, name: str = GRAPH_NAME, *, gpu: int = 0
) -> ort.InferenceSession:
    """A session on a GPU for a graph that reads texts or looks at images: nothing is recorded,
    since each run has a shape of its own.

    Raises UnsupportedError as `open_cuda_session` does.
    """
    return _open_on_gpu(artifact / name, CUDA_PROVIDER, libraries.CUDA_OPTIONS, gpu)


def open_tensorrt_session(artifact: Path, name: str, *, gpu: int = 0) -> ort.InferenceSession:
    """A session over one engine of the artifact, on a GPU.

    Raises UnsupportedError if ONNX Runtime refuses it or takes another provider: an engine that
    TensorRT does not load is never replaced by one that is built now.
    """
    return _open_on_gpu(artifact / name, PROVIDERS["tensorrt"], {}, gpu)


def open_small_session(graph: bytes, provider: Provider, *, gpu: int = 0) -> ort.InferenceSession:
    """A session over a graph of the engine's own, beside a model of that provider.

    Raises UnsupportedError if ONNX Runtime does not compute all of it by the provider.
    """
    wanted = PROVIDER if provider == "cpu" else CUDA_PROVIDER
    settings = {} if provider == "cpu" else _numbered(libraries.CUDA_OPTIONS, gpu)
    options = _options(1)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = _open(graph, options, wanted, settings)
    if {part.ep_name for part in session.get_provider_graph_assignment_info()} != {wanted}:
        raise _another(session, wanted)
    return session


def _options(threads: int, *, spinning: bool = False) -> ort.SessionOptions:
    ort.disable_telemetry_events()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # The artifact is optimized already; doing it again would unshare its memory-mapped weights.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Shapes differ from step to step: remembered memory plans would pile up.
    options.enable_mem_pattern = False
    # Threads that spin between runs would eat the cores that the HTTP side and other models need.
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3
    if library.supported():
        library.register(options)
    options.add_session_config_entry(*libraries.MIXED_PRODUCTS)
    return options


def _open_on_gpu(
    graph: Path, provider: str, settings: Mapping[str, str], gpu: int
) -> ort.InferenceSession:
    libraries.preload()
    session = _open(graph, _options(1), provider, _numbered(settings, gpu))
    if session.get_providers()[0] != provider:
        raise _another(session, provider)
    return session


def _numbered(settings: Mapping[str, str], gpu: int) -> dict[str, str]:
    return {"device_id": str(gpu), **settings}


def _open(
    graph: Path | bytes, options: ort.SessionOptions, provider: str, settings: Mapping[str, str]
) -> ort.InferenceSession:
    kind = ort.InferenceSession if provider == PROVIDER else GpuSession
    try:
        return kind(graph, options, providers=[(provider, dict(settings))], enable_fallback=0)
    except Exception as error:  # ONNX Runtime's own exceptions have no common base but this
        raise UnsupportedError(
            f"ONNX Runtime refuses the compiled graph: {first_line(error)}",
            hint="run the installer again: it compiles the model anew for this machine",
        ) from error


def _another(session: ort.InferenceSession, wanted: str) -> UnsupportedError:
    return UnsupportedError(
        f"the session took {', '.join(session.get_providers())}, not {wanted}",
        hint="`appliance status` says what this node lacks",
        code="provider_not_taken",
    )

"""A verified bundle becomes what the GPU's runtime loads, for its CUDA provider.

Owns that compilation, as pure work on directories. ONNX Runtime folds what depends on weights
alone, so that the artifact holds plain 16-bit weights, optimizes the graph for the provider and
writes both. A model that one GPU has no room for is cut into stages, each for a GPU of its own.
Refuses a session that took another provider, work that would run beside the GPU, and
results that are not the processor's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnxruntime as ort

from appliance.bundle.manifest import Manifest
from appliance.bundle.specs import DecoderSpec, Spec
from appliance.compiler import golden, golden_texts
from appliance.compiler.artifact import GRAPH_NAME, WEIGHTS_NAME, of_stage
from appliance.compiler.cutting import cut, typed
from appliance.compiler.libraries import CUDA_OPTIONS, MIXED_PRODUCTS, cuda_options
from appliance.compiler.memory import on_gpu
from appliance.compiler.merging import merge_products
from appliance.compiler.probe import Array
from appliance.compiler.record import Comparison
from appliance.compiler.sources import verified_graph, verified_weights
from appliance.errors import UnsupportedError, first_line

_SMALLEST_EXTERNAL = "1024"
_HEAVY = frozenset(
    {
        *("MatMul", "MatMulNBits", "MatMulBlockQuantizedFp8Weight", "Gemm", "FusedMatMul"),
        *("MoE", "QMoE"),
        *("GroupQueryAttention", "MultiHeadAttention"),
    }
)
"""Operators that must not run on the processor of a node whose model is on the GPU."""
_NEWER = "the bundle needs another release of the appliance"


@dataclass(frozen=True, slots=True)
class Target:
    """What a session is opened for.

    Attributes:
        provider: ONNX Runtime's name of it.
        device: where its memory is: "cuda", or "cpu".
        options: of the provider.
    """

    provider: str
    device: str
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def place(self) -> golden.Place:
        """The device itself."""
        return self.device, int(self.options.get("device_id", "0"))


CUDA = Target("CUDAExecutionProvider", "cuda", CUDA_OPTIONS)
_TYPES: Mapping[str, int] = {"float32": 1, "float16": 10}
"""What is handed on, as TensorProto.DataType."""
_AXES = 3
"""Of what is handed on: sequences, tokens, numbers."""


def cuda_targets(count: int, spec: Spec) -> list[Target]:
    """The first GPUs of this process, for a model; one per stage."""
    options = cuda_options(spec.head_dim) if isinstance(spec, DecoderSpec) else CUDA_OPTIONS
    return [replace(CUDA, options={**options, "device_id": str(number)}) for number in range(count)]


def compile_cuda(
    bundle_dir: Path,
    manifest: Manifest,
    artifact_dir: Path,
    expected: Array,
    targets: Sequence[Target],
    precision: str,
) -> Comparison:
    """Write model.onnx and weights.bin into the empty `artifact_dir`; how near it computes.

    Of several `targets` each is for one stage, with files of its own. `precision` is what the
    weights shall be on the GPU. `expected` [rows, vocab] are the processor's logits of the golden
    prompt, or what it makes of the golden texts. Raises DigestError for a file that is not the
    manifest's, VerificationError for a graph that is not allowed, UnsupportedError if it cannot run
    here or computes something else.
    """
    quiet()
    found = [g for g in manifest.variants("cuda") if on_gpu(manifest, g) == precision]
    assert found, "the ladder chooses what the bundle has"
    variant, grade = found[0], manifest.graph.precision
    weights = verified_weights(bundle_dir, manifest)
    graph = verified_graph(bundle_dir, manifest, variant.path, weights)
    if manifest.decoder is not None:
        graph = merge_products(graph)
    folder, spec = bundle_dir / variant.weights_folder, manifest.spec
    if len(targets) > 1:
        assert isinstance(spec, DecoderSpec), "the ladder cuts nothing else"
        stages = stages_of(graph, folder, artifact_dir, targets, spec)
    else:
        stages = [_saved(graph, folder, artifact_dir, targets[0], (GRAPH_NAME, WEIGHTS_NAME))]
    if not isinstance(spec, DecoderSpec):
        golden_texts.read_longest(stages[0], spec)
        return golden_texts.compare(golden_texts.outputs(stages[0], spec), expected, grade)
    measured = golden.on_device(stages, stages, spec, [target.place for target in targets])
    return golden.compare(measured, expected, grade)


def stages_of(
    graph: bytes, weights: Path, artifact_dir: Path, targets: Sequence[Target], spec: DecoderSpec
) -> list[ort.InferenceSession]:
    """Optimize and save a decoder's graph, cut for as many targets; sessions over what was saved.

    What a stage is handed has the type that the one before makes of the golden prompt. Raises
    UnsupportedError.
    """
    (piece, *_), made = golden.pieces(spec), dict[str, Array]()
    stages: list[ort.InferenceSession] = []
    for number, (part, target) in enumerate(zip(cut(graph, len(targets)), targets, strict=True)):
        names = of_stage(GRAPH_NAME, number), of_stage(WEIGHTS_NAME, number)
        told = typed(part.graph, {name: _type(array) for name, array in made.items()})
        session = _saved(told, weights, artifact_dir, target, names)
        stages.append(session)
        if part.handed:
            slots = golden.slots([session], spec, [target.place])
            made = golden.run_stage(session, golden.feed(session, piece) | made, slots)
    return stages


def _type(states: Array) -> tuple[int, int]:
    """TensorProto.DataType, and the last of three dimensions. Raises UnsupportedError."""
    kind = _TYPES.get(states.dtype.name)
    if kind is None or states.ndim != _AXES:
        raise UnsupportedError(
            f"{states.dtype.name} of the shape {states.shape} cannot be handed on to another GPU",
            hint=_NEWER,
            code="not_divisible",
        )
    return kind, states.shape[-1]


def _saved(
    graph: bytes, weights: Path, artifact_dir: Path, target: Target, names: tuple[str, str]
) -> ort.InferenceSession:
    """A session over the graph, optimized and saved as the files of these `names`."""
    optimize(graph, weights, artifact_dir, target, names)
    session = load(artifact_dir / names[0], target)
    refuse_the_processor(session, target)
    return session


def load(graph: Path, target: Target) -> ort.InferenceSession:
    """A session over a compiled graph as it is. Raises UnsupportedError."""
    options = session_options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.add_session_config_entry(*MIXED_PRODUCTS)
    return open_on(str(graph), options, target)


def open_on(
    graph: bytes | str, options: ort.SessionOptions, target: Target
) -> ort.InferenceSession:
    """A session that took `target`'s provider first. Raises UnsupportedError."""
    providers = [(target.provider, dict(target.options))]
    try:
        # The runtime's exceptions share no base class but Exception.
        session = ort.InferenceSession(graph, options, providers=providers, enable_fallback=0)
    except Exception as error:
        raise UnsupportedError(
            f"ONNX Runtime refuses the graph: {first_line(error)}", hint=_NEWER
        ) from error
    taken = session.get_providers()
    if taken[0] != target.provider:
        raise UnsupportedError(
            f"the session took {taken[0]}, not {target.provider}",
            hint="`appliance status` says what this node lacks",
            code="provider_not_taken",
        )
    return session


def refuse_the_processor(session: ort.InferenceSession, target: Target) -> None:
    """Raise UnsupportedError if a product or attention of the graph runs outside the GPU."""
    astray = {
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != target.provider
        for node in part.get_nodes()
        if node.op_type in _HEAVY
    }
    if astray:
        raise UnsupportedError(
            f"{', '.join(sorted(astray))} would run on the processor, not by {target.provider}",
            hint=_NEWER,
            code="provider_not_taken",
        )


def quiet() -> None:
    """No telemetry, and no log of a library's own: what fails is an error here."""
    ort.disable_telemetry_events()
    ort.set_default_logger_severity(4)


def optimize(
    graph: bytes,
    weights: Path,
    artifact_dir: Path,
    target: Target,
    names: tuple[str, str] = (GRAPH_NAME, WEIGHTS_NAME),
) -> None:
    """Fold, optimize and save as the files of these `names`. `weights`: the folder of the graph's.

    The session, which holds the weights once more, ends here. Raises UnsupportedError.
    """
    options = session_options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(artifact_dir / names[0])
    for name, value in (
        # The graph is given as the bytes that were checked, so its folder must be named.
        ("session.model_external_initializers_file_folder_path", str(weights)),
        ("session.optimized_model_external_initializers_file_name", names[1]),
        (
            "session.optimized_model_external_initializers_min_size_in_bytes",
            _SMALLEST_EXTERNAL,
        ),
        # Integers that stand for weights become the weights. Otherwise pairs of them are looked
        # for that integer kernels take, and constants are left as they are.
        ("session.disable_quant_qdq", "1"),
        # A table of a vocabulary is larger than the gigabyte that is folded by default.
        ("optimization.constant_folding_max_output_size_in_bytes", "0"),
    ):
        options.add_session_config_entry(name, value)
    open_on(graph, options, target)


def session_options() -> ort.SessionOptions:
    """What sessions of every kind have in common."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options

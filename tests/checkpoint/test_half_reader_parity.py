"""The graphs for CUDA of models that read compute what the CPU's graphs and the reference do.

They run here on the CPU provider, which has every one of their operators.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
import pytest

from appliance.bundle.specs import DecoderSpec, Graph
from appliance.compiler import golden_texts
from appliance.compiler.graph_check import check_graph
from appliance.compiler.probe import encoder_feed
from appliance.compiler.sources import weight_files
from installer.checkpoint.probe import open_graph
from installer.checkpoint.quantize import Precision
from tests.checkpoint.conftest import NEWER_EMBEDDERS, BuildBundle, Built, build_unsigned
from tests.checkpoint.opened import encoder_of, session_of
from tests.checkpoint.runner import relative_error
from tests.checkpoint.test_encoder_parity import built_minilm, random_batch, with_padding
from tests.checkpoint.test_reranker_parity import CROSS_ENCODERS, JUDGES, reference
from tests.conftest import FULL_VARIABLE, BuildOnce
from tests.fakes.checkpoints import write_bert
from tests.fakes.encoder_checkpoints import write_qwen3_embedding
from tests.sweeps import sampled

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
EMBEDDERS = ["bert", "bert-cls-raw", "xlm-roberta", "roberta-cls"]
EMBEDDERS += ["qwen3-embedding", "qwen3-embedding-window", *NEWER_EMBEDDERS]
RERANKERS = [*CROSS_ENCODERS, *JUDGES]
READERS = [*EMBEDDERS, *RERANKERS]
OF_A_KIND = {"bert", "qwen3-embedding", "modernbert", "embedding-gemma", "cross-encoder", JUDGES[0]}
"""In floats, too; bundles in 8 bits have a graph of 16-bit floats beside that of integers."""
GRADES: list[Precision] = ["fp32", "int8"]
OF_CPU = 0.005
"""Relative error to the bundle's own graph for the CPU, which multiplies the same weights in 32
bits here; twice the largest that was measured."""
OF_REFERENCE: dict[str, float] = {"fp32": 0.005, "int8": 0.1}
OPERATORS = {
    *("Add", "Cast", "Concat", "CumSum", "Div", "Gather", "GatherND", "Max", "Mul", "ReduceSum"),
    *("Reshape", "Shape", "Sigmoid", "Slice", "Squeeze", "Tanh", "Transpose", "Unsqueeze"),
    *("MatMul", "LayerNormalization", "SimplifiedLayerNormalization", "DequantizeLinear"),
    *("Abs", "Expand", "Greater", "RotaryEmbedding", "Split", "Sub", "Where"),
    *("Gelu", "MultiHeadAttention", "GroupQueryAttention", "MatMulNBits", "GatherBlockQuantized"),
}
"""Each has kernels in the CUDA provider of onnxruntime-gpu 1.31.1, for the types they have here
(tests/compiler/test_gpu_runtime.py); DequantizeLinear and Transpose are computed once, by the
compiler."""


def outputs(model: Built, graph: Graph, ids: Ints, mask: Ints, types: Ints | None = None) -> Floats:
    """What a graph of the bundle gives, at its place in the bundle."""
    session = session_of(model.bundle / graph.path, model.bundle / graph.weights_folder)
    feed = encoder_feed(session, ids, mask)
    if types is not None and "token_type_ids" in feed:
        feed["token_type_ids"] = types
    made: Floats = session.run(None, feed)[0]
    return made


def texts(name: str) -> dict[str, tuple[Ints, Ints, Ints]]:
    """Tokens, mask and types of a padded batch, of one short text and of the longest."""
    ids, mask = random_batch()
    longest = np.random.default_rng(4).integers(5, 200, (1, 128))
    given = {
        "padded": (ids, mask),
        "one token": (ids[:1, :1], mask[:1, :1]),
        "single": (ids[1:2, : mask[1].sum()], mask[1:2, : mask[1].sum()]),
        "longest": (longest, np.ones_like(longest)),
    }
    found = {}
    for kind, (tokens, keep) in given.items():
        tokens = with_padding(name, tokens, keep)
        halves = np.arange(tokens.shape[1])[None] >= keep.sum(1, keepdims=True) // 2
        found[kind] = tokens, keep, halves * keep
    return found


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        *((name, "int8") for name in READERS),
        *sampled([(name, "fp32") for name in READERS], OF_A_KIND),
    ],
)
def test_every_graph_equals_the_processors_and_the_reference(
    built: BuildBundle,
    name: str,
    precision: Precision,
    record_property: Callable[[str, object], None],
) -> None:
    model = built(name, precision)
    graphs = model.manifest.variants("cuda")
    assert [g.precision for g in graphs] == ["fp16", "int8"][: 1 + (precision == "int8")]
    errors = {"cpu": 0.0, "reference": 0.0}
    for ids, mask, types in texts(name).values():
        wanted = referred(name, model, ids, mask, types)
        plain = outputs(model, model.manifest.graph, ids, mask, types)
        for graph in graphs:
            made = outputs(model, graph, ids, mask, types)
            assert made.dtype == np.float32
            for against, other in (("cpu", plain), ("reference", wanted)):
                errors[against] = max(errors[against], relative_error(made, other))
    record_property(
        "measured",
        f"reading on a GPU, {name} {precision}: {errors['cpu']:.5f} of the CPU's graph, "
        f"{errors['reference']:.5f} of the reference",
    )
    assert errors["cpu"] <= OF_CPU
    assert errors["reference"] <= OF_REFERENCE[precision]


def referred(name: str, model: Built, ids: Ints, mask: Ints, types: Ints) -> Floats:
    encoder = model.manifest.encoder
    if encoder is None:
        return reference(name, model.checkpoint, ids, mask, types)
    known = encoder_of(model.checkpoint, encoder.pooling, encoder.normalize)
    made: Floats = known.embed(ids, mask)
    return made


@pytest.mark.parametrize("name", READERS)
def test_a_text_is_the_same_alone_and_in_a_mixed_batch(built: BuildBundle, name: str) -> None:
    model = built(name, "int8")
    ids, mask, types = texts(name)["padded"]
    for graph in model.manifest.variants("cuda"):
        together = outputs(model, graph, ids, mask, types)
        for row, count in enumerate(mask.sum(1)):
            part = (each[row : row + 1, :count] for each in (ids, mask, types))
            assert relative_error(outputs(model, graph, *part), together[row : row + 1]) <= OF_CPU


@pytest.mark.parametrize("write", ["bert", "qwen3"])
def test_rows_that_are_no_whole_blocks_and_heads_of_odd_widths_are_computed_too(
    tmp_path: Path, write: str
) -> None:
    if write == "bert":
        # Heads of 12 numbers: not in eights, so attention takes the mask itself.
        checkpoint = write_bert(tmp_path / "c", hidden=48, intermediate=100)
    else:
        checkpoint = write_qwen3_embedding(tmp_path / "c")
    build_unsigned(checkpoint, tmp_path / "it", precision="int8")
    model = Built(checkpoint, tmp_path / "it")
    ids, mask = random_batch()
    plain = outputs(model, model.manifest.graph, ids, mask)
    for graph in model.manifest.variants("cuda"):
        assert relative_error(outputs(model, graph, ids, mask), plain) <= OF_CPU


@pytest.mark.parametrize("precision", GRADES)
@pytest.mark.parametrize("name", READERS)
def test_operators_are_those_that_cuda_has_and_that_the_node_allows(
    built: BuildBundle, name: str, precision: Precision
) -> None:
    model = built(name, precision)
    sizes = {file: entry.size for file, entry in weight_files(model.manifest).items()}
    for graph in model.manifest.variants("cuda"):
        data = (model.bundle / graph.path).read_bytes()
        check_graph(data, sizes, path=graph.path)
        assert {node.op_type for node in ir.load(model.bundle / graph.path).graph} <= OPERATORS


@pytest.mark.parametrize("name", ["bert", "qwen3-embedding", "cross-encoder"])
def test_weights_are_stored_once_for_all_graphs(built: BuildBundle, name: str) -> None:
    model = built(name, "int8")
    weights = list((model.bundle / "graph").rglob("*.bin"))
    assert {path.parent.name for path in weights} == {"cpu"}


def test_norms_pooling_and_scores_have_32_bits(built: BuildBundle) -> None:
    for name in ("bert", "cross-encoder", "qwen3-embedding"):
        model = built(name, "fp32")
        (graph,) = model.manifest.variants("cuda")
        narrow = [
            node.op_type
            for node in ir.load(model.bundle / graph.path).graph
            if node.op_type in {"LayerNormalization", "ReduceSum", "Div"}
            and any(_narrowed(value) for value in node.inputs)
        ]
        assert narrow == []


def _narrowed(value: ir.Value | None) -> bool:
    """Whether a value is what a cast to 16 bits gives."""
    node = value.producer() if value is not None else None
    return (
        node is not None
        and node.op_type == "Cast"
        and node.attributes["to"].as_int() == ir.DataType.FLOAT16
    )


def test_golden_texts_are_within_half_of_their_bounds(
    built: BuildBundle, record_property: Callable[[str, object], None]
) -> None:
    for precision in GRADES:
        worst = 0.0
        for name in READERS[:: 1 if os.environ.get(FULL_VARIABLE) else 3]:
            model = built(name, precision)
            manifest = model.manifest
            spec = manifest.spec
            assert not isinstance(spec, DecoderSpec)
            plain = ort.InferenceSession(model.graph, providers=["CPUExecutionProvider"])
            expected = golden_texts.outputs(plain, spec)
            for graph in manifest.variants("cuda"):
                session = open_graph(model.bundle / graph.path, model.graph.parent)
                made = golden_texts.outputs(session, spec)
                worst = max(worst, golden_texts.compare(made, expected, precision).error)
        record_property("measured", f"golden texts, tiny models {precision}: {worst:.4f}")
        assert worst <= golden_texts.BOUNDS[precision] / 2


def test_minilm_is_nearer_to_its_floats_than_the_processor_s_8_bits_are(
    minilm: Path, build_once: BuildOnce, record_property: Callable[[str, object], None]
) -> None:
    exact = built_minilm(minilm, build_once, "fp32")
    model = built_minilm(minilm, build_once, "int8")
    spec = exact.manifest.encoder
    assert spec is not None
    found: dict[str, Floats] = {}
    for name, one in (("fp32", exact), ("int8", model)):
        session = ort.InferenceSession(one.graph, providers=["CPUExecutionProvider"])
        found[name] = golden_texts.outputs(session, spec)
        for graph in one.manifest.variants("cuda"):
            session = open_graph(one.bundle / graph.path, one.graph.parent)
            made = found[f"{name} as {graph.precision}"] = golden_texts.outputs(session, spec)
            error = golden_texts.compare(made, found[name], name).error
            record_property(
                "measured", f"golden texts, MiniLM {name} as {graph.precision}: {error:.4f}"
            )
            assert error <= golden_texts.BOUNDS[name] / 2
    rounded = relative_error(found["int8"], found["fp32"])
    for name in ("int8 as fp16", "int8 as int8"):
        assert relative_error(found[name], found["fp32"]) < rounded

"""Graphs that the builder writes pass the check; nothing else does."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from appliance.compiler.graph_check import (
    NATIVE_OPERATORS,
    NATIVE_OPSETS,
    OPERATORS,
    STANDARD_OPERATORS,
    STANDARD_OPSETS,
    Operators,
    check_graph,
)
from appliance.errors import VerificationError
from appliance.pb import onnx_graph_pb2 as pb
from installer.checkpoint import build_bundle
from installer.checkpoint.quantize import Precision
from tests.checkpoint.conftest import builds
from tests.checkpoint.families import find_models
from tests.conftest import FULL_VARIABLE, REPOSITORY, BuildOnce
from tests.fakes.checkpoints import write_bert, write_llama, write_qwen2, write_qwen3
from tests.fakes.encoder_checkpoints import (
    write_cross_encoder,
    write_qwen3_embedding,
    write_qwen3_reranker,
)
from tests.fakes.newer_encoders import write_modernbert, write_modernbert_reranker, write_mpnet
from tests.fakes.pooled_decoders import write_embedding_gemma, write_embedding_gemma2
from tests.fakes.rotary_encoders import write_gte
from tests.fakes.vision_checkpoints import write_qwen2_5_vl, write_qwen3_vl

PATH = "graph/cpu/model.onnx"
FIRST_RELEASE = REPOSITORY / "tests/golden/0.1/decoder"
"""Its graphs must pass for as long as bundles of that release are served."""
STANDARD_PATH = "graph/trt/model.onnx"
Change = Callable[[onnx.ModelProto], object]
Seen = dict[tuple[str, str], set[str]]
IN_PARTS = 99 if os.environ.get(FULL_VARIABLE) else 4
"""So many of the models, from the first, have tables spread over several files, too."""


def check(bundle: Path, data: bytes, folder: Path | None = None) -> None:
    folder = folder or (bundle / PATH).parent
    files = {p.name: p.stat().st_size for p in folder.iterdir() if p.suffix != ".onnx"}
    check_graph(data, files, path=PATH)


def test_the_allow_lists_are_exactly_what_the_builder_writes(
    tmp_path: Path, build_once: BuildOnce
) -> None:
    # Every family and precision, biases, tables in parts, both poolings.
    graphs: list[tuple[Callable[[Path], Path], list[Precision]]] = [
        (lambda d: write_qwen3(d, tied=False), ["fp32", "int4"]),
        (write_qwen2, ["fp32", "fp16", "fp8", "int8"]),
        (write_llama, ["int4", "w8a8", "w4a8"]),
        (write_bert, ["fp32", "int8"]),
        (lambda d: write_bert(d, pooling="cls"), ["int8"]),
        (write_cross_encoder, ["int8"]),
        (write_qwen3_embedding, ["int8"]),
        (write_qwen3_reranker, ["fp32"]),
        (write_modernbert, ["int8"]),
        (write_modernbert_reranker, ["fp32"]),
        (write_mpnet, ["int8"]),
        (write_embedding_gemma, ["int8"]),
        (write_embedding_gemma2, ["int8"]),
        (write_gte, ["int8"]),
    ]
    whole = [write_qwen3_vl, write_qwen2_5_vl]
    graphs += [(write_qwen3_vl, ["int8"]), (write_qwen2_5_vl, ["fp32"])]
    graphs += [(find_models()["gpt-oss"].write, ["fp32"])]
    graphs += [(find_models()["qwen3-moe-partly"].write, ["int4"])]
    graphs += [(find_models()["muse-glimmer"].write, ["w8a8"])]
    seen: Seen = {}
    standard: Seen = {}
    native: Seen = {}
    lists = {
        frozenset(STANDARD_OPSETS.items()): standard,
        frozenset(NATIVE_OPSETS.items()): native,
    }
    built, found = builds(build_once), list[Path]()
    for index, (write, precisions) in enumerate(graphs):
        checkpoint = write(tmp_path / f"checkpoint-{index}")
        for precision in precisions:
            parts = (33_000,) if index < IN_PARTS and write not in whole else ()
            for limit in (10**9, *parts):
                out = tmp_path / f"{index}-{precision}-{limit}"
                build_bundle(
                    checkpoint,
                    out,
                    name="m",
                    version="1",
                    signer=None,
                    precision=precision,
                    max_file_bytes=limit,
                )
                found.append(out)
    found += [
        built(name, "fp32" if model.floats else "w8a8").bundle
        for name, model in find_models().items()
        if model.main
    ]
    for out in found:
        for path in (out / "graph").rglob("*.onnx"):
            data = path.read_bytes()
            check(out, data, path.parent if path.parent.name == "vision" else None)
            model = pb.Model.FromString(data)
            opsets = {entry.domain: entry.version for entry in model.opset_import}
            note(model, lists.get(frozenset(opsets.items()), seen))
    first_release = pb.Model.FromString((FIRST_RELEASE / PATH).read_bytes())
    assert not {(n.domain, n.op_type) for n in first_release.graph.node} - seen.keys()
    assert frozen(seen) == OPERATORS
    assert frozen(standard) == STANDARD_OPERATORS
    assert frozen(seen | native) == NATIVE_OPERATORS


def note(model: pb.Model, seen: Seen) -> None:
    for node in model.graph.node:
        names = {attribute.name for attribute in node.attribute}
        seen.setdefault((node.domain, node.op_type), set()).update(names)


def frozen(seen: Seen) -> Operators:
    return {key: frozenset(names) for key, names in seen.items()}


def first_external(model: onnx.ModelProto) -> TensorProto:
    return next(t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL)


def set_external(key: str, value: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        for entry in first_external(model).external_data:
            if entry.key == key:
                entry.value = value

    return change


def add_external(key: str, value: str) -> Change:
    return lambda model: first_external(model).external_data.add(key=key, value=value)


def add_node(kind: str, domain: str = "", **attributes: object) -> Change:
    node = helper.make_node(kind, ["input_ids"], ["new"], domain=domain, **attributes)  # type: ignore[arg-type]
    return lambda model: model.graph.node.append(node)


def subgraph() -> onnx.GraphProto:
    return helper.make_graph([], "inner", [], [])


def a_tensor() -> TensorProto:
    return helper.make_tensor("t", TensorProto.FLOAT, [1], [0.0])


def outside_tensor() -> TensorProto:
    tensor = TensorProto(name="t", dims=[1], data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    return tensor


HOSTILE: dict[str, Change] = {
    "absolute path": set_external("location", "/etc/passwd"),
    "path upwards": set_external("location", "../../tokenizer/tokenizer.json"),
    "dotted path": set_external("location", "./weights-00001.bin"),
    "the graph as data": set_external("location", "model.onnx"),
    "a file that is not listed": set_external("location", "weights-00009.bin"),
    "offset beyond the file": set_external("offset", "999999999"),
    "negative offset": set_external("offset", "-64"),
    "offset that overflows": set_external("offset", "18446744073709551615"),
    "offset in other digits": set_external("offset", "\u0660"),
    "length of something else": set_external("length", "12"),
    "checksum key": add_external("checksum", "0"),
    "prepacked key": add_external("prepacked_0", "MatMulNBits+1|0;64;0"),
    "second location": add_external("location", "/etc/passwd"),
    "custom domain": add_node("Anything", "com.evil"),
    "context node": add_node("EPContext", "com.microsoft", ep_cache_context="/etc/passwd"),
    "file-reading operator": add_node("Einsum"),
    "if": add_node("If", then_branch=subgraph(), else_branch=subgraph()),
    "loop": add_node("Loop", body=subgraph()),
    "scan": add_node("Scan", body=subgraph(), num_scan_inputs=1),
    "constant": add_node("Constant", value=a_tensor()),
    "tensor in an attribute": add_node("Add", value=a_tensor()),
    "outside tensor in an attribute": add_node("Add", value=outside_tensor()),
    "subgraph in an attribute": add_node("Add", body=subgraph()),
    "unknown attribute": add_node("Add", surprise=1),
    "sequence operator": add_node("SequenceEmpty"),
    "function": lambda m: m.functions.append(
        helper.make_function("f", "F", [], [], [], [helper.make_opsetid("", 21)])
    ),
    "training": lambda m: m.training_info.add(),
    "sparse weights": lambda m: m.graph.sparse_initializer.add(),
    "metadata": lambda m: m.metadata_props.add(key="k", value="v"),
    "graph metadata": lambda m: m.graph.metadata_props.add(key="k", value="v"),
    "quantization annotation": lambda m: m.graph.quantization_annotation.add(),
    "value info": lambda m: m.graph.value_info.add(name="x"),
    "device configuration": lambda m: m.configuration.add(),
    "node overload": lambda m: setattr(m.graph.node[0], "overload", "x"),
    "another operator set": lambda m: m.opset_import.add(domain="ai.onnx.ml", version=3),
    "another version": lambda m: setattr(m.opset_import[0], "version", 22),
    "another IR version": lambda m: setattr(m, "ir_version", 11),
    "string weights": lambda m: m.graph.initializer.append(
        TensorProto(name="s", dims=[1], data_type=TensorProto.STRING, string_data=[b"x"])
    ),
    "weights of a negative shape": lambda m: m.graph.initializer.append(
        TensorProto(name="s", dims=[-1, -4], data_type=TensorProto.FLOAT, raw_data=b"0" * 16)
    ),
    "weights shorter than their shape": lambda m: m.graph.initializer.append(
        TensorProto(name="s", dims=[1 << 40], data_type=TensorProto.FLOAT, raw_data=b"0000")
    ),
    "typed weights": lambda m: m.graph.initializer.append(a_tensor()),
    "two weights of one name": lambda m: m.graph.initializer.append(m.graph.initializer[0]),
    "sequence input": lambda m: m.graph.input.append(
        helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_the_builder_does_not_write_is_refused(decoder_bundle: Path, name: str) -> None:
    data = (decoder_bundle / PATH).read_bytes()
    check(decoder_bundle, data)
    model = onnx.ModelProto.FromString(data)
    HOSTILE[name](model)
    with pytest.raises(VerificationError) as caught:
        check(decoder_bundle, model.SerializeToString())
    assert caught.value.code == "graph_refused"
    assert caught.value.path == PATH


@pytest.mark.parametrize(
    ("path", "kind", "domain"),
    [
        (PATH, "TensorScatter", ""),
        (STANDARD_PATH, "Gelu", "com.microsoft"),
        (STANDARD_PATH, "Abs", ""),
    ],
)
def test_each_set_of_operators_has_its_own_list(
    decoder_bundle: Path, path: str, kind: str, domain: str
) -> None:
    data = (decoder_bundle / path).read_bytes()
    check(decoder_bundle, data)
    model = onnx.ModelProto.FromString(data)
    add_node(kind, domain)(model)
    with pytest.raises(VerificationError, match=kind):
        check(decoder_bundle, model.SerializeToString())


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x08", b"GGUF", b"\xff" * 64])
def test_bytes_that_are_no_model_are_refused(decoder_bundle: Path, data: bytes) -> None:
    with pytest.raises(VerificationError):
        check(decoder_bundle, data)


def test_a_second_graph_cannot_hide_behind_the_first(decoder_bundle: Path) -> None:
    # Protobuf merges a repeated singular message: what is checked is what the runtime sees.
    model = onnx.ModelProto.FromString((decoder_bundle / PATH).read_bytes())
    evil = onnx.ModelProto()
    evil.graph.node.append(helper.make_node("Anything", [], ["x"], domain="com.evil"))
    with pytest.raises(VerificationError, match=r"com\.evil"):
        check(decoder_bundle, model.SerializeToString() + evil.SerializeToString())

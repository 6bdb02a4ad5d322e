"""What of a graph depends on weights alone is computed once, into a file of weights.

ONNX Runtime does that by itself, but keeps the results inside the graph, and its provider for
TensorRT hands the graph on as one protobuf, which holds less than 2 GB. Weights that lie beside it
are read from there. So where much would be folded, all weights are written anew, to one file, as
the graph wants them. By ONNX Runtime's own kernels, so nothing else comes out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from appliance.compiler.beside import Place, begin, pieces, place_of, put
from appliance.pb import onnx_graph_pb2 as pb

MOST_INSIDE = 1 << 28
"""Bytes of weights that may be folded inside the graph: at most twice as many come out."""
_FILE = "folded.bin"
_SMALLEST = 1024
_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "bool": 9, "float16": 10}
"""TensorProto.DataType."""


def fold(graph: bytes, weights: Path, folder: Path) -> tuple[bytes, Path]:
    """A graph that computes the same, and the folder that its weights lie in.

    `weights` is the folder of what `graph` has; `folder`, which is empty, of what is written. If
    little depends on weights alone, both are as they were.
    """
    model = pb.Model.FromString(graph)
    makers = _makers(model.graph)
    if _read_by(makers, model.graph) <= MOST_INSIDE:
        return graph, weights
    rest = [node for node in model.graph.node if node.output[0] not in makers]
    used = {name for node in rest for name in node.input}
    with (folder / _FILE).open("xb") as file:
        kept = [_copied(t, weights, file) for t in model.graph.initializer if t.name in used]
        kept += (
            _stored(name, _computed(name, makers, model, weights), file)
            for name in makers
            if name in used
        )
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(rest)
    model.graph.initializer.extend(kept)
    return model.SerializeToString(deterministic=True), folder


def _makers(graph: pb.Graph) -> dict[str, pb.Node]:
    """Output -> node of what depends on stored numbers alone, in order."""
    known = {tensor.name for tensor in graph.initializer}
    found: dict[str, pb.Node] = {}
    for node in graph.node:
        if known.issuperset(filter(None, node.input)):
            known.update(node.output)
            found.update(dict.fromkeys(node.output, node))
    return found


def _read_by(makers: Mapping[str, pb.Node], graph: pb.Graph) -> int:
    """Bytes of weights beside the graph that are read by what makes other weights of them."""
    names = {name for node in makers.values() for name in node.input}
    return sum(place_of(t).length for t in graph.initializer if t.name in names and t.external_data)


def _computed(
    name: str, makers: Mapping[str, pb.Node], model: pb.Model, weights: Path
) -> npt.NDArray[np.generic]:
    nodes = _needed(name, makers)
    names = {given for node in nodes for given in node.input}
    small = pb.Model(ir_version=model.ir_version, opset_import=model.opset_import)
    small.graph.name = name
    small.graph.node.extend(nodes)
    small.graph.initializer.extend(t for t in model.graph.initializer if t.name in names)
    small.graph.output.append(pb.ValueInfo(name=name))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(weights)
    )
    session = ort.InferenceSession(
        small.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (made,) = session.run([name], {})
    return np.ascontiguousarray(made)


def _needed(name: str, makers: Mapping[str, pb.Node]) -> list[pb.Node]:
    """The nodes that `name` comes out of, each once and before whoever reads it."""
    order: dict[int, pb.Node] = {}

    def visit(value: str) -> None:
        node = makers.get(value)
        if node is None or id(node) in order:
            return
        for given in node.input:
            visit(given)
        order[id(node)] = node

    visit(name)
    return list(order.values())


def _copied(tensor: pb.Tensor, weights: Path, file: IO[bytes]) -> pb.Tensor:
    if not tensor.external_data:
        return tensor
    there = place_of(tensor)
    start = begin(file)
    with (weights / there.location).open("rb") as source:
        source.seek(there.offset)
        file.writelines(pieces(source, there.length))
    copy = pb.Tensor(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
    return put(copy, Place(_FILE, start, there.length))


def _stored(name: str, array: npt.NDArray[np.generic], file: IO[bytes]) -> pb.Tensor:
    tensor = pb.Tensor(name=name, dims=array.shape, data_type=_TYPES[array.dtype.name])
    if array.nbytes < _SMALLEST:
        tensor.raw_data = array.tobytes()
        return tensor
    start = begin(file)
    file.write(array.data)
    return put(tensor, Place(_FILE, start, array.nbytes))

"""Products of the same numbers with several weights become one product, for a GPU.

Few rows of a small model are computed faster than kernels are started, replayed or not: a token of
a 0.6B shape is seven products a layer at 7 microseconds each, and the memory could give their
weights in a third of that. So the weights of queries, keys and values lie side by side, as do those
of a gated feed-forward's two halves. That is done on the node: it depends on weights alone, and the
processor has nothing of it. Pure: graph in, graph out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from appliance.pb import onnx_graph_pb2 as pb

_INT64 = 7
"""TensorProto.DataType."""
_INT = 2
"""AttributeProto.AttributeType."""
_KEEP_SHAPE = frozenset({"Cast", "DequantizeLinear"})


@dataclass(frozen=True, slots=True)
class _Weight:
    """The second input of a product: its name, and how many columns it has."""

    name: str
    columns: int


def merge_products(graph: bytes) -> bytes:
    """`graph` with one product for all of the same input; the outputs keep their names."""
    model = pb.Model.FromString(graph)
    fixed = _constants(model.graph)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    vectors = _vectors(model.graph)
    for node in fixed.values():
        _note_shape(node, shapes, vectors)
    found = _groups(model.graph, fixed, shapes)
    together = {node.output[0]: group for group in found for node, _ in group}

    nodes: list[pb.Node] = list(fixed.values())
    done: set[str] = set()
    for node in model.graph.node:
        name = node.output[0]
        if name in fixed or name in done:
            continue
        if name not in together:
            nodes.append(node)
            continue
        done |= {member.output[0] for member, _ in together[name]}
        nodes += _merged(together[name], model.graph)
    copy = pb.Model.FromString(model.SerializeToString())
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy.SerializeToString(deterministic=True)


def _constants(graph: pb.Graph) -> dict[str, pb.Node]:
    """Output -> node of what depends on stored numbers alone, in order."""
    known = {tensor.name for tensor in graph.initializer}
    found: dict[str, pb.Node] = {}
    for node in graph.node:
        if len(node.output) == 1 and known.issuperset(filter(None, node.input)):
            known.add(node.output[0])
            found[node.output[0]] = node
    return found


def _vectors(graph: pb.Graph) -> dict[str, tuple[int, ...]]:
    """Name -> numbers of the short vectors that lie in the graph itself."""
    return {
        tensor.name: tuple(np.frombuffer(tensor.raw_data, "<i8").tolist())
        for tensor in graph.initializer
        if tensor.data_type == _INT64 and tensor.raw_data
    }


def _note_shape(
    node: pb.Node,
    shapes: dict[str, tuple[int, ...]],
    vectors: Mapping[str, tuple[int, ...]],
) -> None:
    """Of what a weight goes through; others have none."""
    shape = shapes.get(node.input[0]) if node.input else None
    if shape is None:
        return
    if node.op_type in _KEEP_SHAPE:
        shapes[node.output[0]] = shape
    elif node.op_type == "Reshape" and node.input[1] in vectors:
        shapes[node.output[0]] = vectors[node.input[1]]
    elif node.op_type == "Transpose" and len(shape) == 2:
        shapes[node.output[0]] = shape[::-1]


def _groups(
    graph: pb.Graph, fixed: Mapping[str, pb.Node], shapes: Mapping[str, tuple[int, ...]]
) -> list[list[tuple[pb.Node, _Weight]]]:
    """Products of the same input, several each, and their weights."""
    stored = {tensor.name for tensor in graph.initializer}
    found: dict[str, list[tuple[pb.Node, _Weight]]] = {}
    for node in graph.node:
        if node.op_type != "MatMul" or node.domain:
            continue
        given, weight = node.input
        shape = shapes.get(weight, ())
        if given in stored or given in fixed or len(shape) != 2:
            continue
        found.setdefault(given, []).append((node, _Weight(weight, shape[1])))
    return [group for group in found.values() if len(group) > 1]


def _merged(group: Sequence[tuple[pb.Node, _Weight]], graph: pb.Graph) -> Iterator[pb.Node]:
    """One product and its division, in place of a group's."""
    (first, _), *_ = group
    name = f"{first.output[0]}.together"
    widths = np.array([weight.columns for _, weight in group], "<i8")
    graph.initializer.append(
        pb.Tensor(
            name=f"{name}.widths", dims=widths.shape, data_type=_INT64, raw_data=widths.tobytes()
        )
    )
    yield _node("Concat", [weight.name for _, weight in group], [f"{name}.weights"], axis=1)
    yield _node("MatMul", [first.input[0], f"{name}.weights"], [name])
    outputs = [node.output[0] for node, _ in group]
    yield _node("Split", [name, f"{name}.widths"], outputs, axis=-1)


def _node(operator: str, inputs: Sequence[str], outputs: Sequence[str], **numbers: int) -> pb.Node:
    attributes = [pb.Attribute(name=n, i=i, type=_INT) for n, i in numbers.items()]
    return pb.Node(
        name=f"{outputs[0]}.{operator}",
        op_type=operator,
        input=inputs,
        output=outputs,
        attribute=attributes,
    )

"""A half-precision graph, as the processor computes it with one weight widened at a time.

The processor has no products of 16-bit floats. ONNX Runtime would put the conversions in itself,
but at the end of its order of nodes, so that every weight waits for them in memory, widened. Here
they stand before the product that needs them. What is computed is the same.
"""

from __future__ import annotations

from collections.abc import Iterator

from appliance.pb import onnx_graph_pb2 as pb

_FLOAT, _HALF = 1, 10
_INT = 2
_PRODUCTS = frozenset({"MatMul", "Gemm", "MoE"})


def widen_products(graph: bytes) -> bytes:
    """`graph` with its products between conversions, if it has a half-precision cache."""
    model = pb.Model.FromString(graph)
    if not any(value.type.tensor_type.elem_type == _HALF for value in model.graph.input):
        return graph
    wide = {tensor.name for tensor in model.graph.initializer if tensor.data_type == _FLOAT}

    def narrow(node: pb.Node) -> bool:
        """A product with weights in 32 bits is one of 32 bits already."""
        return node.op_type in _PRODUCTS and not wide.intersection(node.input)

    nodes = [
        made
        for node in model.graph.node
        for made in (_between_casts(node) if narrow(node) else (node,))
    ]
    copy = pb.Model.FromString(graph)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy.SerializeToString(deterministic=True)


def _between_casts(node: pb.Node) -> Iterator[pb.Node]:
    wide = pb.Node()
    wide.CopyFrom(node)
    for index, name in enumerate(node.input):
        if name:
            wide.input[index] = f"{node.name}.wide_{index}"
            yield _cast(name, wide.input[index], _FLOAT)
    wide.output[0] = f"{node.name}.wide"
    yield wide
    yield _cast(wide.output[0], node.output[0], _HALF)


def _cast(name: str, to: str, dtype: int) -> pb.Node:
    attribute = pb.Attribute(name="to", i=dtype, type=_INT)
    return pb.Node(
        input=[name], output=[to], name=f"{to}.cast", op_type="Cast", attribute=[attribute]
    )

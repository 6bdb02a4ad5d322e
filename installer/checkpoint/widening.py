"""A half-precision graph, as the processor computes it with one weight widened at a time.

The processor has no products of 16-bit floats, and no activations. ONNX Runtime would put the
conversions in itself, but at the end of its order of nodes, so that every weight of later layers is
made before they are, and waits in memory. Here they stand before the node that needs them. What is
computed is the same.
"""

from __future__ import annotations

from collections.abc import Iterator

from appliance.pb import onnx_graph_pb2 as pb

_FLOAT, _HALF = 1, 10
_INT = 2
_PRODUCTS = frozenset({"MatMul", "Gemm", "MoE"})
_HALF_PRODUCTS = frozenset({"MatMulNBits"})
"""These the processor has in 16 bits, too."""
_ACTIVATIONS = frozenset({"Sigmoid", "Gelu", "Mul"})
"""What follows a product, element by element."""


def widen_products(graph: bytes) -> bytes:
    """`graph` with products and activations between conversions, if its cache has 16-bit floats."""
    model = pb.Model.FromString(graph)
    if not any(value.type.tensor_type.elem_type == _HALF for value in model.graph.input):
        return graph
    wide = {tensor.name for tensor in model.graph.initializer if tensor.data_type == _FLOAT}

    narrow: set[str] = set()
    nodes: list[pb.Node] = []
    for node in model.graph.node:
        if node.op_type in _PRODUCTS | _HALF_PRODUCTS:
            is_narrow = wide.isdisjoint(node.input)
        else:
            is_narrow = node.op_type in _ACTIVATIONS and narrow.issuperset(node.input)
        if is_narrow:
            narrow.update(node.output)
        converts = is_narrow and node.op_type not in _HALF_PRODUCTS
        nodes += _between_casts(node) if converts else (node,)
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

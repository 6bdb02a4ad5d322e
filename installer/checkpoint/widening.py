"""A half-precision graph, as the processor computes it with one weight widened at a time.

The processor has no products of 16-bit floats, and no activations. ONNX Runtime would put the
conversions in itself, but at the end of its order of nodes, so that every weight of later layers is
made before they are, and waits in memory. Here they stand before the node that needs them. What is
computed is the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet

from appliance.pb import onnx_graph_pb2 as pb

_FLOAT, _HALF = 1, 10
_INT = 2
_PRODUCTS = frozenset({"MatMul", "Gemm", "MoE"})
_HALF_PRODUCTS = frozenset({"MatMulNBits"})
"""These the processor has in 16 bits, too."""
_ACTIVATIONS = frozenset({"Sigmoid", "Gelu", "Mul", "Add", "Tanh"})
"""What follows a product, element by element."""
_ATTENTION = frozenset({"MultiHeadAttention"})
"""Reads what products gave, and a mask that stays as it is."""


def widen_products(graph: bytes) -> bytes:
    """`graph` with products and activations between conversions, if it has 16-bit floats."""
    model = pb.Model.FromString(graph)
    if not _is_half(model.graph):
        return graph
    wide = {tensor.name for tensor in model.graph.initializer if tensor.data_type == _FLOAT}

    narrow: set[str] = set()
    nodes: list[pb.Node] = []
    for node in model.graph.node:
        if node.op_type in _PRODUCTS | _HALF_PRODUCTS:
            is_narrow = wide.isdisjoint(node.input)
        elif node.op_type in _ATTENTION:
            is_narrow = node.input[0] in narrow
        else:
            is_narrow = node.op_type in _ACTIVATIONS and narrow.issuperset(node.input)
        if is_narrow or _narrows(node):
            narrow.update(node.output)
        converts = is_narrow and node.op_type not in _HALF_PRODUCTS
        among = narrow if node.op_type in _ATTENTION else frozenset(node.input)
        nodes += _between_casts(node, among) if converts else (node,)
    copy = pb.Model.FromString(graph)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy.SerializeToString(deterministic=True)


def _is_half(graph: pb.Graph) -> bool:
    """Whether its cache has 16-bit floats, or, where it has none, something is cast to such."""
    return any(value.type.tensor_type.elem_type == _HALF for value in graph.input) or any(
        map(_narrows, graph.node)
    )


def _narrows(node: pb.Node) -> bool:
    return node.op_type == "Cast" and node.attribute[0].i == _HALF


def _between_casts(node: pb.Node, narrow: AbstractSet[str]) -> Iterator[pb.Node]:
    """The node in 32 bits; those of its inputs that are `narrow` are widened before it."""
    wide = pb.Node()
    wide.CopyFrom(node)
    for index, name in enumerate(node.input):
        if name and name in narrow:
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

"""A half-precision graph, as the processor computes it with one weight widened at a time.

The processor has no products of 16-bit floats, and no activations. ONNX Runtime would put the
conversions in itself, but at the end of its order of nodes, so that every weight of later layers is
made before they are, and waits in memory. Here they stand before the node that needs them. What is
computed is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet

from appliance.pb import onnx_graph_pb2 as pb

_FLOAT, _HALF = 1, 10
_INT, _INTS = 2, 7
_BYTE_FLOATS = "MatMulBlockQuantizedFp8Weight"
"""ONNX Runtime 1.31.1: x [..., inner], floats [outer, inner], scales [outer, runs], nothing, addend
[outer]; `block_size` is the length of a run."""
_PRODUCTS = frozenset({"MatMul", "Gemm", "MoE"})
_HALF_PRODUCTS = frozenset({"MatMulNBits"})
"""These the processor has in 16 bits, too."""
_ACTIVATIONS = frozenset({"Sigmoid", "Gelu", "Mul", "Add", "Tanh"})
"""What follows a product or attention, element by element, of numbers of one type."""
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
        if _casts(node, _FLOAT):
            wide.update(node.output)
        if node.op_type in _PRODUCTS | _HALF_PRODUCTS:
            is_narrow = wide.isdisjoint(node.input)
        elif node.op_type in _ATTENTION:
            is_narrow = node.input[0] in narrow
        else:
            is_narrow = node.op_type in _ACTIVATIONS and not narrow.isdisjoint(node.input)
        if is_narrow or _casts(node, _HALF):
            narrow.update(node.output)
        converts = is_narrow and node.op_type not in _HALF_PRODUCTS
        among = narrow if node.op_type in _ATTENTION else frozenset(node.input)
        nodes += _between_casts(node, among) if converts else (node,)
    copy = pb.Model.FromString(graph)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy.SerializeToString(deterministic=True)


def spell_out(graph: bytes) -> bytes:
    """`graph` with products of 8-bit floats in the words that the processor has, if it has any."""
    model = pb.Model.FromString(graph)
    if all(node.op_type != _BYTE_FLOATS for node in model.graph.node):
        return graph
    nodes: list[pb.Node] = []
    for node in model.graph.node:
        nodes += _spelled_out(node) if node.op_type == _BYTE_FLOATS else (node,)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model.SerializeToString(deterministic=True)


def _spelled_out(node: pb.Node) -> Iterator[pb.Node]:
    """The same product, of what the floats stand for in 16 bits."""
    x, values, scales, *rest = node.input
    meant, columns, product = (f"{node.name}.{name}" for name in ("meant", "columns", "product"))
    (run,) = (attribute.i for attribute in node.attribute if attribute.name == "block_size")
    runs = [_number("axis", 1), _number("block_size", run)]
    yield _node("DequantizeLinear", [values, scales], f"{meant}.wide", runs)
    yield _cast(f"{meant}.wide", meant, _HALF)
    turned = pb.Attribute(name="perm", ints=[1, 0], type=_INTS)
    yield _node("Transpose", [meant], columns, [turned])
    if not rest:
        yield _node("MatMul", [x, columns], node.output[0])
        return
    yield _node("MatMul", [x, columns], product)
    yield _node("Add", [product, rest[-1]], node.output[0])


def _is_half(graph: pb.Graph) -> bool:
    """Whether its cache has 16-bit floats, or, where it has none, something is cast to such."""
    return any(value.type.tensor_type.elem_type == _HALF for value in graph.input) or any(
        _casts(node, _HALF) for node in graph.node
    )


def _casts(node: pb.Node, dtype: int) -> bool:
    return node.op_type == "Cast" and node.attribute[0].i == dtype


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
    return _node("Cast", [name], to, [_number("to", dtype)])


def _node(
    kind: str, inputs: Sequence[str], output: str, attributes: Sequence[pb.Attribute] = ()
) -> pb.Node:
    name = f"{output}.{kind.lower()}"
    return pb.Node(input=inputs, output=[output], name=name, op_type=kind, attribute=attributes)


def _number(name: str, value: int) -> pb.Attribute:
    return pb.Attribute(name=name, i=value, type=_INT)

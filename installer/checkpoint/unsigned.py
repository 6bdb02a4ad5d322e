"""Products of bytes, as a processor without VNNI computes them exactly.

Its kernel for unsigned by signed bytes adds two products in 16 bits, where large ones do not fit
and are cut off in silence; that for unsigned by unsigned ones widens first (MLAS, "U8S8" and
"U8U8"). A node's compiler lets ONNX Runtime store the weights unsigned (session.x64quantprecision).
Here nothing is stored: each matrix is turned right before its product, so that memory is needed for
one. What is computed is the same. Refuses nothing; owns the question whether it is needed at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import onnxruntime as ort

from appliance.pb import onnx_graph_pb2 as pb

_PRODUCT, _MICROSOFT = "MatMulIntegerToFloat", "com.microsoft"
"""a, b, their scales, their zero points (b's may be left out: 0), an addend."""
_BYTE, _SIGNED, _FLOAT = 2, 3, 1
_INT = 2
_MIDDLE = "unsigned.middle"
_OF_WEIGHTS = 5


def exact_products(graph: bytes) -> bytes:
    """`graph` with unsigned weights, if this processor's products of signed ones overflow."""
    return with_unsigned_weights(graph) if overflows() else graph


def with_unsigned_weights(graph: bytes) -> bytes:
    """`graph` with each matrix of signed bytes moved up by 128, and so its zero point.

    All products that our graphs have are of signed weights (graph/builder.py).
    """
    model = pb.Model.FromString(graph)
    if all(node.op_type != _PRODUCT for node in model.graph.node):
        return graph
    nodes: list[pb.Node] = []
    for node in model.graph.node:
        nodes += _moved_up(node) if node.op_type == _PRODUCT else (node,)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(pb.Tensor(name=_MIDDLE, data_type=_BYTE, raw_data=bytes([128])))
    return model.SerializeToString(deterministic=True)


@cache
def overflows() -> bool:
    """Whether a product of unsigned by signed bytes is wrong here, as the runtime computes it."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(_large_product(), options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"a": np.full((1, _WIDTH), 255, np.uint8)})
    return bool(found[0, 0] != 255 * 127 * _WIDTH)


_WIDTH = 64


def _large_product() -> bytes:
    weights = np.full((_WIDTH, 16), 127, np.int8)
    one = pb.Tensor(name="one", data_type=_FLOAT, raw_data=np.float32(1).tobytes())
    matrix = pb.Tensor(name="b", data_type=_SIGNED, dims=weights.shape, raw_data=weights.tobytes())
    product = pb.Node(
        input=["a", "b", "one", "one"], output=["y"], op_type=_PRODUCT, domain=_MICROSOFT
    )
    graph = pb.Graph(
        name="overflow",
        node=[product],
        initializer=[one, matrix],
        input=[_value("a", _BYTE)],
        output=[_value("y", _FLOAT)],
    )
    versions = [pb.OperatorSet(version=21), pb.OperatorSet(domain=_MICROSOFT, version=1)]
    model = pb.Model(ir_version=10, graph=graph, opset_import=versions)
    return model.SerializeToString(deterministic=True)


def _value(name: str, kind: int) -> pb.ValueInfo:
    return pb.ValueInfo(name=name, type=pb.Type(tensor_type=pb.TensorType(elem_type=kind)))


def _moved_up(node: pb.Node) -> Iterator[pb.Node]:
    """Signed bytes read as unsigned ones, 128 apart: the first bit is turned."""
    bits, turned = f"{node.output[0]}.bits", f"{node.output[0]}.unsigned"
    to = pb.Attribute(name="to", i=_BYTE, type=_INT)
    yield pb.Node(input=[node.input[1]], output=[bits], name=bits, op_type="Cast", attribute=[to])
    yield pb.Node(input=[bits, _MIDDLE], output=[turned], name=turned, op_type="BitwiseXor")
    product = pb.Node()
    product.CopyFrom(node)
    del product.input[:]
    a, _, *others = (*node.input, *[""] * (_OF_WEIGHTS + 1 - len(node.input)))
    product.input.extend([a, turned, *others])
    product.input[_OF_WEIGHTS] = _MIDDLE
    yield product

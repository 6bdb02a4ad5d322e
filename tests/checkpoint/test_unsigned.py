"""Products of bytes are exact on processors whose kernel for signed weights is not."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
import pytest

from appliance.pb import onnx_graph_pb2 as pb
from installer.checkpoint import unsigned
from installer.checkpoint.unsigned import exact_products, overflows, with_unsigned_weights

_ROWS, _INNER, _OUTER = 5, 96, 24
Floats = npt.NDArray[np.float32]


def _product(weights: npt.NDArray[np.int8], scales: Floats, addend: Floats | None) -> bytes:
    """y = (a - 128) weights scales + addend, as the graphs of bundles have it."""
    given = {
        "b": ir.tensor(weights),
        "step": ir.tensor(np.float32(0.5)),
        "scales": ir.tensor(scales),
        "middle": ir.tensor(np.uint8(128)),
        **({} if addend is None else {"addend": ir.tensor(addend)}),
    }
    values = {name: ir.val(name, const_value=tensor) for name, tensor in given.items()}
    a = ir.val("a", ir.DataType.UINT8, ["rows", _INNER])
    turned = ir.node("Transpose", [values["b"]], attributes={"perm": [1, 0]})
    inputs: list[ir.Value | None] = [
        a,
        turned.outputs[0],
        values["step"],
        values["scales"],
        values["middle"],
    ]
    if addend is not None:
        inputs += [None, values["addend"]]
    product = ir.node("MatMulIntegerToFloat", inputs, domain="com.microsoft")
    (y,) = product.outputs
    y.name, y.dtype, y.shape = "y", ir.DataType.FLOAT, ir.Shape(["rows", _OUTER])
    graph = ir.Graph(
        [a], [y],
        nodes=[turned, product],
        initializers=list(values.values()),
        opset_imports={"": 21, "com.microsoft": 1},
        name="product",
    )  # fmt: skip
    model = ir.Model(graph, ir_version=10)
    return ir.to_proto(model).SerializeToString()


def _run(graph: bytes, a: npt.NDArray[np.uint8]) -> Floats:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"a": a})
    return np.asarray(y, np.float32)


@pytest.mark.parametrize("has_addend", [False, True])
def test_turned_products_are_those_of_whole_numbers(has_addend: bool) -> None:
    rng = np.random.default_rng(7)
    weights = rng.integers(-128, 128, (_OUTER, _INNER)).astype(np.int8)
    weights[0], weights[1] = 127, -128
    scales = rng.random(_OUTER, np.float32)
    addend = rng.standard_normal(_OUTER).astype(np.float32) if has_addend else None
    a = rng.integers(0, 256, (_ROWS, _INNER)).astype(np.uint8)
    a[0], a[1] = 255, 0
    whole = (a.astype(np.int64) - 128) @ weights.T.astype(np.int64)
    expected = whole * (scales * 0.5) + (0.0 if addend is None else addend)
    graph = _product(weights, scales, addend)
    for exact in (with_unsigned_weights(graph), exact_products(graph)):
        assert np.allclose(_run(exact, a), expected, rtol=1e-6, atol=1e-4)


def test_whether_they_overflow_is_what_the_runtime_does() -> None:
    weights = np.full((_OUTER, _INNER), 127, np.int8)
    a = np.full((1, _INNER), 255, np.uint8)
    graph = _product(weights, np.ones(_OUTER, np.float32), None)
    is_exact = bool(np.all(_run(graph, a) == 127 * 127 * _INNER * 0.5))
    assert overflows() is not is_exact


def test_only_where_they_overflow_a_graph_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = _product(np.ones((_OUTER, _INNER), np.int8), np.ones(_OUTER, np.float32), None)
    monkeypatch.setattr(unsigned, "overflows", lambda: False)
    assert exact_products(graph) == graph
    monkeypatch.setattr(unsigned, "overflows", lambda: True)
    kinds = [node.op_type for node in pb.Model.FromString(exact_products(graph)).graph.node]
    assert kinds == ["Transpose", "Cast", "BitwiseXor", "MatMulIntegerToFloat"]


def test_a_graph_without_such_products_stays_as_it_is() -> None:
    model = pb.Model.FromString(_product(np.ones((1, 1), np.int8), np.ones(1, np.float32), None))
    del model.graph.node[-1]
    graph = model.SerializeToString(deterministic=True)
    assert with_unsigned_weights(graph) == graph

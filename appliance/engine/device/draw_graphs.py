"""The small graphs by which a device changes its logits and says what a choice needs of them.

Owns their form, for one vocabulary each. `sums` gives the mass of each run of tokens, `likeliest`
the most likely tokens: a few thousand numbers a row instead of all of them
(docs/decisions/0259-draws-on-the-device.md). `changed` applies penalties, biases and masks
(0267-choices-on-the-device.md). Only standard operators that the CUDA provider and the processor's
both have, operator set 18.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from appliance.engine.drawing import RUN
from appliance.pb import onnx_graph_pb2 as pb

LIKELIEST = 256
_IR_VERSION, _OPERATORS = 10, 18
_FLOAT, _UINT8, _INT32, _INT64 = 1, 2, 6, 7
"""TensorProto.DataType."""
_BYTE = 8
_OF_INT = 2
"""AttributeProto.AttributeType."""


def sums(vocab: int) -> bytes:
    """logits [rows, vocab], temperature [rows, 1] -> highest [rows, 1], sums [rows, runs].

    A sum is that of exp((logit - highest) / temperature) over `RUN` tokens; the last run has 1 to
    `RUN` of them.
    """
    graph = _Graph()
    graph.input("logits", vocab)
    graph.input("temperature", 1)
    last = graph.constant("last", [-1])
    graph.node("ReduceMax", ["logits", last], "highest")
    graph.node("Sub", ["logits", "highest"], "below")
    graph.node("Div", ["below", "temperature"], "scaled")
    graph.node("Exp", ["scaled"], "weights")
    graph.output("highest", 1)
    whole = (vocab - 1) // RUN * RUN
    if not whole:
        graph.node("ReduceSum", ["weights", last], "sums")
        graph.output("sums", 1)
        return graph.encoded()
    first, middle, end = (graph.constant(f"at_{at}", [at]) for at in (0, whole, vocab))
    graph.node("Slice", ["weights", first, middle, last], "front")
    graph.node("Reshape", ["front", graph.constant("runs", [0, whole // RUN, RUN])], "in_runs")
    graph.node("ReduceSum", ["in_runs", last], "front_sums", keepdims=0)
    graph.node("Slice", ["weights", middle, end, last], "rest")
    graph.node("ReduceSum", ["rest", last], "rest_sum")
    graph.node("Concat", ["front_sums", "rest_sum"], "sums", axis=1)
    graph.output("sums", whole // RUN + 1)
    return graph.encoded()


def likeliest(vocab: int) -> bytes:
    """logits [rows, vocab] -> values, ids [rows, `likeliest_count`], the largest first."""
    graph = _Graph()
    graph.input("logits", vocab)
    count = likeliest_count(vocab)
    graph.node("TopK", ["logits", graph.constant("count", [count])], "values", "ids")
    graph.output("values", count)
    graph.output("ids", count, _INT64)
    return graph.encoded()


def changed(vocab: int) -> bytes:
    """Logits after what a request changes of them, and the likeliest token after that.

    logits [rows, vocab]; ids int64, factors, shifts [rows, edits], as `choosing.Edits` has them,
    where an id may come twice if all of it does; allowed uint8 [rows, mask_bytes], a bit for each
    token, the lowest first -> scores [rows, vocab], highest [rows, 1], best int64 [rows, 1].
    """
    graph = _Graph()
    graph.input("logits", vocab)
    graph.input("ids", "edits", _INT64)
    graph.input("factors", "edits")
    graph.input("shifts", "edits")
    graph.input("allowed", mask_bytes(vocab), _UINT8)
    graph.node("GatherElements", ["logits", "ids"], "values", axis=1)
    graph.node("Greater", ["values", graph.floats("zero", np.zeros(1))], "positive")
    graph.node("Div", ["values", "factors"], "divided")
    graph.node("Mul", ["values", "factors"], "multiplied")
    graph.node("Where", ["positive", "divided", "multiplied"], "scaled")
    graph.node("Add", ["scaled", "shifts"], "new")
    graph.node("ScatterElements", ["logits", "ids", "new"], "edited", axis=1)
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    table = graph.floats("meaning", np.where(bits, 0.0, -np.inf))
    graph.node("Cast", ["allowed"], "bytes", to=_INT32)
    graph.node("Gather", [table, "bytes"], "bits", axis=0)
    wide = _BYTE * mask_bytes(vocab)
    graph.node("Reshape", ["bits", graph.constant("wide", [0, wide])], "row")
    if wide > vocab:
        ends = (graph.constant(f"to_{at}", [at]) for at in (0, vocab, 1))
        graph.node("Slice", ["row", *ends], "mask")
    graph.node("Add", ["edited", "mask" if wide > vocab else "row"], "scores")
    graph.node("ReduceMax", ["scores", graph.constant("last", [-1])], "highest")
    graph.node("ArgMax", ["scores"], "best", axis=1, keepdims=1)
    graph.output("scores", vocab)
    graph.output("highest", 1)
    graph.output("best", 1, _INT64)
    return graph.encoded()


def mask_bytes(vocab: int) -> int:
    """Bytes of a bit for each token."""
    return -(-vocab // _BYTE)


def likeliest_count(vocab: int) -> int:
    """How many of the most likely tokens `likeliest` gives."""
    return min(LIKELIEST, vocab)


def run_count(vocab: int) -> int:
    """Runs that `sums` gives a mass for."""
    return (vocab - 1) // RUN + 1


class _Graph:
    """A graph in the making, over any number of rows."""

    def __init__(self) -> None:
        self._graph = pb.Graph(name="draw")

    def input(self, name: str, width: int | str, kind: int = _FLOAT) -> None:
        self._graph.input.append(_value(name, width, kind))

    def output(self, name: str, width: int, kind: int = _FLOAT) -> None:
        self._graph.output.append(_value(name, width, kind))

    def floats(self, name: str, numbers: npt.NDArray[Any]) -> str:
        self._graph.initializer.append(
            pb.Tensor(
                name=name,
                dims=numbers.shape,
                data_type=_FLOAT,
                raw_data=numbers.astype("<f4").tobytes(),
            )
        )
        return name

    def constant(self, name: str, numbers: Sequence[int]) -> str:
        array: npt.NDArray[np.int64] = np.array(numbers, "<i8")
        self._graph.initializer.append(
            pb.Tensor(name=name, dims=array.shape, data_type=_INT64, raw_data=array.tobytes())
        )
        return name

    def node(self, operator: str, inputs: Sequence[str], *outputs: str, **numbers: int) -> None:
        attributes = [pb.Attribute(name=n, i=i, type=_OF_INT) for n, i in numbers.items()]
        self._graph.node.append(
            pb.Node(op_type=operator, input=inputs, output=outputs, attribute=attributes)
        )

    def encoded(self) -> bytes:
        model = pb.Model(
            ir_version=_IR_VERSION,
            graph=self._graph,
            opset_import=[pb.OperatorSet(version=_OPERATORS)],
        )
        return model.SerializeToString()


def _value(name: str, width: int | str, kind: int) -> pb.ValueInfo:
    rows = pb.Dimension(dim_param="rows")
    if isinstance(width, str):
        columns = pb.Dimension(dim_param=width)
    else:
        columns = pb.Dimension(dim_value=width)
    tensor = pb.TensorType(elem_type=kind, shape=pb.Shape(dim=[rows, columns]))
    return pb.ValueInfo(name=name, type=pb.Type(tensor_type=tensor))

"""One node of a native operator as a session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from appliance.native import library

Array = np.ndarray[Any, Any]


def session(
    kind: str,
    inputs: Sequence[str],
    fed: Mapping[str, int],
    constants: Mapping[str, Array],
    outputs: Sequence[tuple[str, int]] = (("y", TensorProto.FLOAT),),
    **attributes: Any,
) -> ort.InferenceSession:
    """A session of the node; `fed` are the inputs' types, "" is an input that it lacks."""
    node = helper.make_node(
        kind, inputs, [name for name, _ in outputs], domain="appliance", **attributes
    )
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info(name, type_, None) for name, type_ in fed.items()],
        [helper.make_tensor_value_info(name, type_, None) for name, type_ in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("appliance", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 4
    library.register(options)
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def packed(weight: Array) -> Array:
    """int8 [outer, inner] -> uint8 [blocks, inner / 4, 64]: 16 rows side by side, each plus 128."""
    outer, inner = weight.shape
    whole = np.full((-(-outer // 16) * 16, inner), 128, np.uint8)
    whole[:outer] = weight.astype(np.int16) + 128
    return whole.reshape(-1, 16, inner // 4, 4).transpose(0, 2, 1, 3).reshape(-1, inner // 4, 64)

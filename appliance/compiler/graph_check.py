"""Looks at a bundle's graph before the runtime does.

Owns the allow-list of operators and attributes, and the rule where weights may lie. A graph is a
program: ONNX Runtime would follow a path out of the bundle, load a library for a custom
operator, or open the file an EPContext node names. Everything that the builder does not write is
refused, first by the schema (appliance/pb/onnx_graph.proto: unknown fields), then by name.
Signed bundles come from an authorised curator; this limits what a mistaken or coerced one can do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NoReturn

from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from appliance.errors import VerificationError
from appliance.native import contract
from appliance.pb import onnx_graph_pb2 as pb

MAX_GRAPH_BYTES = 64 * 1024 * 1024
MICROSOFT = "com.microsoft"
IR_VERSION = 10

_NONE: frozenset[str] = frozenset()
Operators = Mapping[tuple[str, str], frozenset[str]]
"""(domain, operator) -> the attributes it may have."""

_EXPERTS = frozenset(
    {
        *("k", "normalize_routing_weights", "activation_type", "activation_alpha"),
        *("activation_beta", "swiglu_fusion", "swiglu_limit"),
    }
)

OPSETS = {"": 21, MICROSOFT: 1}
"""Of graphs for ONNX Runtime's own kernels."""
OPERATORS: Operators = {
    ("", "Abs"): _NONE,
    ("", "Add"): _NONE,
    ("", "ArgMax"): frozenset({"axis", "keepdims"}),
    ("", "BitwiseXor"): _NONE,
    ("", "Cast"): frozenset({"to"}),
    ("", "Concat"): frozenset({"axis"}),
    ("", "Cos"): _NONE,
    ("", "CumSum"): _NONE,
    ("", "DequantizeLinear"): frozenset({"axis", "block_size"}),
    ("", "Div"): _NONE,
    ("", "Elu"): _NONE,
    ("", "Expand"): _NONE,
    ("", "Gather"): frozenset({"axis"}),
    ("", "GatherElements"): frozenset({"axis"}),
    ("", "GatherND"): frozenset({"batch_dims"}),
    ("", "Gelu"): frozenset({"approximate"}),
    ("", "Gemm"): frozenset({"transB"}),
    ("", "Greater"): _NONE,
    ("", "LayerNormalization"): frozenset({"axis", "epsilon"}),
    ("", "Log"): _NONE,
    ("", "LpNormalization"): frozenset({"axis", "p"}),
    ("", "MatMul"): _NONE,
    ("", "Max"): _NONE,
    ("", "Min"): _NONE,
    ("", "Mod"): _NONE,
    ("", "Mul"): _NONE,
    ("", "QuantizeLinear"): _NONE,
    ("", "Range"): _NONE,
    ("", "ReduceMax"): frozenset({"keepdims"}),
    ("", "ReduceSum"): frozenset({"keepdims"}),
    ("", "Relu"): _NONE,
    ("", "Reshape"): _NONE,
    ("", "ScatterElements"): frozenset({"axis"}),
    ("", "Shape"): frozenset({"start", "end"}),
    ("", "Sigmoid"): _NONE,
    ("", "Sign"): _NONE,
    ("", "SimplifiedLayerNormalization"): frozenset({"axis", "epsilon", "stash_type"}),
    ("", "Sin"): _NONE,
    ("", "Slice"): _NONE,
    ("", "Softmax"): frozenset({"axis"}),
    ("", "Softplus"): _NONE,
    ("", "Split"): frozenset({"axis"}),
    ("", "Sqrt"): _NONE,
    ("", "Squeeze"): _NONE,
    ("", "Sub"): _NONE,
    ("", "Tanh"): _NONE,
    ("", "TopK"): frozenset({"axis"}),
    ("", "Transpose"): frozenset({"perm"}),
    ("", "Unsqueeze"): _NONE,
    ("", "Where"): _NONE,
    (MICROSOFT, "GatherBlockQuantized"): frozenset(
        {"bits", "block_size", "gather_axis", "quantize_axis"}
    ),
    (MICROSOFT, "Gelu"): _NONE,
    (MICROSOFT, "GroupQueryAttention"): frozenset(
        {
            *("num_heads", "kv_num_heads", "do_rotary", "scale", "local_window_size"),
            "rotary_interleaved",
            *("k_quant_type", "v_quant_type", "kv_cache_bit_width"),
        }
    ),
    (MICROSOFT, "CausalConvWithState"): frozenset({"activation"}),
    (MICROSOFT, "LinearAttention"): frozenset(
        {"update_rule", "q_num_heads", "kv_num_heads", "scale"}
    ),
    (MICROSOFT, "LinearAttentionGate"): _NONE,
    (MICROSOFT, "MatMulBlockQuantizedFp8Weight"): frozenset({"block_size"}),
    (MICROSOFT, "MatMulIntegerToFloat"): _NONE,
    (MICROSOFT, "MatMulNBits"): frozenset({"K", "N", "bits", "block_size", "accuracy_level"}),
    (MICROSOFT, "MoE"): _EXPERTS,
    (MICROSOFT, "MultiHeadAttention"): frozenset({"num_heads", "scale"}),
    (MICROSOFT, "QMoE"): _EXPERTS
    | {"expert_weight_bits", "block_size", "accuracy_level", "weights_prepacked"},
    (MICROSOFT, "RotaryEmbedding"): frozenset({"num_heads", "rotary_embedding_dim", "interleaved"}),
    (MICROSOFT, "SkipLayerNormalization"): frozenset({"epsilon"}),
    (MICROSOFT, "SkipSimplifiedLayerNormalization"): frozenset({"epsilon"}),
}

STANDARD_OPSETS = {"": 24}
"""Of graphs for TensorRT, which knows standard operators only."""
STANDARD_OPERATORS: Operators = {
    ("", "Add"): _NONE,
    ("", "And"): _NONE,
    ("", "ArgMax"): frozenset({"axis", "keepdims"}),
    ("", "Attention"): frozenset({"scale"}),
    ("", "Cast"): frozenset({"to"}),
    ("", "Concat"): frozenset({"axis"}),
    ("", "DequantizeLinear"): frozenset({"axis"}),
    ("", "Elu"): _NONE,
    ("", "Gather"): frozenset({"axis"}),
    ("", "Gelu"): frozenset({"approximate"}),
    ("", "Gemm"): frozenset({"transB"}),
    ("", "LayerNormalization"): frozenset({"axis", "epsilon"}),
    ("", "LessOrEqual"): _NONE,
    ("", "MatMul"): _NONE,
    ("", "Mul"): _NONE,
    ("", "RMSNormalization"): frozenset({"axis", "epsilon", "stash_type"}),
    ("", "Range"): _NONE,
    ("", "Relu"): _NONE,
    ("", "Reshape"): _NONE,
    ("", "RotaryEmbedding"): frozenset({"interleaved", "rotary_embedding_dim"}),
    ("", "Shape"): frozenset({"start", "end"}),
    ("", "Sigmoid"): _NONE,
    ("", "Split"): frozenset({"axis"}),
    ("", "Squeeze"): _NONE,
    ("", "Tanh"): _NONE,
    ("", "TensorScatter"): frozenset({"axis", "mode"}),
    ("", "Transpose"): frozenset({"perm"}),
    ("", "Unsqueeze"): _NONE,
}

NATIVE_OPSETS = {**OPSETS, contract.DOMAIN: contract.VERSION}
"""Of graphs for the appliance's own operators."""
NATIVE_OPERATORS: Operators = {
    **OPERATORS,
    (contract.DOMAIN, "Attention"): frozenset(
        {"heads", "kv_heads", "scale", "epsilon", "window", "interleaved"}
    ),
    (contract.DOMAIN, "BlockGatedLinear"): frozenset({"activation", "bits"}),
    (contract.DOMAIN, "BlockLinear"): frozenset({"bits"}),
    (contract.DOMAIN, "BlockLookup"): frozenset({"bits"}),
    (contract.DOMAIN, "GatedLinear"): frozenset({"activation"}),
    (contract.DOMAIN, "Linear"): _NONE,
    (contract.DOMAIN, "Lookup"): _NONE,
}

_ALLOWED = (
    (OPSETS, OPERATORS),
    (STANDARD_OPSETS, STANDARD_OPERATORS),
    (NATIVE_OPSETS, NATIVE_OPERATORS),
)

_ITEM_BYTES = {1: 4, 2: 1, 3: 1, 7: 8, 10: 2, 17: 1}
"""TensorProto.DataType: FLOAT, UINT8, INT8, INT64, FLOAT16, FLOAT8E4M3FN."""
_WEIGHT_FILE = re.compile(r"weights-[0-9]{5}\.bin")
_EXTERNAL = 1


def check_graph(data: bytes, weight_files: Mapping[str, int], *, path: str) -> None:
    """Refuse the graph `data` unless it is one that the builder could have written.

    Args:
        weight_files: name -> size of the bundle's files in the graph's directory.
        path: the graph's path, for errors.

    Raises VerificationError naming the first thing that is not allowed.
    """
    check = _Check(path, weight_files)
    if len(data) > MAX_GRAPH_BYTES:
        check.refuse(f"it is {len(data)} bytes long")
    try:
        model = pb.Model.FromString(data)
    except (DecodeError, UnicodeDecodeError) as error:
        check.refuse(f"it is not an ONNX model ({error})")
    check.model(model)


class _Check:
    def __init__(self, path: str, weight_files: Mapping[str, int]) -> None:
        self._path = path
        self._weight_files = weight_files

    def refuse(self, reason: str) -> NoReturn:
        raise VerificationError(
            f"the graph {self._path} is refused: {reason}",
            path=self._path,
            hint="the bundle was not made by `appliance bundle build`; do not use it",
            code="graph_refused",
        )

    def model(self, model: pb.Model) -> None:
        self._fields(model, "model")
        opsets = {entry.domain: entry.version for entry in model.opset_import}
        operators = next((allowed for known, allowed in _ALLOWED if known == opsets), None)
        if model.ir_version != IR_VERSION or operators is None:
            self.refuse(f"it has IR version {model.ir_version} and the operator sets {opsets}")
        for node in model.graph.node:
            self._node(node, operators)
        names = [tensor.name for tensor in model.graph.initializer]
        if len(names) != len(set(names)):
            self.refuse("two of its weights have one name")
        for tensor in model.graph.initializer:
            self._tensor(tensor)

    def _fields(self, message: Message, at: str) -> None:
        """Refuse fields that the schema leaves out, at any depth."""
        unknown = UnknownFieldSet(message)
        if len(unknown):
            self.refuse(f"{at} has the field {unknown[0].field_number}, which no bundle uses")
        for field, value in message.ListFields():
            if field.message_type is not None:
                for part in value if field.is_repeated else (value,):
                    self._fields(part, f"{at}.{field.name}")

    def _node(self, node: pb.Node, operators: Operators) -> None:
        allowed = operators.get((node.domain, node.op_type))
        if allowed is None:
            self.refuse(f"the operator {node.domain or 'ai.onnx'}::{node.op_type} is not allowed")
        for attribute in node.attribute:
            if attribute.name not in allowed:
                self.refuse(f"{node.op_type} has the attribute {attribute.name!r}")

    def _tensor(self, tensor: pb.Tensor) -> None:
        item = _ITEM_BYTES.get(tensor.data_type)
        if item is None or any(dim <= 0 for dim in tensor.dims):
            self.refuse(f"{tensor.name} has element type {tensor.data_type}, {list(tensor.dims)}")
        size = math.prod(tensor.dims) * item
        if tensor.data_location == _EXTERNAL:
            self._external(tensor, size)
        elif tensor.external_data or len(tensor.raw_data) != size:
            self.refuse(f"{tensor.name} does not hold its {size} bytes")

    def _external(self, tensor: pb.Tensor, size: int) -> None:
        entries = [(entry.key, entry.value) for entry in tensor.external_data]
        keys = sorted(key for key, _ in entries)
        if keys != ["length", "location", "offset"] or tensor.raw_data:
            self.refuse(f"{tensor.name} has the external data keys {keys}")
        values = dict(entries)
        location = values["location"]
        if not _WEIGHT_FILE.fullmatch(location) or location not in self._weight_files:
            self.refuse(f"{tensor.name} lies in {location!r}, which is not a file of the bundle")
        offset, length = self._number(values["offset"]), self._number(values["length"])
        if length != size or offset + length > self._weight_files[location]:
            self.refuse(f"{tensor.name} does not lie within {location}")

    def _number(self, text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", text):
            self.refuse(f"{text!r} is not an offset")
        return int(text)

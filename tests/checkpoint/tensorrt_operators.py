"""What TensorRT 10.16's ONNX parser takes of each operator that graphs for it have.

Read on 2026-11-26 from these public sources, each named where it is used:

- `IMPORTERS`, `CHECKERS`: onnx/onnx-tensorrt at commit dd0a3a9f8794ae4f0316ed07ea68cda9b944bb3c
  (10.15 GA by its docs/Changelog.md), onnxOpImporters.cpp and onnxOpCheckers.cpp.
- `HELPERS`, `TABLE`: the same repository at commit fa5aa9f61e7781d2ca8f5351d42c1f19525a6124,
  AttentionHelpers.cpp and docs/operators.md ("TensorRT 10.15 supports operators in the inclusive
  range of opset 9 to opset 24").
- `LAYERS`: NVIDIA's pages of the layers that the parser makes, docs.nvidia.com/deeplearning/
  tensorrt, _static/operators: Attention.html of 10.16.1; KVCacheUpdate.html and
  RotaryEmbedding.html under `latest`.

The parser's source of 10.16 itself could not be had. Its table of 10.15 and the one of 11.2 say
the same of all operators here, 10.x takes what an earlier 10.x took, and what 10.16.0.72 says of
an Attention node that it refuses (NVIDIA/TensorRT, issue 4738) is what the importer above says.

Some attributes are not the builder's: ONNX Runtime hands a graph on with the standard's defaults
spelled out (tests/compiler/test_tensorrt_runtime.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from onnx import AttributeProto, TensorProto

IMPORTERS = "onnxOpImporters.cpp"
CHECKERS = "onnxOpCheckers.cpp"
HELPERS = "AttentionHelpers.cpp"
TABLE = "docs/operators.md"
LAYERS = "_static/operators"

Types = frozenset[int]
FLOATS: Types = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16})
WHOLE: Types = frozenset({TensorProto.INT32, TensorProto.INT64})
INT64: Types = frozenset({TensorProto.INT64})
BOOL: Types = frozenset({TensorProto.BOOL})
NUMBERS = FLOATS | WHOLE
ANY = NUMBERS | BOOL
"""What the table gives for operators that only move elements: no 8-bit integers."""


@dataclass(frozen=True, slots=True)
class Input:
    """One input of an operator.

    Attributes:
        types: ONNX element types.
        rank: how many dimensions, where that is said.
        constant: it must be known when the engine is built.
        outside: it must be an input of the whole graph.
    """

    types: Types
    rank: int | None = None
    constant: bool = False
    outside: bool = False


@dataclass(frozen=True, slots=True)
class Accepted:
    """What is taken of one operator.

    Attributes:
        inputs: the first so many; `least` of them must be there.
        same: inputs whose types must be equal.
        attributes: name -> whether its value is taken.
        outputs: how many, or None for any number.
        outside: its output must be an output of the whole graph.
        sources: where that stands.
    """

    inputs: tuple[Input, ...]
    sources: tuple[str, ...]
    least: int | None = None
    same: tuple[int, ...] = ()
    attributes: Mapping[str, Callable[[AttributeProto], bool]] = field(default_factory=dict)
    outputs: int | None = 1
    outside: bool = False


def whole(*values: int) -> Callable[[AttributeProto], bool]:
    """An integer; one of `values`, if there are any."""
    return lambda a: a.type == AttributeProto.INT and (not values or a.i in values)


def real(a: AttributeProto) -> bool:
    return a.type == AttributeProto.FLOAT


def zero(a: AttributeProto) -> bool:
    return real(a) and a.f == 0


def _element_wise(types: Types) -> Accepted:
    return Accepted((Input(types), Input(types)), (TABLE, IMPORTERS), same=(0, 1))


ACCEPTED: Mapping[str, Accepted] = {
    "Add": _element_wise(NUMBERS),
    "And": _element_wise(BOOL),
    "ArgMax": Accepted(
        # Becomes TopK with k = 1.
        (Input(NUMBERS),),
        (TABLE, IMPORTERS, CHECKERS),
        attributes={"axis": whole(), "keepdims": whole(0, 1), "select_last_index": whole(0)},
    ),
    "Attention": Accepted(
        # No past, no present, no softcap, no softmax_precision; heads are the second dimension.
        (Input(FLOATS, 4), Input(FLOATS, 4), Input(FLOATS, 4), Input(BOOL | FLOATS, 4)),
        (TABLE, IMPORTERS, CHECKERS, HELPERS, f"{LAYERS}/Attention.html"),
        least=3,
        same=(0, 1, 2),
        attributes={
            "scale": real,
            "is_causal": whole(0, 1),
            "softcap": zero,
            # Of an output that there is not.
            "qk_matmul_output_mode": whole(),
        },
    ),
    "Cast": Accepted(
        (Input(ANY | {TensorProto.UINT8}),),
        (TABLE, CHECKERS),
        attributes={
            "to": whole(*sorted(ANY | {TensorProto.UINT8})),
            # Of 8-bit floats alone, and not looked at.
            "saturate": whole(),
            "round_mode": lambda a: a.type == AttributeProto.STRING,
        },
    ),
    "Concat": Accepted((Input(ANY), Input(ANY)), (TABLE,), attributes={"axis": whole()}),
    "DequantizeLinear": Accepted(
        # No zero point but zeros; a vector of scales, all of them greater than zero.
        (
            Input(frozenset({TensorProto.INT8, TensorProto.INT4, TensorProto.FLOAT8E4M3FN})),
            Input(FLOATS, 1, constant=True),
        ),
        (TABLE, IMPORTERS),
        attributes={"axis": whole()},
    ),
    "Elu": Accepted((Input(FLOATS),), (TABLE,), attributes={"alpha": real}),
    "Gather": Accepted(
        (Input(ANY), Input(WHOLE)), (TABLE, IMPORTERS), attributes={"axis": whole()}
    ),
    "Gelu": Accepted(
        (Input(FLOATS),),
        (TABLE, IMPORTERS),
        attributes={"approximate": lambda a: a.s in {b"none", b"tanh"}},
    ),
    "Gemm": Accepted(
        # A third input may be left out, but not named by an empty string.
        (Input(FLOATS, 2), Input(FLOATS, 2), Input(FLOATS)),
        (TABLE, IMPORTERS),
        least=2,
        same=(0, 1, 2),
        attributes={"transA": whole(0, 1), "transB": whole(0, 1), "alpha": real, "beta": real},
    ),
    "LayerNormalization": Accepted(
        # Only the first output; what is added behind it may be left out.
        (Input(FLOATS), Input(FLOATS), Input(FLOATS)),
        (TABLE, IMPORTERS),
        least=2,
        same=(0, 1),
        attributes={"axis": whole(), "epsilon": real, "stash_type": whole(TensorProto.FLOAT)},
    ),
    "LessOrEqual": _element_wise(NUMBERS),
    "MatMul": _element_wise(FLOATS),
    "Mul": _element_wise(NUMBERS),
    "RMSNormalization": Accepted(
        (Input(FLOATS), Input(FLOATS)),
        (TABLE, IMPORTERS),
        same=(0, 1),
        attributes={
            "axis": whole(),
            "epsilon": real,
            "stash_type": whole(TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16),
        },
    ),
    "Range": Accepted(
        (Input(WHOLE, 0), Input(WHOLE, 0), Input(WHOLE, 0)), (TABLE, IMPORTERS), same=(0, 1, 2)
    ),
    "Relu": Accepted((Input(FLOATS),), (TABLE,)),
    "Reshape": Accepted(
        (Input(ANY), Input(INT64, 1)), (TABLE, IMPORTERS), attributes={"allowzero": whole(0, 1)}
    ),
    "RotaryEmbedding": Accepted(
        # Tables [positions, head_dim / 2], positions [batch, tokens].
        (Input(FLOATS, 4), Input(FLOATS, 2), Input(FLOATS, 2), Input(INT64, 2)),
        (TABLE, IMPORTERS, f"{LAYERS}/RotaryEmbedding.html"),
        least=3,
        same=(0, 1, 2),
        attributes={"interleaved": whole(0, 1), "rotary_embedding_dim": whole()},
    ),
    "Shape": Accepted(
        (Input(ANY),), (TABLE, IMPORTERS), attributes={"start": whole(), "end": whole()}
    ),
    "Sigmoid": Accepted((Input(FLOATS),), (TABLE, IMPORTERS)),
    "Split": Accepted(
        (Input(ANY), Input(INT64, 1)),
        (TABLE, IMPORTERS),
        attributes={"axis": whole()},
        outputs=None,
    ),
    "Squeeze": Accepted((Input(ANY), Input(INT64, constant=True)), (TABLE, IMPORTERS)),
    "Tanh": Accepted((Input(FLOATS),), (TABLE, IMPORTERS)),
    "TensorScatter": Accepted(
        # Becomes KVCacheUpdate, in place: past and present are the engine's own input and output
        # at one address, and the third dimension must be known when the engine is built.
        (Input(FLOATS, 4, outside=True), Input(FLOATS, 4), Input(WHOLE, 1)),
        (TABLE, IMPORTERS, f"{LAYERS}/KVCacheUpdate.html"),
        least=2,
        same=(0, 1),
        attributes={"axis": whole(-2), "mode": lambda a: a.s == b"linear"},
        outside=True,
    ),
    "Transpose": Accepted(
        (Input(ANY),),
        (TABLE, IMPORTERS),
        attributes={"perm": lambda a: a.type == AttributeProto.INTS},
    ),
    "Unsqueeze": Accepted((Input(ANY), Input(INT64, constant=True)), (TABLE, IMPORTERS)),
}

"""Graphs of the appliance's own operators, over the integers that the other graphs of `w8a8` and
`w4a8` store.

Owns how a decoder is said in them: linear layers that round their rows themselves, several of the
same rows in one operator, both halves of a gated layer in one, and attention that norms, turns and
stores what is new and takes any number of sequences with any number of tokens each. Why there are
such operators: docs/decisions/0230-native-operators.md, and for blocks of 4 bits
0256-four-bits-by-native-operators.md; what they compute: appliance/native.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from appliance.native import contract
from installer.checkpoint.graph.activations import ACTIVATIONS, Activation
from installer.checkpoint.graph.adapted import AdapterInputs
from installer.checkpoint.graph.angles import Tables, angles
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.byte_slots import CacheScales
from installer.checkpoint.graph.cached import PAIR, choose_rows
from installer.checkpoint.graph.decoder import Heads
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.operators import OPSETS, Attribute, Dim
from installer.checkpoint.graph.sharpening import Sharpener, positions_of_spans
from installer.checkpoint.graph.storage import IntegerMatrix, Matrix, QuantizedMatrix
from installer.checkpoint.quantize import Scheme, block_size
from installer.checkpoint.tensors import Tensors
from installer.checkpoint.weights import WeightFiles, alias


@dataclass(frozen=True, slots=True)
class _Gain:
    """A norm of heads that the attention operator is still to compute."""

    vector: ir.Value
    epsilon: float


def has_native_graph(scheme: Scheme, shape: DecoderShape) -> bool:
    """Whether the operators can express such a decoder in this grade."""
    sizes = (shape.hidden, shape.inner, shape.heads * shape.head_dim)
    return (
        scheme.byte_cache
        and shape.mixture is None
        and shape.head_dim <= contract.LARGEST_HEAD
        and (scheme.integer_products or shape.vocab % contract.LANES == 0)
        and all(_fits(scheme, size) for size in sizes)
    )


def _fits(scheme: Scheme, inner: int) -> bool:
    """Whether they can multiply with rows of such a width."""
    unit = contract.DEPTH if scheme.integer_products else block_size(inner)
    return inner <= contract.LARGEST_INNER and inner % unit == 0


class NativeBuilder(GraphBuilder):
    """A graph for processors that the native operators run on (AVX-512 VNNI, AVX2)."""

    opsets: Mapping[str, int] = {**OPSETS, contract.DOMAIN: contract.VERSION}

    def __init__(self, tensors: Tensors, files: WeightFiles, scheme: Scheme) -> None:
        super().__init__(tensors, files, scheme)
        self._gains: dict[ir.Value, _Gain] = {}

    def gain_of(self, heads: ir.Value) -> _Gain | None:
        """The norm that `heads` still lack."""
        return self._gains.get(heads)

    def gather(self, matrix: IntegerMatrix, ids: ir.Value) -> ir.Value:
        """ids [...] -> rows of the matrix [..., inner]."""
        return self._native("Lookup", matrix.integers, _flat(matrix), ids)

    def gather_blocks(self, matrix: QuantizedMatrix, ids: ir.Value) -> ir.Value:
        """ids [...] -> rows of the matrix [..., inner]."""
        return self._native("BlockLookup", ids, *_inputs(matrix), bits=matrix.bits)

    def linear(
        self,
        x: ir.Value,
        name: str,
        inner: int,
        outer: int,
        *,
        bias: bool = False,
        scale: ir.Value | None = None,
        divided: float = 1.0,
    ) -> ir.Value:
        """x [..., inner] -> [..., outer] by the checkpoint's `name`.weight [outer, inner]."""
        assert scale is None, "nothing is left to be multiplied with"
        assert divided == self.shrink, "it computes in 32 bits"
        return self.linears(x, {name: outer}, inner, bias=bias)[0]

    def linears(
        self, x: ir.Value, outer: Mapping[str, int], inner: int, *, bias: bool = False
    ) -> Sequence[ir.Value]:
        """`linear` of the same x by several, whose rows are rounded once."""
        if not self.scheme.integer_products:
            return self._linears_in_blocks(x, outer, inner, bias=bias)
        inputs: list[ir.Value | None] = []
        for name, width in outer.items():
            inputs += self._matrix(name, width, inner)
            inputs.append(self.vector(f"{name}.bias", width) if bias else None)
        return self.ops("Linear", x, *inputs, outputs=len(outer), domain=contract.DOMAIN)

    def unscaled(
        self, x: ir.Value, name: str, inner: int, outer: int
    ) -> tuple[ir.Value, ir.Value | None]:
        """As `linear`; nothing is left to be multiplied with."""
        return self.linear(x, name, inner, outer), None

    def gated(
        self,
        x: ir.Value,
        gate: str,
        up: str,
        inner: int,
        outer: int,
        activation: Activation,
        *,
        divided: float = 1.0,
    ) -> tuple[ir.Value, ir.Value | None]:
        """activation(x by `gate`) * (x by `up`); nothing is left to be multiplied with."""
        assert divided == self.shrink, "it computes in 32 bits"
        if not self.scheme.integer_products:
            return self._gated_in_blocks(x, (gate, up), inner, outer, activation), None
        matrices = (*self._matrix(gate, outer, inner), *self._matrix(up, outer, inner))
        return self._native("GatedLinear", x, *matrices, activation=activation), None

    def multiply(self, x: ir.Value, matrix: Matrix, bias: ir.Value | None = None) -> ir.Value:
        """x [..., inner] -> [..., outer]."""
        if isinstance(matrix, IntegerMatrix):
            return self._native("Linear", x, matrix.integers, _flat(matrix), bias)
        return self._native("BlockLinear", x, *_inputs(matrix), bias, bits=matrix.bits)

    def norm_heads(
        self,
        x: ir.Value,
        heads: int,
        name: str,
        width: int,
        epsilon: float,
        offset: float = 0.0,
        *,
        divided: float = 1.0,
    ) -> ir.Value:
        """x as it is: the attention operator norms its heads."""
        self._gains[x] = _Gain(self.vector(name, width, offset, divided=divided), epsilon)
        return x

    def _linears_in_blocks(
        self, x: ir.Value, outer: Mapping[str, int], inner: int, *, bias: bool
    ) -> Sequence[ir.Value]:
        """One operator if the matrices want the same of x, else one for each."""
        found = [self.matrix_in_blocks(name, inner, width) for name, width in outer.items()]
        biases = [self.vector(f"{n}.bias", width) if bias else None for n, width in outer.items()]
        if not _alike(found):
            return [
                self.multiply(self.ordered(x, order), matrix, addend)
                for (matrix, order), addend in zip(found, biases, strict=True)
            ]
        inputs: list[ir.Value | None] = []
        for (matrix, _), addend in zip(found, biases, strict=True):
            inputs += [*_inputs(matrix), addend]
        bits = self.scheme.layer_bits
        return self.ops(
            "BlockLinear", x, *inputs, outputs=len(found), domain=contract.DOMAIN, bits=bits
        )

    def _gated_in_blocks(
        self, x: ir.Value, names: Sequence[str], inner: int, outer: int, activation: Activation
    ) -> ir.Value:
        found = [self.matrix_in_blocks(name, inner, outer) for name in names]
        if not _alike(found):
            opened, raised = (self.multiply(self.ordered(x, order), m) for m, order in found)
            return self.op("Mul", ACTIVATIONS[activation](self, opened, 1.0), raised)
        matrices = (value for matrix, _ in found for value in _inputs(matrix))
        bits = self.scheme.layer_bits
        return self._native("BlockGatedLinear", x, *matrices, activation=activation, bits=bits)

    def _native(self, kind: str, *inputs: ir.Value | None, **attributes: Attribute) -> ir.Value:
        return self.op(kind, *inputs, domain=contract.DOMAIN, **attributes)

    def _matrix(self, name: str, outer: int, inner: int) -> tuple[ir.Value, ir.Value]:
        rows = self.tensors.rows(self._weight(name, inner, outer))
        matrix = self.integers(name, (outer, inner), rows)
        return matrix.integers, _flat(matrix)


def has_native_head(scheme: Scheme, shape: DecoderShape) -> bool:
    """Whether they can express a layer beyond such a decoder, of a state and a token's vector."""
    return shape.predicts and _fits(scheme, 2 * shape.hidden)


class AdaptedNativeBuilder(NativeBuilder):
    """The same with room for adapters beside the linear layers (adapted.py): halves of gated
    layers stay apart. Each row of the masks is a token's."""

    def __init__(self, tensors: Tensors, files: WeightFiles, scheme: Scheme) -> None:
        super().__init__(tensors, files, scheme)
        self._adapters = AdapterInputs(self, ("tokens",))

    def linears(
        self, x: ir.Value, outer: Mapping[str, int], inner: int, *, bias: bool = False
    ) -> Sequence[ir.Value]:
        """As the plain graph's, with what adapters add."""
        plain = super().linears(x, outer, inner, bias=bias)
        return [
            self._adapters.added(y, x, name, inner, width)
            for y, (name, width) in zip(plain, outer.items(), strict=True)
        ]

    def gated(
        self,
        x: ir.Value,
        gate: str,
        up: str,
        inner: int,
        outer: int,
        activation: Activation,
        *,
        divided: float = 1.0,
    ) -> tuple[ir.Value, ir.Value | None]:
        """Both halves by `linears`, so that adapters add to each."""
        assert divided == self.shrink, "it computes in 32 bits"
        opened, raised = self.linears(x, {gate: outer, up: outer}, inner)
        return self.op("Mul", ACTIVATIONS[activation](self, opened, divided), raised), None


def _alike(found: Sequence[tuple[QuantizedMatrix, ir.Value | None]]) -> bool:
    """Whether the matrices take x in its own order and in the same blocks."""
    return all(order is None and matrix.block == found[0][0].block for matrix, order in found)


def _inputs(matrix: QuantizedMatrix) -> tuple[ir.Value | None, ...]:
    """What operators read of it."""
    return matrix.packed, matrix.scales, matrix.zeros


def _flat(matrix: IntegerMatrix) -> ir.Value:
    """The scales, [outer]."""
    return alias(matrix.scales, f"{matrix.scales.name}.flat", (matrix.outer,))


class NativeSlots:
    """8-bit slots, extended in place; tokens of all sequences one behind the other.

    Inputs and outputs: docs/bundle-format.md.
    """

    def __init__(self, graph: GraphBuilder, shape: DecoderShape, scales: CacheScales) -> None:
        assert isinstance(graph, NativeBuilder)
        self._graph = graph
        self._shape = shape
        self._scales = scales
        self.ids = graph.input("input_ids", ir.DataType.INT64, ("tokens",))
        self._spans = graph.input("spans", ir.DataType.INT32, ("sequences", 3))
        self._rows = graph.input("rows", ir.DataType.INT64, ("rows",))
        self._tables: Sequence[Tables] = angles(graph, shape)
        self._sharpener = Sharpener(
            graph, shape.context, lambda: positions_of_spans(graph, self.ids, self._spans)
        )

    def attend(self, layer: int, heads: Heads) -> ir.Value:
        """[tokens, heads * head_dim] each -> what the queries read, the same shape."""
        graph, shape, kind = self._graph, self._shape, self._shape.kinds[layer]
        past = [self._past(name, layer) for name in PAIR]
        scales = (
            graph.array(f"cache.{name}_{layer}", scale)
            for name, scale in zip(PAIR, self._scales.layers[layer], strict=True)
        )
        queries, keys, values = heads
        if kind.sharpening is not None:
            assert graph.gain_of(queries) is None, "the norm comes behind what is multiplied here"
            queries = self._sharpener.sharpen(queries, kind.sharpening)
        gains = [graph.gain_of(queries), graph.gain_of(keys)]
        epsilons = {gain.epsilon for gain in gains if gain is not None}
        assert len(epsilons) <= 1, "both norms have the model's epsilon"
        sinks = None
        if shape.sinks:
            sinks = graph.vector(f"{shape.root}.layers.{layer}.self_attn.sinks", shape.heads)
        attended, *present = graph.ops(
            "Attention",
            *(queries, keys, values, self._spans, *past, *scales, *self._tables[layer]),
            *(None if gain is None else gain.vector for gain in gains),
            sinks,
            outputs=3,
            domain=contract.DOMAIN,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            scale=shape.scale,
            epsilon=next(iter(epsilons), 0.0),
            window=kind.window or 0,
            interleaved=int(kind.rope.interleaved),
        )
        for name, value in zip(PAIR, present, strict=True):
            graph.output(value, f"present_{name}_{layer}", *self._slots(name))
        return attended

    def choose(self, x: ir.Value) -> ir.Value:
        """The rows whose logits are wanted. All states are an output where a head reads them."""
        if self._shape.predicts:
            self._graph.output(x, "states", ("tokens", self._shape.hidden))
        return choose_rows(self._graph, self._shape, x, self._rows)

    def conclude(self, scores: ir.Value) -> None:
        """Make an output of them."""
        self._graph.output(scores, "logits", ("rows", self._shape.vocab))

    def _past(self, name: str, layer: int) -> ir.Value:
        sizes, dtype = self._slots(name)
        return self._graph.input(f"past_{name}_{layer}", dtype, sizes)

    def _slots(self, name: str) -> tuple[tuple[Dim, ...], ir.DataType]:
        head_dim, heads = self._shape.head_dim, ("slots", self._shape.kv_heads)
        if name == "key":
            blocks = ("blocks", head_dim // contract.DEPTH, contract.LANES * contract.DEPTH)
            return (*heads, *blocks), ir.DataType.UINT8
        return (*heads, "capacity", head_dim), ir.DataType.INT8


class NativeHead(NativeSlots):
    """The same for a head that predicts further tokens: a state comes with each token.

    `shape` and `scales` are those of the head's one layer.
    """

    def __init__(self, graph: GraphBuilder, shape: DecoderShape, scales: CacheScales) -> None:
        super().__init__(graph, shape, scales)
        self.states = graph.input("states", ir.DataType.FLOAT, ("tokens", shape.hidden))

    def choose(self, x: ir.Value) -> ir.Value:
        """The rows from which something is wanted, of x [tokens, any]."""
        return self._graph.op("Gather", x, self._rows, axis=0)

    def hand_on(self, states: ir.Value) -> None:
        """Make an output of the chosen rows' states, from which it predicts on."""
        self._graph.output(states, "next_states", ("rows", self._shape.hidden))

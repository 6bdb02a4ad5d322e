"""A mixture of experts: a router chooses a few of many feed-forwards for each token.

Owns how the choice is handed to the runtime's kernels and how the experts of a layer are stored:
stacked in one tensor, expert after expert, since `MoE` and `QMoE` find the chosen ones by offset and
touch no other (docs/decisions/0175-chosen-experts.md). What a router's scores mean is the family's
business. Routers are computed in 32 bits in every grade: rounding changes which experts are chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from appliance.errors import CheckpointError
from installer.checkpoint.expert_weights import ExpertWeights
from installer.checkpoint.graph import builder
from installer.checkpoint.graph.builder import MICROSOFT, Attribute, GraphBuilder
from installer.checkpoint.quantize import FLOAT_BITS, Float32, block_size
from installer.checkpoint.weights import alias

HARMLESS_KEYS = frozenset({"output_router_logits", "router_aux_loss_coef"})
"""They steer training."""
_REJECTED = -60_000.0
"""The logarithm of a weight that is no weight; 16-bit floats hold it."""
_SMALLEST_BLOCK = 16


@dataclass(frozen=True, slots=True)
class Mixture:
    """The numbers of a mixture: down((up + beta) * gate * sigmoid(alpha * gate)).

    Attributes:
        experts: how many there are.
        chosen: how many each token goes through.
        inner: width of one expert.
        limit: gates are clamped from above, ups on both sides; None for no clamp.
        bias: whether every expert's layers have biases.
        dense: the layers that have one plain feed-forward instead.
        adds_up: whether the weights of a token's experts are made to add up to one.
    """

    experts: int
    chosen: int
    inner: int
    alpha: float = 1.0
    beta: float = 0.0
    limit: float | None = None
    bias: bool = False
    dense: frozenset[int] = frozenset()
    adds_up: bool = True

    def is_dense(self, at: str) -> bool:
        """Whether the layer called `at`, as in model.layers.7, is one of `dense`."""
        return int(at.rpartition(".")[2]) in self.dense


@dataclass(frozen=True, slots=True)
class Choice:
    """Which experts each token goes through.

    Attributes:
        indices: of the experts, [tokens, chosen].
        logarithms: of their weights, [tokens, chosen], up to an addend for each token.
        total: what the weights add up to, [tokens, 1]; None for one.
    """

    indices: ir.Value
    logarithms: ir.Value
    total: ir.Value | None = None


def router(
    graph: GraphBuilder, x: ir.Value, name: str, hidden: int, experts: int, *, bias: bool = False
) -> ir.Value:
    """x [B, S, hidden] -> scores [B * S, experts] by `name`.weight [experts, hidden], in 32 bits."""
    graph.tensors.expect(f"{name}.weight", (experts, hidden))
    tokens = graph.op("Reshape", x, graph.constant([-1, hidden]))
    if graph.dtype != ir.DataType.FLOAT:
        tokens = graph.op("Cast", tokens, to=ir.DataType.FLOAT)
    pieces = graph.tensors.transposed(f"{name}.weight")
    columns = graph.floats(f"{name}.transposed", (hidden, experts), pieces)
    scores = graph.op("MatMul", tokens, columns)
    return graph.op("Add", scores, vector(graph, f"{name}.bias", experts)) if bias else scores


def vector(graph: GraphBuilder, name: str, width: int) -> ir.Value:
    """The checkpoint's vector `name` in 32 bits, whatever the graph computes in."""
    return graph.floats(name, (width,), [graph.tensors.vector(name, width)])


def choose_by_softmax(graph: GraphBuilder, scores: ir.Value, mixture: Mixture) -> Choice:
    """The highest scores; weights are their softmax, among themselves or among all."""
    logarithms, indices = highest(graph, scores, mixture.chosen)
    if mixture.adds_up:
        return Choice(indices, logarithms)
    weights = graph.op("GatherElements", graph.op("Softmax", scores, axis=-1), indices, axis=1)
    return Choice(indices, logarithms, _sum(graph, weights))


def _sum(graph: GraphBuilder, weights: ir.Value) -> ir.Value:
    return graph.op("ReduceSum", weights, graph.constant([-1]), keepdims=1)


def highest(graph: GraphBuilder, scores: ir.Value, count: int) -> Sequence[ir.Value]:
    """scores [tokens, n] -> the `count` highest and their indices, [tokens, count] each."""
    return graph.ops("TopK", scores, graph.constant([count]), outputs=2, axis=-1)


def mix(
    graph: GraphBuilder,
    x: ir.Value,
    choice: Choice,
    mixture: Mixture,
    weights: ExpertWeights,
    hidden: int,
    name: str,
) -> ir.Value:
    """x [B, S, hidden] -> the sum of the chosen experts' results, each times its weight.

    `name` is what the stored tensors are called by. A stack too large for one file is split by inner
    positions: each part has a piece of every expert, and results are added.
    """
    layer = _Layer(graph, mixture, weights, hidden, name)
    spread = _spread(graph, choice, mixture)
    total: ir.Value | None = None
    for first, last in layer.parts():
        part = layer.part(x, spread, first, last)
        total = part if total is None else graph.op("Add", total, part)
    assert total is not None
    return total if choice.total is None else _times(graph, total, choice.total, hidden)


def _times(graph: GraphBuilder, y: ir.Value, factors: ir.Value, hidden: int) -> ir.Value:
    """y [B, S, hidden] times a factor for each token, [tokens, 1]."""
    if graph.dtype != ir.DataType.FLOAT:
        factors = graph.op("Cast", factors, to=graph.dtype)
    tokens = graph.op("Reshape", y, graph.constant([-1, hidden]))
    return graph.op("Reshape", graph.op("Mul", tokens, factors), graph.op("Shape", y))


def _spread(graph: GraphBuilder, choice: Choice, mixture: Mixture) -> ir.Value:
    """Logarithms of weights for all experts [tokens, experts], as the kernels want them.

    The kernels choose again, among these. Since the others are far below, they choose the same,
    also where 16 bits could not tell the router's own scores apart.
    """
    top = graph.op("ReduceMax", choice.logarithms, graph.constant([-1]), keepdims=1)
    centred = graph.op("Sub", choice.logarithms, top)
    rows = graph.op("Shape", choice.indices, start=0, end=1)
    shape = graph.op("Concat", rows, graph.constant([mixture.experts]), axis=0)
    none = graph.op("Expand", graph.constant([_REJECTED]), shape)
    spread = graph.op("ScatterElements", none, choice.indices, centred, axis=1)
    if graph.dtype == ir.DataType.FLOAT:
        return spread
    return graph.op("Cast", spread, to=graph.dtype)


class _Layer:
    """The experts of one layer, stored as the grade says."""

    def __init__(
        self,
        graph: GraphBuilder,
        mixture: Mixture,
        weights: ExpertWeights,
        hidden: int,
        name: str,
    ) -> None:
        self._graph = graph
        self._mixture = mixture
        self._weights = weights
        self._hidden = hidden
        self._name = name
        self._bits = graph.scheme.layer_bits
        self._block = 1 if self._bits in FLOAT_BITS else self._choose_block()

    def parts(self) -> Iterator[tuple[int, int]]:
        """Ranges of inner positions whose stacks fit into a file, equal and in whole blocks."""
        mixture = self._mixture
        position = 2 * mixture.experts * self._hidden * self._bits // 8
        count, units = 1, mixture.inner // self._block
        while count < units and (
            units % count or mixture.inner // count * position > self._graph.files.limit
        ):
            count += 1
        width = mixture.inner // count
        return ((first, first + width) for first in range(0, mixture.inner, width))

    def part(self, x: ir.Value, spread: ir.Value, first: int, last: int) -> ir.Value:
        """What the inner positions from `first` to `last` give."""
        biases = self._biases(first, last) if self._mixture.bias else (None, None)
        if self._bits in FLOAT_BITS:
            ends = (self._floats("gate_up", first, last), self._floats("down", first, last))
            inputs = (ends[0], biases[0], ends[1], biases[1])
            return self._op("MoE", x, spread, *inputs)
        gate_up, down = (self._integers(end, first, last) for end in ("gate_up", "down"))
        return self._op(
            "QMoE",
            *(x, spread, *gate_up[:2], biases[0], *down[:2], biases[1]),
            *(None, None, None),
            *((gate_up[2], down[2]) if gate_up[2] is not None else ()),
            expert_weight_bits=self._bits,
            block_size=self._block,
            accuracy_level=builder.INT8_ACTIVATIONS,
            weights_prepacked=0,
        )

    def _op(self, kind: str, *inputs: ir.Value | None, **attributes: Attribute) -> ir.Value:
        mixture = self._mixture
        if mixture.limit is not None:
            attributes["swiglu_limit"] = mixture.limit
        return self._graph.op(
            kind,
            *inputs,
            domain=MICROSOFT,
            k=mixture.chosen,
            activation_type="swiglu",
            activation_alpha=mixture.alpha,
            activation_beta=mixture.beta,
            swiglu_fusion=1,  # gate and up interleaved: the one order that the CPU's kernel has
            normalize_routing_weights=1,
            **attributes,
        )

    def _choose_block(self) -> int:
        """Block size that divides the rows of both stacks, as the kernel wants it."""
        if self._weights.block is not None:
            return self._weights.block
        block = block_size(self._hidden)
        while self._hidden % block or self._mixture.inner % block:
            block //= 2
        if block < _SMALLEST_BLOCK:
            raise CheckpointError(
                f"experts of {self._mixture.inner} by {self._hidden} do not divide into blocks of "
                f"{_SMALLEST_BLOCK} weights",
                hint="choose --precision fp16 or fp32",
            )
        return block

    def _shape(self, end: str, first: int, last: int) -> tuple[int, int]:
        """Rows and columns of one expert's `end`."""
        return (
            (2 * (last - first), self._hidden) if end == "gate_up" else (self._hidden, last - first)
        )

    def _stack(self, end: str, first: int, last: int) -> Iterator[Float32]:
        """The rows of all experts, one after another."""
        for expert in range(self._mixture.experts):
            yield from getattr(self._weights, end)(expert, first, last)

    def _called(self, end: str, first: int, last: int) -> str:
        whole = last - first == self._mixture.inner
        return f"{self._name}.{end}" if whole else f"{self._name}.{end}.{first}"

    def _floats(self, end: str, first: int, last: int) -> ir.Value:
        shape = (self._mixture.experts, *self._shape(end, first, last))
        pieces = self._stack(end, first, last)
        return self._graph.parameter(
            self._graph.stored(self._called(end, first, last), shape, pieces)
        )

    def _integers(
        self, end: str, first: int, last: int
    ) -> tuple[ir.Value, ir.Value, ir.Value | None]:
        """Integers, scales and zero points, [experts, rows, ...] each."""
        graph, experts = self._graph, self._mixture.experts
        rows, columns = self._shape(end, first, last)
        name, runs = self._called(end, first, last), columns // self._block
        stack = self._stack(end, first, last)
        matrix = graph.quantized(
            name,
            (experts * rows, columns),
            stack,
            self._bits,
            self._block,
            exactly=self._weights.block is not None and self._bits == 8,
        )
        packed = alias(matrix.packed, f"{name}.stacked", (experts, rows, columns * self._bits // 8))
        scales = alias(matrix.scales, f"{name}.scales.stacked", (experts, rows, runs))
        if matrix.zeros is None:
            return packed, graph.parameter(scales), None
        zeros = alias(
            matrix.zeros, f"{name}.zeros.stacked", (experts, rows, -(-runs * self._bits // 8))
        )
        return packed, graph.parameter(scales), zeros

    def _biases(self, first: int, last: int) -> tuple[ir.Value, ir.Value | None]:
        """Of gates and ups in this part; of the results, which are added once, in the first."""
        graph, experts = self._graph, self._mixture.experts
        name = self._called("gate_up", first, last)
        pieces = self._weights.gate_up_bias(first, last)
        own = graph.floats(f"{name}.bias", (experts, 2 * (last - first)), pieces)
        if first > 0:
            return graph.parameter(own), None
        pieces = self._weights.down_bias()
        common = graph.floats(f"{self._name}.down.bias", (experts, self._hidden), pieces)
        return graph.parameter(own), graph.parameter(common)

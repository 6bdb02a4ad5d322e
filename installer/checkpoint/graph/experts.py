"""A mixture of experts: a router chooses a few of many feed-forwards for each token.

Owns how the choice is handed to the runtime's kernels, `MoE` and `QMoE`, which find the chosen
experts' weights by offset and touch no other (docs/decisions/0175-chosen-experts.md). What a
router's scores mean is the family's business. Routers are computed in 32 bits in every grade, for
rounding changes which experts are chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from installer.checkpoint.expert_weights import ExpertWeights
from installer.checkpoint.graph import builder
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.operators import MICROSOFT, Attribute
from installer.checkpoint.graph.stacks import Span, Stacks

HARMLESS_KEYS = frozenset({"output_router_logits", "router_aux_loss_coef"})
"""They steer training."""
_REJECTED = -60_000.0
"""The logarithm of a weight that is no weight; 16-bit floats hold it."""


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
        shared: width of what every token goes through beside them; 0 if there is no such.
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
    shared: int = 0

    def divided(self, by: float) -> Mixture:
        """The same for gates and ups that are divided by a number; results are by its square."""
        limit = None if self.limit is None else self.limit / by
        return replace(self, alpha=self.alpha * by, beta=self.beta / by, limit=limit)

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
    graph: GraphBuilder,
    x: ir.Value,
    name: str,
    hidden: int,
    experts: int,
    *,
    bias: bool = False,
    divided: float = 1.0,
) -> ir.Value:
    """x [B, S, hidden] -> scores [B * S, experts] by `name`.weight [experts, hidden].

    x is `divided` by a number, scores are not.
    """
    tokens = graph.op("Reshape", x, graph.constant([-1, hidden]))
    scores = graph.linear_in_full(tokens, name, hidden, experts)
    if divided != 1:
        scores = graph.op("Mul", scores, graph.constant([divided]))
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


def choose_by_sigmoid(
    graph: GraphBuilder, scores: ir.Value, correction: ir.Value, mixture: Mixture
) -> Choice:
    """The highest sigmoids plus `correction` [experts]; weights are the sigmoids alone."""
    assert mixture.adds_up
    sigmoids = graph.op("Sigmoid", scores)
    _, indices = highest(graph, graph.op("Add", sigmoids, correction), mixture.chosen)
    weights = graph.op("GatherElements", sigmoids, indices, axis=1)
    return Choice(indices, graph.op("Log", weights))


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
    *,
    divided: float = 1.0,
) -> ir.Value:
    """x [B, S, hidden] -> the sum of the chosen experts' results, each times its weight.

    `name` is what the stored tensors are called by. Where experts are stored in parts, the parts'
    results are added. Of an x that is `divided` by a number, the result is so by its square.
    """
    stacks = Stacks(graph, weights, mixture.experts, hidden, mixture.inner, name)
    spread = _spread(graph, choice, mixture)
    total: ir.Value | None = None
    for span in stacks.parts():
        part = _run(graph, mixture, stacks, span, x, spread, divided)
        total = part if total is None else graph.op("Add", total, part)
    assert total is not None
    return total if choice.total is None else times(graph, total, choice.total, hidden)


def clamped(
    graph: GraphBuilder,
    x: ir.Value,
    mixture: Mixture,
    names: Sequence[str],
    hidden: int,
    inner: int,
    *,
    divided: float = 1.0,
) -> ir.Value:
    """What one expert of the mixture's kind computes, of linear layers called by `names`: gate, up
    and down, whose width is `inner`. x [B, S, hidden] is `divided` by a number, and the result is
    so by its square."""
    own = mixture.divided(divided)
    assert own.limit is not None

    def number(value: float) -> ir.Value:
        return graph.parameter(graph.constant([value]))

    gate, up = graph.linears(x, dict.fromkeys(names[:2], inner), hidden)
    gate = graph.op("Min", gate, number(own.limit))
    up = graph.op("Max", graph.op("Min", up, number(own.limit)), number(-own.limit))
    opened = graph.op("Sigmoid", graph.op("Mul", gate, number(own.alpha)))
    raised = graph.op("Add", up, number(own.beta))
    product = graph.op("Mul", graph.op("Mul", gate, opened), raised)
    return graph.linear(product, names[2], inner, hidden)


def apart(
    graph: GraphBuilder,
    x: ir.Value,
    indices: ir.Value,
    mixture: Mixture,
    weights: ExpertWeights,
    hidden: int,
    name: str,
    *,
    divided: float = 1.0,
) -> ir.Value:
    """x [B, S, hidden] -> each chosen expert's result, [1, tokens * chosen, hidden], a token's
    following each other: for experts whose results are not simply added. The rest as of `mix`.

    Each token is as many rows, and each row goes through one expert: so the kernels still take
    together what an expert reads.
    """
    rows = graph.op("Reshape", x, graph.constant([-1, 1, hidden]))
    rows = graph.op("Expand", rows, graph.constant([1, mixture.chosen, 1]))
    rows = graph.op("Reshape", rows, graph.constant([1, -1, hidden]))
    single = graph.op("Reshape", indices, graph.constant([-1, 1]))
    nothing = graph.op("Expand", graph.constant([0.0]), graph.op("Shape", single))
    one = replace(mixture, chosen=1)
    choice = Choice(single, nothing)
    return mix(graph, rows, choice, one, weights, hidden, name, divided=divided)


def weighed(
    graph: GraphBuilder, each: ir.Value, weights: ir.Value, like: ir.Value, hidden: int
) -> ir.Value:
    """What `apart` gave, times the weights [tokens, chosen], added up, in the shape of `like`."""
    factors = graph.op("Reshape", weights, graph.constant([-1, 1]))
    rows = times(graph, each, factors, hidden)
    apart = graph.op("Shape", weights)
    sizes = graph.op("Concat", apart, graph.constant([hidden]), axis=0)
    total = graph.op("ReduceSum", graph.op("Reshape", rows, sizes), graph.constant([1]), keepdims=0)
    return graph.op("Reshape", total, graph.op("Shape", like))


def weigh(
    graph: GraphBuilder,
    x: ir.Value,
    y: ir.Value,
    name: str,
    hidden: int,
    *,
    divided: float = 1.0,
) -> ir.Value:
    """y [B, S, hidden] times, for each token, the sigmoid of x by `name`.weight [1, hidden].

    For an expert that all tokens go through, behind a gate of its own. x is `divided`, a sigmoid
    is not.
    """
    scores = router(graph, x, name, hidden, 1, divided=divided)
    return times(graph, y, graph.op("Sigmoid", scores), hidden)


def times(graph: GraphBuilder, y: ir.Value, factors: ir.Value, hidden: int) -> ir.Value:
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


def _run(
    graph: GraphBuilder,
    mixture: Mixture,
    stacks: Stacks,
    span: Span,
    x: ir.Value,
    spread: ir.Value,
    divided: float,
) -> ir.Value:
    """What the inner positions of `span` give.

    The kernels need not know that x is divided: of a gate that is divided by d, and an alpha that
    is d times as large, gate * sigmoid(alpha * gate) is divided by d, and the rest is linear.
    """
    mixture = mixture.divided(divided)
    biases: list[ir.Value | None] = [None, None]
    if mixture.bias:
        biases = [
            stacks.bias("gate_up", span, divided=divided),
            stacks.bias("down", span, divided=divided**2),
        ]
    if stacks.block is None:
        gate_up, down = stacks.floats("gate_up", span), stacks.floats("down", span)
        return _kernel(graph, mixture, "MoE", x, spread, gate_up, biases[0], down, biases[1])
    first, second = stacks.integers("gate_up", span), stacks.integers("down", span)
    zeros = () if first.zeros is None else (None, None, None, first.zeros, second.zeros)
    return _kernel(
        *(graph, mixture, "QMoE", x, spread),
        *(first.packed, first.scales, biases[0]),
        *(second.packed, second.scales, biases[1]),
        *zeros,
        expert_weight_bits=graph.scheme.layer_bits,
        block_size=stacks.block,
        accuracy_level=builder.INT8_ACTIVATIONS,
        weights_prepacked=0,
    )


def _kernel(
    graph: GraphBuilder,
    mixture: Mixture,
    kind: str,
    *inputs: ir.Value | None,
    **attributes: Attribute,
) -> ir.Value:
    if mixture.limit is not None:
        attributes["swiglu_limit"] = mixture.limit
    return graph.op(
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

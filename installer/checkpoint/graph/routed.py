"""Experts as DeepSeek has them: chosen among groups, beside one that every token goes through.

Owns the keys that say how, and the words of such a feed-forward; DeepSeek's own families use them,
and others that took its experts over. A choice is by sigmoids plus a correction that was learned
to even out the load, or by a softmax. Layers that predict further tokens
(`num_nextn_predict_layers`) serve training and speculation, and are left out by their names.
Reference: DeepSeek-V2 (2024), 2.2, and DeepSeek-V3 Technical Report (2024), 2.1.2.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from appliance.errors import CheckpointError
from installer.checkpoint.expert_weights import found
from installer.checkpoint.graph import decoder, experts, kinds
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.experts import Choice, Mixture
from installer.checkpoint.settings import Settings

_LEAST_WEIGHT = 1e-30
"""Below what any chosen expert weighs; its logarithm is finite."""
_OUT_OF_REACH = -60_000.0
_BEST = {"sigmoid": 2, "softmax": 1}
"""How many of a group's experts speak for it."""


@dataclass(frozen=True, slots=True)
class Names:
    """Of the tensors of such a feed-forward, behind the module's.

    Attributes:
        router: what scores experts.
        correction: what is added to scores for the choice alone; None: nothing is.
        shared: what every token goes through.
    """

    router: str = "gate"
    correction: str | None = "gate.e_score_correction_bias"
    shared: str = "shared_experts"


@dataclass(frozen=True, slots=True)
class Routed(Mixture):
    """A mixture, and how its experts are chosen.

    Attributes:
        groups: of equally many experts.
        best: the groups that are chosen among.
        factor: what the mixture's result is multiplied by.
        scores: what is made of a router's numbers.
        latent: width that tokens are narrowed to in front of their experts; 0: they are not.
        further: layers beyond the decoder's last that predict further tokens.
        names: of its tensors.
    """

    groups: int = 1
    best: int = 1
    factor: float = 1.0
    scores: Literal["sigmoid", "softmax"] = "sigmoid"
    latent: int = 0
    further: int = 0
    names: Names = Names()


def read_dense(config: Settings, first: int) -> list[int]:
    """The layers without experts: those that `mlp_layer_types` says, else so many at the bottom."""
    dense = sorted(kinds.read_dense(config, config.integer("num_hidden_layers"), range(first)))
    if dense == list(range(len(dense))):
        config.expect("first_k_dense_replace", len(dense))
    return dense


def read_routed(
    config: Settings,
    *,
    dense: Collection[int] | None = None,
    scores: Literal["sigmoid", "softmax"] = "sigmoid",
) -> Routed:
    """Read the keys of experts. Raises CheckpointError naming one that cannot be expressed.

    `dense` are the layers without experts, where `first_k_dense_replace` does not say them.
    """
    config.expect("moe_layer_freq", 1)
    config.expect("scoring_func", scores)
    if dense is None:
        dense = range(config.whole("first_k_dense_replace"))
    inner = config.integer("moe_intermediate_size")
    routed = Routed(
        experts=config.integer("n_routed_experts"),
        chosen=config.integer("num_experts_per_tok"),
        inner=inner,
        dense=frozenset(dense),
        adds_up=config.flag("norm_topk_prob", scores == "sigmoid"),
        groups=config.integer("n_group", 1),
        best=config.integer("topk_group", 1),
        factor=config.number("routed_scaling_factor", 1.0),
        shared=config.whole("n_shared_experts") * inner,
        scores=scores,
        further=config.whole("num_nextn_predict_layers", 0),
    )
    check_groups(routed)
    return routed


def leave_out_further(graph: GraphBuilder, shape: DecoderShape) -> None:
    """Say of the layers behind the last that they have no place in the graph."""
    assert isinstance(shape.mixture, Routed)
    for layer in range(shape.layers, shape.layers + shape.mixture.further):
        graph.tensors.leave_out(f"{shape.root}.layers.{layer}.")


def feed_forward(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> ir.Value:
    """The chosen experts' results and that of the shared one; or one feed-forward alone."""
    mixture, divided = shape.mixture, shape.divisors(graph).into_feed_forward
    assert isinstance(mixture, Routed)
    if mixture.is_dense(at):
        return decoder.swiglu(graph, shape, at, x)
    at, hidden = f"{at}.mlp", shape.hidden
    choice = choose(graph, shape, at, x, divided=divided)
    stored = f"{at}.experts"
    weights = found(graph.tensors, stored)
    mixed = experts.mix(graph, x, choice, mixture, weights, hidden, stored, divided=divided)
    if not mixture.shared:
        return mixed
    for_all = f"{at}.{mixture.names.shared}"
    return graph.add(mixed, decoder.gated(graph, shape, x, for_all, mixture.shared))


def choose(
    graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value, *, divided: float
) -> Choice:
    """x [B, S, hidden], `divided` by a number -> the experts of the module `at` for each token."""
    mixture = shape.mixture
    assert isinstance(mixture, Routed)
    count = mixture.experts
    router = f"{at}.{mixture.names.router}"
    logits = experts.router(graph, x, router, shape.hidden, count, divided=divided)
    return _CHOICES[mixture.scores](graph, logits, at, mixture)


def check_groups(routed: Routed) -> None:
    """Raise CheckpointError unless experts can be chosen among groups as it says."""
    size, rest = divmod(routed.experts, routed.groups)
    fits = not rest and size >= _BEST[routed.scores] and routed.best <= routed.groups
    if not fits or routed.chosen > routed.best * size:
        raise CheckpointError(
            f"config.json: n_group {routed.groups} and topk_group {routed.best} do not divide "
            f"{routed.experts} experts, of which {routed.chosen} are chosen",
            hint="the checkpoint's config.json belongs to another model",
        )


def _by_sigmoid(graph: GraphBuilder, logits: ir.Value, at: str, mixture: Routed) -> Choice:
    """The experts with the highest scores in the best groups; a correction weighs in the choice
    alone."""
    scores = graph.op("Sigmoid", logits)
    corrected, name = scores, mixture.names.correction
    if name is not None:
        correction = experts.vector(graph, f"{at}.{name}", mixture.experts)
        corrected = graph.op("Add", scores, correction)
    corrected = _within_groups(graph, corrected, mixture)
    _, indices = experts.highest(graph, corrected, mixture.chosen)
    weights = graph.op("GatherElements", scores, indices, axis=1)
    logarithms = graph.op("Log", graph.op("Max", weights, graph.constant([_LEAST_WEIGHT])))
    return Choice(indices, logarithms, _total(graph, weights, mixture))


def _by_softmax(graph: GraphBuilder, logits: ir.Value, _at: str, mixture: Routed) -> Choice:
    """The same by shares of a softmax over all experts, whose logarithms the logits are."""
    best, indices = experts.highest(graph, _within_groups(graph, logits, mixture), mixture.chosen)
    weights = graph.op("GatherElements", graph.op("Softmax", logits, axis=-1), indices, axis=1)
    return Choice(indices, best, _total(graph, weights, mixture))


_CHOICES = {"sigmoid": _by_sigmoid, "softmax": _by_softmax}


def _total(graph: GraphBuilder, weights: ir.Value, mixture: Routed) -> ir.Value:
    """What the weights [tokens, chosen] add up to in the end."""
    factor = graph.constant([mixture.factor])
    if mixture.adds_up:
        return factor
    sums = graph.op("ReduceSum", weights, graph.constant([-1]), keepdims=1)
    return graph.op("Mul", sums, factor)


def _within_groups(graph: GraphBuilder, scores: ir.Value, mixture: Routed) -> ir.Value:
    """scores [tokens, experts], out of reach but in the best groups: those whose best experts,
    one or two, add up to most."""
    if mixture.best == mixture.groups:
        return scores
    size = mixture.experts // mixture.groups
    apart = graph.op("Reshape", scores, graph.constant([-1, mixture.groups, size]))
    most, _ = experts.highest(graph, apart, _BEST[mixture.scores])
    sums = graph.op("ReduceSum", most, graph.constant([-1]), keepdims=0)
    best, chosen = experts.highest(graph, sums, mixture.best)
    none = graph.op("Expand", graph.constant([_OUT_OF_REACH]), graph.op("Shape", sums))
    nothing = graph.op("Mul", best, graph.constant([0.0]))
    reach = graph.op("ScatterElements", none, chosen, nothing, axis=1)
    within = graph.op("Add", apart, graph.op("Unsqueeze", reach, graph.constant([2])))
    return graph.op("Reshape", within, graph.constant([-1, mixture.experts]))

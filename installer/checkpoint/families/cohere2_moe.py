"""Command A+ and North Mini Code: Command A's blocks side by side, with experts behind the first.

Layers without experts have a feed-forward of their own width, and may turn where Command A's layers
that see everything do not. Norms are RMS norms where config.json gives them a number.
Reference: `Cohere2MoeForCausalLM` (2026).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir

from installer.checkpoint.expert_weights import found
from installer.checkpoint.families import cohere2
from installer.checkpoint.graph import decoder, decoder_shape, experts, routed
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form, Heads
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.experts import Choice, Mixture
from installer.checkpoint.graph.kinds import FULL, SLIDING, Kinds, LayerKind, read_kinds
from installer.checkpoint.graph.rope import STILL
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

_SCORES, _WINDOW, _PATTERN = 0.0625, 4096, 4


@dataclass(frozen=True, slots=True)
class Chosen(Mixture):
    """A mixture, and how its experts are weighted.

    Attributes:
        sigmoid: whether by sigmoids, not by a softmax among the chosen.
        average: whether the result is half of the experts' and half of what is for all.
        dense_inner: width of the feed-forward of layers without experts.
    """

    sigmoid: bool = False
    average: bool = False
    dense_inner: int = 0


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["Cohere2MoeForCausalLM"])
    return read_text(config)


def read_text(config: Settings) -> DecoderShape:
    """Read the keys of `Cohere2MoeForCausalLM`."""
    cohere2.expect_blocks(config)
    config.expect("layer_norm_bias", False)
    centred = "rms_norm_eps" not in config
    usual = config.number("layer_norm_eps", cohere2.EPSILON)
    config.assume("rms_norm_eps", usual)
    dense = routed.read_dense(config, config.whole("first_k_dense_replace", 0))

    def kinds(config: Settings, head_dim: int) -> Kinds:
        return _read_kinds(config, head_dim, dense)

    config.assume("head_dim", 128)
    shape = decoder_shape.read_decoder(config, tied=True, kinds=kinds)
    mixture = _read_mixture(config, shape.inner, dense)
    scores = config.number("logit_scale", _SCORES)
    config.finish(cohere2.HARMLESS | experts.HARMLESS_KEYS)
    norms = replace(cohere2.NORMS, centred=centred)
    return replace(shape, norms=norms, parallel=True, score_scale=scores, mixture=mixture)


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    decoder.build_decoder(graph, shape, form, _project, _feed_forward)


def _project(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> Heads:
    return decoder.project(graph, shape, at, x, bias=False)


def _feed_forward(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> ir.Value:
    """The chosen experts' results and that of the one for all; or one feed-forward alone."""
    mixture, divided = shape.mixture, shape.divisors(graph).into_feed_forward
    assert isinstance(mixture, Chosen)
    own = f"{at}.mlp"
    if mixture.is_dense(at):
        return decoder.gated(graph, shape, x, own, mixture.dense_inner)
    hidden, stored = shape.hidden, f"{own}.experts"
    scores = experts.router(graph, x, f"{own}.gate", hidden, mixture.experts, divided=divided)
    choice = _choose(graph, scores, mixture)
    weights = found(graph.tensors, stored)
    mixed = experts.mix(graph, x, choice, mixture, weights, hidden, stored, divided=divided)
    if not mixture.shared:
        return mixed
    for_all = decoder.gated(graph, shape, x, f"{own}.shared_experts", mixture.shared)
    both = graph.add(mixed, for_all)
    return graph.divide(both, 2.0) if mixture.average else both


def _choose(graph: GraphBuilder, scores: ir.Value, mixture: Chosen) -> Choice:
    """The highest scores; weighted by their softmax, or each by its sigmoid."""
    if not mixture.sigmoid:
        return experts.choose_by_softmax(graph, scores, mixture)
    best, indices = experts.highest(graph, scores, mixture.chosen)
    weights = graph.op("Sigmoid", best)
    total = None
    if not mixture.adds_up:
        total = graph.op("ReduceSum", weights, graph.constant([-1]), keepdims=1)
    return Choice(indices, graph.op("Log", weights), total)


def _read_mixture(config: Settings, inner: int, dense: list[int]) -> Chosen:
    sigmoid = config.one_of("expert_selection_fn", "softmax", "sigmoid") == "sigmoid"
    average = config.one_of("shared_expert_combination_strategy", "average", "sum") == "average"
    adds_up = config.flag("norm_topk_prob", True)
    return Chosen(
        experts=config.integer("num_experts"),
        chosen=config.integer("num_experts_per_tok"),
        inner=inner,
        dense=frozenset(dense),
        adds_up=adds_up or not sigmoid,  # a softmax among the chosen always does
        shared=config.whole("num_shared_experts", 0) * inner,
        sigmoid=sigmoid,
        average=average,
        dense_inner=config.integer("prefix_dense_intermediate_size", inner),
    )


def _read_kinds(config: Settings, head_dim: int, dense: list[int]) -> Kinds:
    rope = cohere2.read_angles(config, head_dim)
    window = config.integer("sliding_window", _WINDOW)
    kinds = {FULL: LayerKind(STILL), SLIDING: LayerKind(rope, window)}
    first = config.integer("prefix_dense_sliding_window_pattern", 1)
    rest = config.integer("sliding_window_pattern", _PATTERN)
    layers, before = config.integer("num_hidden_layers"), len(dense)
    places = [(at, first) for at in range(before)]
    places += [(at, rest) for at in range(layers - before)]
    usual = [SLIDING if (at + 1) % every else FULL for at, every in places]
    read = list(read_kinds(config, kinds, usual))
    if first == 1:  # of layers without experts those turn that see everything
        for layer in dense:
            read[layer] = LayerKind(rope, read[layer].window)
    return tuple(read)

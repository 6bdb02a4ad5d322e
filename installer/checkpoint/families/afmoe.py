"""Arcee's Trinity: gated heads, norms on both sides of each block, experts beside one for all.

What heads read goes through a gate of its own for each number. Three of four layers see a window,
and the others know no positions. Reference: Trinity (2025), `AfmoeForCausalLM`.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from installer.checkpoint.families import qwen3
from installer.checkpoint.graph import decoder, decoder_shape, experts, routed
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Attention, Form
from installer.checkpoint.graph.decoder_shape import DecoderShape, Norms
from installer.checkpoint.graph.kinds import FULL, SLIDING, Kinds, LayerKind, read_kinds
from installer.checkpoint.graph.rope import STILL, read_rope
from installer.checkpoint.graph.routed import Names, Routed
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

_NORMS = Norms(
    after_attention="post_attention_layernorm",
    before_feed_forward="pre_mlp_layernorm",
    after_feed_forward="post_mlp_layernorm",
    heads=True,
)
_NAMES = Names("router.gate", "expert_bias")
_EVERY, _WINDOW = 4, 1024
_OF_TRAINING = ("load_balance_coeff", "use_grouped_mm")


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["AfmoeForCausalLM"])
    config.expect("attention_bias", False)
    config.ignore(*_OF_TRAINING)
    mixture = _read_mixture(config)
    shape = decoder_shape.read_decoder(config, kinds=_read_kinds)
    scale = shape.hidden**0.5 if config.flag("mup_enabled", False) else 1.0
    config.finish(decoder_shape.HARMLESS_KEYS | experts.HARMLESS_KEYS)
    return replace(shape, mixture=mixture, norms=_NORMS, embedding_scale=scale)


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    decoder.build_decoder(graph, shape, form, qwen3.project, routed.feed_forward, attend=_attend)


def _attend(
    graph: GraphBuilder,
    shape: DecoderShape,
    attention: Attention,
    layer: int,
    at: str,
    x: ir.Value,
) -> ir.Value:
    """x [B, S, hidden], divided by a number -> what the layer's heads let through."""
    width, divided = shape.heads * shape.head_dim, shape.divisors(graph).into_attention
    attended = attention.attend(layer, qwen3.project(graph, shape, at, x))
    gates = graph.linear(x, f"{at}.self_attn.gate_proj", shape.hidden, width)
    if divided != 1:
        gates = graph.op("Mul", gates, graph.parameter(graph.constant([divided])))
    opened = graph.op("Mul", attended, graph.op("Sigmoid", gates))
    return decoder.conclude_plainly(graph, shape, at, opened)


def _read_mixture(config: Settings) -> Routed:
    config.expect("score_func", "sigmoid")
    config.expect("route_norm", True)
    for key in ("n_group", "topk_group", "num_expert_groups", "num_limited_groups"):
        config.expect(key, 1)
    config.assume("n_routed_experts", config.integer("num_experts"))
    config.assume("n_shared_experts", config.whole("num_shared_experts", 2))
    config.assume("routed_scaling_factor", config.number("route_scale", 1.0))
    dense = range(config.whole("num_dense_layers", 1))
    return replace(routed.read_routed(config, dense=dense), names=_NAMES)


def _read_kinds(config: Settings, head_dim: int) -> Kinds:
    window = config.integer("sliding_window", _WINDOW)
    kinds = {FULL: LayerKind(STILL), SLIDING: LayerKind(read_rope(config, head_dim), window)}
    every = config.integer("global_attn_every_n_layers", _EVERY)
    layers = range(1, config.integer("num_hidden_layers") + 1)
    return read_kinds(config, kinds, [SLIDING if at % every else FULL for at in layers])

"""Mixtral: Mistral's attention, and a softmax router over SwiGLU experts.

Reference: Mixtral of Experts (2024), `MixtralForCausalLM`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import onnx_ir as ir

from installer.checkpoint.expert_weights import ExpertWeights
from installer.checkpoint.families import llama
from installer.checkpoint.graph import decoder, decoder_shape, experts
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.experts import Choice, Mixture
from installer.checkpoint.graph.kinds import FULL, SLIDING, Kinds, LayerKind, read_kinds
from installer.checkpoint.graph.rope import read_rope
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

_THETA = 1_000_000.0
Choose = Callable[[ir.Value, Mixture], Choice]
"""A router's scores [tokens, experts] -> which experts each token goes through."""


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["MixtralForCausalLM"])
    config.ignore("router_jitter_noise")  # steers training
    shape = decoder_shape.read_decoder(config, kinds=_read_kinds)
    mixture = Mixture(
        experts=config.integer("num_local_experts"),
        chosen=config.integer("num_experts_per_tok"),
        inner=shape.inner,
    )
    config.finish(decoder_shape.HARMLESS_KEYS | experts.HARMLESS_KEYS)
    return replace(shape, mixture=mixture)


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    decoder.build_decoder(graph, shape, form, llama.project, _feed_forward)


def mix(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value, choose: Choose) -> ir.Value:
    """The chosen experts' results, in the layout that Mixtral's publisher began with."""
    mixture, divided = shape.mixture, shape.divisors(graph).into_feed_forward
    assert mixture is not None
    stored = f"{at}.block_sparse_moe"
    name, count = f"{stored}.gate", mixture.experts
    scores = experts.router(graph, x, name, shape.hidden, count, divided=divided)
    choice = choose(scores, mixture)
    gate, down, up = (f"{stored}.experts.{{}}.w{number}.weight" for number in (1, 2, 3))
    weights = ExpertWeights(graph.tensors, (gate, up), down)
    name = f"{stored}.experts"
    return experts.mix(graph, x, choice, mixture, weights, shape.hidden, name, divided=divided)


def _read_kinds(config: Settings, head_dim: int) -> Kinds:
    """All layers alike."""
    window = config.integer("sliding_window") if "sliding_window" in config else None
    name = FULL if window is None else SLIDING
    kind = LayerKind(read_rope(config, head_dim, theta=_THETA), window)
    return read_kinds(config, {name: kind}, [name] * config.integer("num_hidden_layers"))


def _feed_forward(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> ir.Value:
    return mix(graph, shape, at, x, partial(experts.choose_by_softmax, graph))

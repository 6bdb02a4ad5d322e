"""Muse Spark, a mixture: Glimmer's heads, experts of narrowed tokens, a stream that keeps its size.

What a layer adds is normed and let in by a gate of each number, and the stream is faded by as much.
Tokens are narrowed before their experts, and each expert's result is normed before it is weighed.
Checkpoints see and hear as well; the language model is built and the rest is left out, as of
Gemma 3 (docs/decisions/0173-gemma-3.md). Reference: Muse Spark (2026),
`MuseSparkForConditionalGeneration`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from installer.checkpoint.expert_weights import found
from installer.checkpoint.families import muse_glimmer
from installer.checkpoint.graph import decoder, decoder_shape, experts
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Block, Form
from installer.checkpoint.graph.decoder_shape import AroundDecoder, DecoderShape
from installer.checkpoint.graph.experts import Mixture
from installer.checkpoint.graph.gated_heads import GatedHeads
from installer.checkpoint.graph.kinds import read_dense
from installer.checkpoint.quantize import Float32
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

_OF_SOUND = {"audio_config", "audio_token_id"}
_THETA, _SHARPNESS, _SCORES = 500_000.0, 5.4730064863875, 0.1767766952966369
_LEAST = 1e-3
"""Of the square of what is left of the stream."""


@dataclass(frozen=True, slots=True)
class Narrowed(Mixture):
    """A mixture whose tokens are narrowed.

    Attributes:
        width: of what experts read and give.
        factor: what their sum is multiplied by.
        sharpness: what a router's scores are multiplied by.
    """

    width: int = 0
    factor: float = 1.0
    sharpness: float = 1.0


@dataclass(frozen=True, slots=True)
class SparkShape(AroundDecoder):
    """A decoder, and what its gates are divided by: their `temperature`."""

    temperature: float


def read(checkpoint: Checkpoint) -> SparkShape:
    """Read config.json, the language model's part.

    Raises CheckpointError naming a key that this graph cannot express.
    """
    others = muse_glimmer.OF_IMAGES | _OF_SOUND
    config = checkpoint.settings("config.json")
    text = muse_glimmer.read_part(config, "MuseSpark", "muse_spark_text", others)
    shape = muse_glimmer.read_text(
        text, activation="hidden_act", theta=_THETA, sharpness=_SHARPNESS, scores=_SCORES
    )
    temperature = text.number("residual_gate_temperature", 0.3)
    mixture = _read_mixture(text, shape)
    text.finish(decoder_shape.HARMLESS_KEYS | experts.HARMLESS_KEYS)
    return SparkShape(replace(shape, mixture=mixture), temperature)


def build(graph: GraphBuilder, shape: SparkShape, form: Form) -> None:
    """Write the graph in one of its forms, of the tensors by the names that there are."""
    heads, own = _NormedHeads(muse_glimmer.project), shape.decoder.located(graph.tensors)
    decoder.build_decoder(
        *(graph, own, form, heads.project, _feed_forward, heads.conclude),
        join=_Gates(shape.temperature),
    )


def _read_mixture(config: Settings, shape: DecoderShape) -> Narrowed:
    return Narrowed(
        experts=config.integer("num_local_experts"),
        chosen=config.integer("num_experts_per_tok"),
        inner=config.integer("moe_intermediate_size"),
        dense=read_dense(config, shape.layers),
        width=config.integer("moe_hidden_size"),
        factor=config.number("routed_scaling_factor", 1.0),
        sharpness=shape.score_scale,
    )


class _NormedHeads(GatedHeads):
    """Of what a head reads, the norm goes through the gate."""

    def conclude(
        self, graph: GraphBuilder, shape: DecoderShape, at: str, attended: ir.Value
    ) -> ir.Value:
        by = shape.divisors(graph).into_attention
        epsilon = shape.epsilon / by**2
        read = graph.norm_heads_plainly(attended, shape.heads, shape.head_dim, epsilon)
        return GatedHeads.conclude(self, graph, shape, at, graph.divide(read, by))


class _Gates:
    """How a block's result is let into the stream: by one number for each of its channels."""

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature

    def __call__(
        self,
        graph: GraphBuilder,
        shape: DecoderShape,
        at: str,
        block: Block,
        stream: ir.Value,
        result: ir.Value,
        divided: float,
    ) -> tuple[ir.Value, ir.Value]:
        """What is left of the stream, and what is added to it."""
        name, width = f"{at}.post_{block}_residual_gate", shape.hidden
        let, left = self._shares(graph.tensors.vector(f"{name}.gate", width))
        graph.give(f"{name}.let", let)
        graph.give(f"{name}.left", left)
        if block == "feedforward":  # whose gain stands before its norm
            stored = f"{at}.post_feedforward_layernorm.weight"
            gain = graph.vector(stored, width, shape.norms.offset)
            result = graph.op("Mul", result, gain)
        epsilon, by = shape.after_epsilon / divided**2, shape.divisors(graph).stream
        result = graph.norm(result, f"{name}.let", width, epsilon, divided=by)
        return graph.op("Mul", stream, graph.vector(f"{name}.left", width)), result

    def _shares(self, gate: Float32) -> tuple[Float32, Float32]:
        """What of a result is let in, and what of the stream is left: squares add up to one."""
        opened = gate / np.float32(self._temperature)
        let, shut = (np.float32(1) / (np.float32(1) + np.exp(sign)) for sign in (-opened, opened))
        left = np.sqrt(np.maximum(shut * (np.float32(1) + let), np.float32(_LEAST)))
        return let.astype(np.float32), left.astype(np.float32)


def _feed_forward(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> ir.Value:
    """The chosen experts' normed results, of the narrowed token; or one feed-forward alone."""
    mixture, by = shape.mixture, shape.divisors(graph).into_feed_forward
    assert isinstance(mixture, Narrowed)
    if mixture.is_dense(at):
        return decoder.swiglu(graph, shape, at, x)
    at, hidden, width, offset = f"{at}.mlp", shape.hidden, mixture.width, shape.norms.offset
    indices, weights = _choose(graph, mixture, at, x, hidden, by)
    narrow = graph.linear(x, f"{at}.pre_expert_proj", hidden, width)
    name, epsilon = f"{at}.pre_expert_norm.weight", shape.epsilon / by**2
    narrow = graph.norm(narrow, name, width, epsilon, offset, divided=by)
    stored = f"{at}.experts"
    each = experts.apart(
        *(graph, narrow, indices, mixture, found(graph.tensors, stored), width, stored),
        divided=by,
    )
    gain = graph.vector(f"{stored}.post_expert_norm.weight", width, offset)
    each = graph.norm_plainly(graph.op("Mul", each, gain), width, shape.after_epsilon / by**4)
    mixed = experts.weighed(graph, graph.divide(each, by**2), weights, narrow, width)
    return graph.linear(mixed, f"{at}.post_expert_proj", width, hidden)


def _choose(
    graph: GraphBuilder, mixture: Narrowed, at: str, x: ir.Value, hidden: int, divided: float
) -> tuple[ir.Value, ir.Value]:
    """The experts of each token, and their weights, [tokens, chosen] each."""
    scores = experts.router(graph, x, f"{at}.gate", hidden, mixture.experts, divided=divided)
    scores = graph.op("Mul", scores, graph.constant([mixture.sharpness]))
    correction = experts.vector(graph, f"{at}.gate.e_score_correction_bias", mixture.experts)
    choice = experts.choose_by_sigmoid(graph, scores, correction, mixture)
    weights = graph.op("Softmax", choice.logarithms, axis=-1)
    return choice.indices, graph.op("Mul", weights, graph.constant([mixture.factor]))

"""Llama 4, Scout and Maverick: what writes, without its eyes.

Three of four layers turn neighbours together and see a chunk of the text (chunks.py), some with a
norm on each head; the others see everything, know no positions, and their queries grow with theirs
(sharpening.py). A token goes through one expert, which reads it times the router's sigmoid, and
through the one for all. Most checkpoints see images as well; the language model is built and the
rest is left out, as of Gemma 3 (docs/decisions/0173-gemma-3.md). Reference: the Llama 4 herd
(2025), `Llama4ForCausalLM`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import onnx_ir as ir

from appliance.errors import CheckpointError
from installer.checkpoint.expert_weights import ExpertWeights, HalvedStacks, matrices
from installer.checkpoint.graph import chunks, decoder, decoder_shape, experts
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form, Heads
from installer.checkpoint.graph.decoder_shape import DecoderShape, Norms
from installer.checkpoint.graph.experts import Choice, Mixture
from installer.checkpoint.graph.kinds import (
    CHUNKED,
    FULL,
    Kinds,
    LayerKind,
    read_kinds,
    read_turned,
)
from installer.checkpoint.graph.rope import STILL, read_rope
from installer.checkpoint.graph.sharpening import Sharpening
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings
from installer.checkpoint.tensors import Tensors

LONGEST = 262_144
"""Tokens that a bundle is built for at most, as many as the published models were trained with;
tables of angles for Scout's 10,485,760 would have 6 GB."""
_OF_IMAGES: Final = (
    *("vision_config", "boi_token_index", "eoi_token_index", "image_token_index"),
    *("boi_token_id", "eoi_token_id", "image_token_id"),
)
_HARMLESS = (
    decoder_shape.HARMLESS_KEYS
    | experts.HARMLESS_KEYS
    | {"router_jitter_noise", "_attn_implementation_autoset", "for_llm_compressor"}
)
_TIED, _CHUNK, _EVERY = "tie_word_embeddings", 8192, 4
_THETA = 500_000.0


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json of a language model alone.

    Raises CheckpointError naming a key that this graph cannot express.
    """
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["Llama4ForCausalLM"])
    return _read(config)


def read_with_images(checkpoint: Checkpoint) -> DecoderShape:
    """As `read`, of a checkpoint whose language model is one part."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["Llama4ForConditionalGeneration"])
    text = config.needed("text_config")
    text.expect("model_type", "llama4_text")
    config.ignore(*_OF_IMAGES)
    tied = config.flag(_TIED, False)
    text.expect(_TIED, tied)
    config.finish(decoder_shape.HARMLESS_KEYS)
    return replace(_read(text), tied=tied)


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms, of the tensors by the names that there are."""
    shape = shape.located(graph.tensors)
    decoder.build_decoder(graph, shape, form, _project, _feed_forward, _conclude)


def _read(config: Settings) -> DecoderShape:
    config.expect("attention_bias", False)
    config.assume(
        "head_dim", config.integer("hidden_size") // config.integer("num_attention_heads")
    )
    shape = decoder_shape.read_decoder(config, kinds=_read_kinds)
    normed = config.flag("use_qk_norm", True)
    mixture = _read_mixture(config, shape.layers)
    inner = config.integer("intermediate_size_mlp", 16_384)
    config.finish(_HARMLESS)
    context = min(shape.context, LONGEST)
    kinds = tuple(kind.within(context) for kind in shape.kinds)
    room = chunks.ROOM if any(kind.chunk for kind in kinds) else 0
    return replace(
        shape,
        context=context,
        kinds=kinds,
        head_dim=shape.head_dim + room,
        room=room,
        inner=inner,
        mixture=mixture,
        norms=Norms(heads=normed),
    )


def _read_kinds(config: Settings, head_dim: int) -> Kinds:
    """Of each layer: whether it knows positions, and whether it sees a chunk, are two keys."""
    layers = config.integer("num_hidden_layers")
    turned = read_turned(config, layers, _EVERY)
    chunk = config.integer("attention_chunk_size", _CHUNK)
    names = [CHUNKED if turns else FULL for turns in turned]
    ahead = {CHUNKED: LayerKind(STILL, chunk, chunk=chunk), FULL: LayerKind(STILL)}
    kinds = read_kinds(config, ahead, names)
    rope = replace(read_rope(config, head_dim, theta=_THETA), interleaved=True)
    if rope.magnitude != 1:
        raise CheckpointError(
            "config.json: rope_scaling that changes how long queries are is not supported",
            hint="the norm of heads comes behind it in the reference; published models have none",
        )
    tuning = _read_tuning(config)
    return tuple(
        replace(kind, rope=rope) if turns else replace(kind, sharpening=tuning)
        for kind, turns in zip(kinds, turned, strict=True)
    )


def _read_tuning(config: Settings) -> Sharpening | None:
    every, weight = config.integer("floor_scale", _CHUNK), config.number("attn_scale", 0.1)
    # The first published files have 4, by which they mean yes.
    tuned = config.one_of("attn_temperature_tuning", True, False, 4)
    return Sharpening(every, weight, ahead=1) if tuned else None


def _read_mixture(config: Settings, layers: int) -> Mixture:
    step = config.integer("interleave_moe_layer_step", 1)
    mixed = config.ids("moe_layers") if "moe_layers" in config else range(step - 1, layers, step)
    # Of several, each would read the token times a number of its own.
    config.expect("num_experts_per_tok", 1)
    inner = config.integer("intermediate_size")
    return Mixture(
        experts=config.integer("num_local_experts"),
        chosen=1,
        inner=inner,
        dense=frozenset(range(layers)) - frozenset(mixed),
        shared=inner,
    )


def _project(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> Heads:
    """Linear layers; where positions are known, heads are normed, which turning does not change."""
    own, layer = _own(shape), int(at.rpartition(".")[2])
    queries, keys, values = decoder.project(graph, own, at, x, bias=False)
    if shape.norms.heads and shape.kinds[layer].rope != STILL:
        queries, keys = (
            graph.norm_heads_plainly(heads, count, own.head_dim, shape.epsilon)
            for heads, count in ((queries, shape.heads), (keys, shape.kv_heads))
        )
    return queries, keys, values


def _conclude(graph: GraphBuilder, shape: DecoderShape, at: str, attended: ir.Value) -> ir.Value:
    own = _own(shape)
    if shape.room:
        widths = (shape.head_dim, own.head_dim)
        attended = decoder.narrow_heads(graph, attended, shape.heads, *widths)
    return decoder.conclude_plainly(graph, own, at, attended)


def _own(shape: DecoderShape) -> DecoderShape:
    """The same with heads as wide as the weights have them."""
    return replace(shape, head_dim=shape.head_dim - shape.room, room=0)


def _feed_forward(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> ir.Value:
    """The chosen expert's result and that of the one for all; or one feed-forward alone."""
    mixture, divided = shape.mixture, shape.divisors(graph).into_feed_forward
    assert mixture is not None
    dense, at = mixture.is_dense(at), f"{at}.feed_forward"
    if dense:
        return decoder.gated(graph, shape, x, at, shape.inner)
    hidden, stored = shape.hidden, f"{at}.experts"
    scores = experts.router(graph, x, f"{at}.router", hidden, mixture.experts, divided=divided)
    best, index = experts.highest(graph, scores, mixture.chosen)
    weighed = experts.times(graph, x, graph.op("Sigmoid", best), hidden)
    weights, choice = _experts(graph.tensors, stored), Choice(index, best)
    mixed = experts.mix(graph, weighed, choice, mixture, weights, hidden, stored, divided=divided)
    return graph.add(mixed, decoder.gated(graph, shape, x, f"{at}.shared_expert", mixture.shared))


def _experts(tensors: Tensors, at: str) -> ExpertWeights:
    """Stacked as published, or apart as those who quantize them lay them out."""
    gate_up, down = f"{at}.gate_up_proj", f"{at}.down_proj"
    if tensors.holds(gate_up):
        return HalvedStacks(tensors, (gate_up,), down)
    return matrices(tensors, at)

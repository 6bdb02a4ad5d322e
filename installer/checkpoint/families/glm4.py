"""GLM-4-0414 and GLM-Z1: norms before and behind the blocks, neighbours of half a head turn.

Reference: GLM-4-0414 (2025), `Glm4ForCausalLM`.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from installer.checkpoint.graph import decoder, decoder_shape
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form, Heads
from installer.checkpoint.graph.decoder_shape import DecoderShape, Norms
from installer.checkpoint.graph.kinds import FULL, Kinds, LayerKind, read_kinds
from installer.checkpoint.graph.rope import read_rope
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

_NORMS = Norms(
    before_attention="input_layernorm",
    after_attention="post_self_attn_layernorm",
    before_feed_forward="post_attention_layernorm",
    after_feed_forward="post_mlp_layernorm",
)
_SHARE = 0.5
"""Of a head that turns, unless said otherwise."""


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["Glm4ForCausalLM"])
    bias = config.flag("attention_bias", True)
    shape = decoder_shape.read_decoder(config, kinds=_read_kinds)
    config.finish(decoder_shape.HARMLESS_KEYS)
    return replace(shape, norms=_NORMS, input_bias=bias)


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    for layer in range(shape.layers):
        at = f"{shape.root}.layers.{layer}.mlp"
        halves = (f"{at}.{name}_proj.weight" for name in ("gate", "up"))
        graph.tensors.divide(f"{at}.gate_up_proj.weight", dict.fromkeys(halves, shape.inner))
    decoder.build_decoder(graph, shape, form, _project, decoder.swiglu)


def _read_kinds(config: Settings, head_dim: int) -> Kinds:
    config.assume("partial_rotary_factor", _SHARE)
    rope = replace(read_rope(config, head_dim, partial=True), interleaved=True)
    return read_kinds(config, {FULL: LayerKind(rope)}, [FULL] * config.integer("num_hidden_layers"))


def _project(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> Heads:
    return decoder.project(graph, shape, at, x, bias=shape.input_bias)

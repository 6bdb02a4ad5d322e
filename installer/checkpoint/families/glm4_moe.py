"""GLM-4.5, 4.6, 4.7 and dots.llm1: ordinary attention, and experts of DeepSeek's kind.

Queries, keys and values may have biases, and each query and key head a norm of its own; of GLM
half a head turns. Reference: GLM-4.5: Agentic, Reasoning, and Coding Foundation Models (2025),
dots.llm1 Technical Report (2025), `Glm4MoeForCausalLM`, `Dots1ForCausalLM`.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from installer.checkpoint.graph import decoder, decoder_shape, experts, routed
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form, Heads
from installer.checkpoint.graph.decoder_shape import DecoderShape, Norms
from installer.checkpoint.graph.kinds import FULL, Kinds, LayerKind, read_kinds
from installer.checkpoint.graph.rope import read_rope
from installer.checkpoint.graph.routed import Routed
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

_TURNED = 0.5
"""Of a head of GLM, where config.json does not say it."""


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["Glm4MoeForCausalLM"])
    config.assume("partial_rotary_factor", _TURNED)
    bias, norms = config.flag("attention_bias", False), config.flag("use_qk_norm", False)
    return _read(config, routed.read_routed(config), bias=bias, norms=norms)


def read_dots(checkpoint: Checkpoint) -> DecoderShape:
    """As `read`, for dots.llm1, whose heads are normed always and turn as a whole."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["Dots1ForCausalLM"])
    config.expect("attention_bias", False)
    config.expect("partial_rotary_factor", 1.0)
    config.expect("pretraining_tp", 1)
    config.expect("use_sliding_window", False)
    config.expect("sliding_window")
    config.ignore("max_window_layers")  # which says nothing without a window
    return _read(config, routed.read_routed(config), bias=False, norms=True)


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    routed.leave_out_further(graph, shape)
    decoder.build_decoder(graph, shape, form, _project, routed.feed_forward)


def _read(config: Settings, mixture: Routed, *, bias: bool, norms: bool) -> DecoderShape:
    config.expect("topk_method", "noaux_tc")
    shape = decoder_shape.read_decoder(config, kinds=_read_kinds)
    config.finish(decoder_shape.HARMLESS_KEYS | experts.HARMLESS_KEYS)
    return replace(shape, mixture=mixture, input_bias=bias, norms=Norms(heads=norms))


def _read_kinds(config: Settings, head_dim: int) -> Kinds:
    rope = read_rope(config, head_dim, partial=True)
    return read_kinds(config, {FULL: LayerKind(rope)}, [FULL] * config.integer("num_hidden_layers"))


def _project(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> Heads:
    queries, keys, values = decoder.project(graph, shape, at, x, bias=shape.input_bias)
    if shape.norms.heads:
        at = f"{at}.self_attn"
        queries = decoder.head_norm(graph, shape, f"{at}.q_norm", queries, shape.heads)
        keys = decoder.head_norm(graph, shape, f"{at}.k_norm", keys, shape.kv_heads)
    return queries, keys, values

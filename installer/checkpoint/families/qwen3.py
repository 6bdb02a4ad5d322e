"""Qwen3, dense: grouped-query attention with an RMS norm on each query and key head, SwiGLU.

Reference: Qwen3 Technical Report (2025), `Qwen3ForCausalLM`.
"""

from __future__ import annotations

import onnx_ir as ir

from installer.checkpoint.graph import decoder, decoder_shape
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form, Heads
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.kinds import read_late_windows
from installer.checkpoint.reader import Checkpoint


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["Qwen3ForCausalLM"])
    config.expect("attention_bias", False)
    shape = decoder_shape.read_decoder(config, kinds=read_late_windows)
    config.finish(decoder_shape.HARMLESS_KEYS)
    return shape


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    decoder.build_decoder(graph, shape, form, project, decoder.swiglu)


def project(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> Heads:
    """Linear layers without biases; each query and key head is normed on its own."""
    queries, keys, values = decoder.project(graph, shape, at, x, bias=False)
    return (
        decoder.head_norm(graph, shape, f"{at}.self_attn.q_norm", queries, shape.heads),
        decoder.head_norm(graph, shape, f"{at}.self_attn.k_norm", keys, shape.kv_heads),
        values,
    )

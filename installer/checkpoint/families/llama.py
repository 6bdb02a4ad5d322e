"""Llama 2, 3, 3.1 and 3.2 (text): grouped-query attention without biases, SwiGLU.

Reference: The Llama 3 Herd of Models (2024), `LlamaForCausalLM`.
"""

from __future__ import annotations

import onnx_ir as ir

from installer.checkpoint.graph import decoder, decoder_shape
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form, Heads
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.reader import Checkpoint


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["LlamaForCausalLM"])
    config.expect("attention_bias", False)
    config.expect("mlp_bias", False)
    config.expect("pretraining_tp", 1)
    shape = decoder_shape.read_decoder(config)
    config.finish(decoder_shape.HARMLESS_KEYS)
    return shape


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    decoder.build_decoder(graph, shape, form, project, decoder.swiglu)


def project(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> Heads:
    """Linear layers without biases."""
    return decoder.project(graph, shape, at, x, bias=False)

"""Seed-OSS: Llama's blocks, with biases on queries, keys and values.

Reference: Seed-OSS (2025), `SeedOssForCausalLM`.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from installer.checkpoint.graph import decoder, decoder_shape
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form, Heads
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.reader import Checkpoint

_TRAINING_KEYS = frozenset({"residual_dropout"})


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["SeedOssForCausalLM"])
    config.expect("mlp_bias", False)
    config.expect("pretraining_tp", 1)
    biases = config.flag("attention_bias", True), config.flag("attention_out_bias", False)
    shape = decoder_shape.read_decoder(config)
    config.finish(decoder_shape.HARMLESS_KEYS | _TRAINING_KEYS)
    return replace(shape, input_bias=biases[0], output_bias=biases[1])


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    decoder.build_decoder(graph, shape, form, _project, decoder.swiglu)


def _project(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> Heads:
    return decoder.project(graph, shape, at, x, bias=shape.input_bias)

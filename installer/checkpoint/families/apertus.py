"""Apertus: a norm on each query and key head, and feed-forwards without a gate, bent by xIELU.

xIELU(x) = p * max(x, 0)^2 + n * (elu(x) - x) + b * x, with p and n learned for each layer: squares
to the right, exponential to the left. Reference: Apertus (2025), `ApertusForCausalLM`; Huang and
Schlag, Deriving Activation Functions Using Integration (2024).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from installer.checkpoint.families import qwen3
from installer.checkpoint.graph import decoder, decoder_shape
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form
from installer.checkpoint.graph.decoder_shape import DecoderShape, Norms
from installer.checkpoint.quantize import Float32
from installer.checkpoint.reader import Checkpoint

_NORMS = Norms(before_attention="attention_layernorm", before_feed_forward="feedforward_layernorm")
_TRAINING_KEYS = frozenset({"hidden_dropout"})
_SLOPE = 0.5
"""b, where the checkpoint does not say it."""


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["ApertusForCausalLM"])
    config.expect("attention_bias", False)
    config.expect("mlp_bias", False)
    config.expect("post_norm", False)
    config.expect("qk_norm", True)
    shape = decoder_shape.read_decoder(config, activation=("hidden_act", "xielu"))
    config.finish(decoder_shape.HARMLESS_KEYS | _TRAINING_KEYS)
    return replace(shape, norms=_NORMS)


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    decoder.build_decoder(graph, shape, form, qwen3.project, _feed_forward)


def _feed_forward(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> ir.Value:
    # Squares outgrow 16 bits sooner than products of two halves: they are divided once more.
    by = shape.divisors(graph).into_feed_forward
    y = graph.linear(graph.divide(x, by), f"{at}.mlp.up_proj", shape.hidden, shape.inner)
    y = _xielu(graph, f"{at}.mlp.act_fn", y, by**2)
    y = graph.linear(y, f"{at}.mlp.down_proj", shape.inner, shape.hidden)
    return graph.divide(y, 1 / by**2)


def _xielu(graph: GraphBuilder, name: str, y: ir.Value, divided: float) -> ir.Value:
    """xIELU(y * divided) / divided^2, so that squares are divided by nothing."""
    slope = (
        graph.tensors.stored_floats(f"{name}.beta") if f"{name}.beta" in graph.tensors else _SLOPE
    )
    if f"{name}.eps" in graph.tensors:
        # What is nearer to zero is taken for it, which changes less than it is itself.
        graph.tensors.stored_floats(f"{name}.eps")
    right, left = (_softplus(graph.tensors.vector(f"{name}.alpha_{n}", 1)) for n in "pn")
    left = left + np.float32(slope)

    def scaled(part: str, x: ir.Value, factor: Float32) -> ir.Value:
        number = graph.array(f"{name}.{part}", factor.astype(np.float32).reshape(1))
        return graph.op("Mul", x, graph.parameter(number))

    positive = graph.op("Relu", y)
    squares = scaled("right", graph.op("Mul", positive, positive), right)
    whole = y if divided == 1 else scaled("whole", y, np.array([divided]))
    curve = scaled("left", graph.op("Elu", whole), left / np.float32(divided**2))
    line = scaled("line", y, (np.float32(slope) - left) / np.float32(divided))
    return graph.op("Add", squares, graph.op("Add", curve, line))


def _softplus(x: Float32) -> Float32:
    softened: Float32 = np.logaddexp(np.float32(0), x)
    return softened

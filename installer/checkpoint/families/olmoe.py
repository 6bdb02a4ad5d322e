"""OLMoE: norms over all heads, and a softmax router over SwiGLU experts.

Reference: OLMoE: Open Mixture-of-Experts Language Models (2024), `OlmoeForCausalLM`.
"""

from __future__ import annotations

from dataclasses import replace

from installer.checkpoint.families import qwen3_moe
from installer.checkpoint.graph import decoder, decoder_shape, experts
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.experts import Mixture
from installer.checkpoint.reader import Checkpoint

_EPSILON = 1e-5
"""Of all norms, where config.json does not say it."""


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["OlmoeForCausalLM"])
    config.expect("attention_bias", False)
    config.expect("clip_qkv")
    config.assume("rms_norm_eps", _EPSILON)
    shape = decoder_shape.read_decoder(config)
    mixture = Mixture(
        experts=config.integer("num_experts"),
        chosen=config.integer("num_experts_per_tok"),
        inner=shape.inner,
        adds_up=config.flag("norm_topk_prob", False),
    )
    config.finish(decoder_shape.HARMLESS_KEYS | experts.HARMLESS_KEYS)
    return replace(shape, mixture=mixture)


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    decoder.build_decoder(graph, shape, form, decoder.project_normed, qwen3_moe.feed_forward)

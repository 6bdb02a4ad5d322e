"""Qwen3.5 with a mixture of experts: its layers, and Qwen2's experts beside one behind a gate.

What sees images is that of the dense ones. Reference: `Qwen3_5MoeForCausalLM` and
`Qwen3_5MoeForConditionalGeneration` (2026).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from installer.checkpoint.expert_weights import rows_or_matrices
from installer.checkpoint.families import qwen2_moe, qwen3_5
from installer.checkpoint.graph import decoder_shape, experts, gated_delta
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.pictures import PictureShape, slots_of
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["Qwen3_5MoeForCausalLM"])
    return read_mixed(config, tied=False)


def read_with_images(checkpoint: Checkpoint) -> PictureShape:
    """As `read`, of a checkpoint whose language model is one part."""
    return qwen3_5.read_seeing(checkpoint, "Qwen3_5MoeForConditionalGeneration", read_mixed)


def read_words(checkpoint: Checkpoint) -> DecoderShape:
    """The language model alone of such a checkpoint."""
    return qwen3_5.read_part(checkpoint, "Qwen3_5MoeForConditionalGeneration", read_mixed)


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    feed_forward = partial(qwen2_moe.feed_forward, weights=rows_or_matrices)
    qwen3_5.build_hybrid(graph, shape, form, gated_delta.project_apart, feed_forward)


def build_with_images(graph: GraphBuilder, shape: PictureShape, form: object) -> None:
    """Write the decoder; the tower is Qwen3-VL's."""
    build(graph, shape.decoder, partial(slots_of(form), picture=shape))


def read_mixed(config: Settings, *, tied: bool) -> DecoderShape:
    """All keys of a decoder of this kind with experts."""
    config.assume("norm_topk_prob", True)
    # Of layers without experts, which no published one has.
    config.assume("intermediate_size", config.integer("moe_intermediate_size"))
    shape = qwen3_5.read_hybrid(config, tied=tied)
    shape = replace(shape, mixture=qwen2_moe.read_mixture(config, shape.layers))
    config.ignore(*experts.HARMLESS_KEYS)
    config.finish(decoder_shape.HARMLESS_KEYS)
    return shape

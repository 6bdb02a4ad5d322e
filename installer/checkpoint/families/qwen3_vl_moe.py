"""Qwen3-VL with a mixture of experts: Qwen3-VL's tower and attention, Qwen3's experts.

Reference: Qwen3-VL Technical Report (2025), `Qwen3VLMoeForConditionalGeneration`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from installer.checkpoint.expert_weights import ExpertWeights, HalvedStacks, matrices
from installer.checkpoint.families import qwen3, qwen3_moe, qwen3_vl
from installer.checkpoint.graph import decoder, decoder_shape, experts
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.pictures import PictureShape, slots_of
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings
from installer.checkpoint.tensors import Tensors


def read(checkpoint: Checkpoint) -> PictureShape:
    """Read config.json. Raises CheckpointError naming a key that these graphs cannot express."""
    return qwen3_vl.read_as(checkpoint, "Qwen3VLMoeForConditionalGeneration", _read_words)


def build(graph: GraphBuilder, shape: PictureShape, form: object) -> None:
    """Write the decoder; the tower is Qwen3-VL's."""
    slots = partial(slots_of(form), picture=shape)
    feed_forward = partial(qwen3_moe.feed_forward, weights=_experts)
    decoder.build_decoder(graph, shape.decoder, slots, qwen3.project, feed_forward)


def _read_words(config: Settings, *, tied: bool) -> DecoderShape:
    # The chosen ones' weights add up to one here whatever config.json says.
    config.expect("norm_topk_prob", True)
    config.assume("norm_topk_prob", True)
    config.ignore(*experts.HARMLESS_KEYS)
    shape = decoder_shape.read_decoder(config, tied=tied, kinds=qwen3_vl.AXES)
    return replace(shape, mixture=qwen3_moe.read_mixture(config, shape.layers))


def _experts(tensors: Tensors, at: str) -> ExpertWeights:
    """Stacked as published, or apart as those who quantize them lay them out."""
    gate_up, down = f"{at}.gate_up_proj", f"{at}.down_proj"
    if tensors.holds(gate_up):
        return HalvedStacks(tensors, (gate_up,), down)
    return matrices(tensors, at)

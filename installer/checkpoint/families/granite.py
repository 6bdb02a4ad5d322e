"""Granite 3 and 4, dense: Llama's blocks with multipliers, of embeddings, results, products and
scores.

Granite 4's hybrids have the same: granite_hybrid.py. Reference: Granite 3.0 Language Models (2024),
`GraniteForCausalLM`; the multipliers: Yang et al., Tensor Programs V (2022).
"""

from __future__ import annotations

from dataclasses import replace

from appliance.errors import CheckpointError
from installer.checkpoint.families import llama
from installer.checkpoint.graph import decoder_shape
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.kinds import read_alike
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["GraniteForCausalLM"])
    shape = read_multiplied(config, read_alike)
    config.finish(decoder_shape.HARMLESS_KEYS)
    return shape


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    llama.build(graph, shape, form)


def read_multiplied(config: Settings, kinds: decoder_shape.ReadKinds) -> DecoderShape:
    """Read the keys that every decoder of this kind has, of whatever layers."""
    for bias in ("attention_bias", "mlp_bias"):
        config.expect(bias, False)
    shape = decoder_shape.read_decoder(config, kinds=kinds)
    return replace(
        shape,
        scale=config.number("attention_multiplier", 1.0),
        embedding_scale=config.number("embedding_multiplier", 1.0),
        result_scale=_above_zero(config, "residual_multiplier"),
        score_scale=1 / _above_zero(config, "logits_scaling"),
    )


def _above_zero(config: Settings, key: str) -> float:
    number = config.number(key, 1.0)
    if number <= 0:
        raise CheckpointError(
            f"config.json: {key} = {number} is not above zero",
            hint="the checkpoint's config.json is damaged",
        )
    return number

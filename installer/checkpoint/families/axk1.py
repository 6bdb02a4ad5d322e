"""A.X K1: DeepSeek-V3 whose mixtures are normed before they are added to the stream.

Published checkpoints have such norms of layers without experts, too, which do not use them, and may
have no correction of their experts' scores. Reference: A.X K1 (2026), `AXK1ForCausalLM`.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from appliance.errors import CheckpointError
from installer.checkpoint.families import deepseek
from installer.checkpoint.families.deepseek import LatentShape
from installer.checkpoint.graph import decoder, routed
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.routed import Names, Routed
from installer.checkpoint.reader import Checkpoint

_NORM = "post_mlp_layernorm"


def read(checkpoint: Checkpoint) -> LatentShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["AXK1ForCausalLM"])
    config.expect("head_dim", config.integer("qk_rope_head_dim"))
    config.expect("topk_method", "noaux_tc")
    if "q_lora_rank" not in config:
        raise CheckpointError(
            "config.json: q_lora_rank is missing",
            hint="queries of this model are made of the vector that it is the width of",
        )
    config.assume("n_group", 8)
    config.assume("topk_group", 4)
    dense = routed.read_dense(config, config.whole("first_k_dense_replace", 1))
    return deepseek.read_around(config, routed.read_routed(config, dense=dense))


def build(graph: GraphBuilder, shape: LatentShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    layers, mixture = f"{shape.decoder.root}.layers", shape.decoder.mixture
    assert isinstance(mixture, Routed)
    for layer in mixture.dense:
        graph.tensors.leave_out(f"{layers}.{layer}.{_NORM}.")
    sparse = min(set(range(shape.layers)) - mixture.dense, default=0)
    if f"{layers}.{sparse}.mlp.{mixture.names.correction}" not in graph.tensors:
        mixture = replace(mixture, names=Names(correction=None))
    shape = replace(shape, decoder=replace(shape.decoder, mixture=mixture))
    deepseek.build(graph, shape, form, _feed_forward)


def _feed_forward(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> ir.Value:
    mixture, result = shape.mixture, routed.feed_forward(graph, shape, at, x)
    assert mixture is not None
    if mixture.is_dense(at):
        return result
    by = shape.divisors(graph).into_feed_forward ** 2
    return decoder.norm_after(graph, shape, at, _NORM, result, by)

"""Bamba: Mamba-2 layers, a few that attend and turn half of a head, and gated feed-forwards.

Reference: Bamba (2024); `BambaForCausalLM`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import onnx_ir as ir

from appliance.errors import CheckpointError
from installer.checkpoint.families import llama
from installer.checkpoint.graph import decoder, decoder_shape, state_space
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form
from installer.checkpoint.graph.decoder_shape import DecoderShape, Norms
from installer.checkpoint.graph.kinds import Kinds, LayerKind
from installer.checkpoint.graph.rope import read_rope
from installer.checkpoint.graph.state_space import Kind
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

_NORMS = Norms("input_layernorm", "pre_ff_layernorm", last="final_layernorm")
_SHARE = 0.5
"""Of a head's numbers turn, whatever config.json says."""
_HARMLESS = ("num_logits_to_keep", "z_loss_coefficient")


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["BambaForCausalLM"])
    for bias in ("attention_bias", "mlp_bias"):
        config.expect(bias, False)
    config.ignore(*_HARMLESS)
    shape = decoder_shape.read_decoder(config, kinds=_read_kinds)
    config.expect("attn_rotary_emb", int(_SHARE * shape.head_dim))
    inner = config.integer("mamba_expand", 2) * shape.hidden
    recurrent = state_space.read(config, _remembering(config, shape.layers), inner)
    config.finish(decoder_shape.HARMLESS_KEYS)
    return replace(shape, norms=_NORMS, recurrent=recurrent)


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    recur = partial(state_space.mix, kind=Kind("mamba"))
    decoder.build_decoder(graph, shape, form, llama.project, _feed_forward, recur=recur)


def _feed_forward(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> ir.Value:
    return decoder.gated(graph, shape, x, f"{at}.feed_forward", shape.inner)


def _read_kinds(config: Settings, head_dim: int) -> Kinds:
    """All that attend are alike; the others turn nothing, and are said to be the same."""
    config.assume("partial_rotary_factor", _SHARE)
    config.expect("partial_rotary_factor", _SHARE)
    kind = LayerKind(read_rope(config, head_dim, partial=True))
    return (kind,) * config.integer("num_hidden_layers")


def _remembering(config: Settings, layers: int) -> frozenset[int]:
    attending = set(config.ids("attn_layer_indices"))
    if not attending or not attending < set(range(layers)):
        raise CheckpointError(
            f"config.json: attn_layer_indices = {sorted(attending)} of {layers} layers",
            hint="this family has layers of both kinds",
        )
    return frozenset(range(layers)) - attending

"""SmolLM3: Llama's blocks, of which every fourth knows no positions.

Reference: SmolLM3 (2025), `SmolLM3ForCausalLM`; layers without positions: Yang et al., Rope to Nope
and Back Again (2025).
"""

from __future__ import annotations

from installer.checkpoint.families import llama
from installer.checkpoint.graph import decoder_shape
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.kinds import (
    FULL,
    Kinds,
    LayerKind,
    read_kinds,
    read_turned,
)
from installer.checkpoint.graph.rope import STILL, read_rope
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

_THETA = 2_000_000.0
_USUAL_INTERVAL = 4


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["SmolLM3ForCausalLM"])
    config.expect("attention_bias", False)
    config.expect("mlp_bias", False)
    config.expect("use_sliding_window", False)
    # The window of nothing, and how it was trained.
    config.ignore("sliding_window", "max_window_layers", "pretraining_tp")
    shape = decoder_shape.read_decoder(config, tied=True, kinds=_read_kinds)
    config.finish(decoder_shape.HARMLESS_KEYS)
    return shape


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    llama.build(graph, shape, form)


def _read_kinds(config: Settings, head_dim: int) -> Kinds:
    layers = config.integer("num_hidden_layers")
    turns = read_turned(config, layers, _USUAL_INTERVAL)
    rope = read_rope(config, head_dim, theta=_THETA)
    # All see everything; which of them turn stands in a list of its own.
    read_kinds(config, {FULL: LayerKind(rope)}, [FULL] * layers)
    return tuple(LayerKind(rope if turned else STILL) for turned in turns)

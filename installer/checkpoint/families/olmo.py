"""OLMo 2 and OLMo 3: norms behind the blocks alone, and of queries and keys over all heads.

OLMo 3 has windows in three of four layers, and rescales the angles of the others. Layers take the
stream as it is. Reference: 2 OLMo 2 Furious (2025), Olmo 3 (2025), `Olmo2ForCausalLM`,
`Olmo3ForCausalLM`.
"""

from __future__ import annotations

from dataclasses import replace

from installer.checkpoint.graph import decoder, decoder_shape
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form
from installer.checkpoint.graph.decoder_shape import DecoderShape, Norms, ReadKinds
from installer.checkpoint.graph.kinds import (
    FULL,
    SLIDING,
    Kinds,
    LayerKind,
    read_alike,
    read_kinds,
)
from installer.checkpoint.graph.rope import Basis, Rope, read_ropes, read_scaling
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

NORMS = Norms(
    before_attention=None,
    after_attention="post_attention_layernorm",
    before_feed_forward=None,
    after_feed_forward="post_feedforward_layernorm",
    heads=True,
)
_THETA = 500_000.0
_WINDOW = 4096
_PATTERN = 4
"""Every fourth layer sees everything, unless said otherwise."""


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    return _read(checkpoint, "Olmo2ForCausalLM", read_alike)


def read_olmo3(checkpoint: Checkpoint) -> DecoderShape:
    """As `read`, for model_type olmo3."""
    return _read(checkpoint, "Olmo3ForCausalLM", _read_kinds)


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    decoder.build_decoder(graph, shape, form, decoder.project_normed, decoder.swiglu)


def _read(checkpoint: Checkpoint, architecture: str, kinds: ReadKinds) -> DecoderShape:
    config = checkpoint.settings("config.json")
    config.expect("architectures", [architecture])
    config.expect("attention_bias", False)
    config.expect("clip_qkv")
    shape = decoder_shape.read_decoder(config, kinds=kinds)
    config.finish(decoder_shape.HARMLESS_KEYS)
    return replace(shape, norms=NORMS)


def _read_kinds(config: Settings, head_dim: int) -> Kinds:
    ropes = _read_ropes(config, head_dim)
    window = config.integer("sliding_window", _WINDOW)
    kinds = {FULL: LayerKind(ropes[FULL]), SLIDING: LayerKind(ropes[SLIDING], window)}
    layers = range(1, config.integer("num_hidden_layers") + 1)
    return read_kinds(config, kinds, [SLIDING if at % _PATTERN else FULL for at in layers])


def _read_ropes(config: Settings, head_dim: int) -> dict[str, Rope]:
    """A rescaling is of the layers that see everything."""
    basis = Basis(_THETA, head_dim, config.integer("max_position_embeddings"))
    parameters = config.section("rope_parameters")
    if parameters is not None:
        return read_ropes(parameters, dict.fromkeys((FULL, SLIDING), _THETA), basis)
    basis = replace(basis, theta=config.number("rope_theta", _THETA))
    far = read_scaling(config.section("rope_scaling"), basis)
    return {FULL: far, SLIDING: read_scaling(None, basis)}

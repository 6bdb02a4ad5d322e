"""Mistral 7B, Nemo, Small, Large and Codestral: Llama's blocks, and a window where one is said.

Also Ministral, whose layers are of both kinds. Reference: Mistral 7B (2023), `MistralForCausalLM`,
`MinistralForCausalLM`.
"""

from __future__ import annotations

from functools import partial

import onnx_ir as ir

from installer.checkpoint.graph import decoder, decoder_shape
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form, Heads
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.kinds import FULL, SLIDING, Kinds, LayerKind, read_kinds
from installer.checkpoint.graph.rope import read_rope
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

_WINDOW = "sliding_window"
_USUAL_WINDOW = 4096


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["MistralForCausalLM"])
    return read_text(config, silent=_WINDOW not in checkpoint.config)


def read_text(config: Settings, *, silent: bool) -> DecoderShape:
    """Read the keys of `MistralForCausalLM`, whose window may not be mentioned."""
    return _read(config, partial(_read_mistral, silent=silent))


def read_ministral(checkpoint: Checkpoint) -> DecoderShape:
    """As `read`, for model_type ministral."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["MinistralForCausalLM"])
    return _read(config, partial(_read_ministral, silent=_WINDOW not in checkpoint.config))


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    decoder.build_decoder(graph, shape, form, project, decoder.swiglu)


def _read(config: Settings, kinds: decoder_shape.ReadKinds) -> DecoderShape:
    shape = decoder_shape.read_decoder(config, kinds=kinds)
    config.finish(decoder_shape.HARMLESS_KEYS)
    return shape


def _read_mistral(config: Settings, head_dim: int, *, silent: bool) -> Kinds:
    """All layers alike; `layer_types` of other kinds are refused, as the reference ignores them."""
    kind = LayerKind(read_rope(config, head_dim), _window(config, silent=silent))
    name = FULL if kind.window is None else SLIDING
    return read_kinds(config, {name: kind}, [name] * config.integer("num_hidden_layers"))


def _read_ministral(config: Settings, head_dim: int, *, silent: bool) -> Kinds:
    rope, window = read_rope(config, head_dim), _window(config, silent=silent)
    kinds = {FULL: LayerKind(rope)}
    if window is not None:
        kinds[SLIDING] = LayerKind(rope, window)
    usual = FULL if window is None else SLIDING
    return read_kinds(config, kinds, [usual] * config.integer("num_hidden_layers"))


def _window(config: Settings, *, silent: bool) -> int | None:
    """The window. Null is none; a config.json that is `silent` means that of the first model."""
    if _WINDOW in config or silent:
        return config.integer(_WINDOW, _USUAL_WINDOW)
    return None


def project(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> Heads:
    """Linear layers without biases."""
    return decoder.project(graph, shape, at, x, bias=False)

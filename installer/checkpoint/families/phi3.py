"""Phi-3, Phi-3.5, Phi-4 and Phi-4-mini: Llama's blocks from matrices that are stored together.

A head turns in part where `partial_rotary_factor` says so. Reference: Phi-3 Technical Report
(2024), `Phi3ForCausalLM`.
"""

from __future__ import annotations

import onnx_ir as ir

from installer.checkpoint.graph import decoder, decoder_shape
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form, Heads
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.kinds import FULL, SLIDING, Kinds, LayerKind, read_kinds
from installer.checkpoint.graph.rope import ORIGINAL, read_rope
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

_DEFAULTS = {ORIGINAL: 4096, "rms_norm_eps": 1e-5}
_FORMER_NAMES = {"su": "longrope", "yarn": "longrope"}
"""What config.json of the first releases calls the rescaling."""
_TRAINING_KEYS = frozenset({"embd_pdrop", "resid_pdrop"})


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json").with_defaults(_DEFAULTS)
    config.expect("architectures", ["Phi3ForCausalLM"])
    for bias in ("attention_bias", "mlp_bias", "lm_head_bias"):
        config.expect(bias, False)
    for step in ("full_attn_mod", "interpolate_factor"):
        config.expect(step, 1)
    shape = decoder_shape.read_decoder(config, kinds=_read_kinds)
    config.finish(decoder_shape.HARMLESS_KEYS | _TRAINING_KEYS)
    return shape


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    for layer in range(shape.layers):
        at = f"{shape.root}.layers.{layer}"
        _divide(graph, f"{at}.mlp", "gate_up_proj", dict.fromkeys(("gate", "up"), shape.inner))
        sizes = {"q": shape.heads, "k": shape.kv_heads, "v": shape.kv_heads}
        rows = {name: heads * shape.head_dim for name, heads in sizes.items()}
        _divide(graph, f"{at}.self_attn", "qkv_proj", rows)
    decoder.build_decoder(graph, shape, form, _project, decoder.swiglu)


def _divide(graph: GraphBuilder, at: str, together: str, rows: dict[str, int]) -> None:
    parts = {f"{at}.{name}_proj.weight": count for name, count in rows.items()}
    graph.tensors.divide(f"{at}.{together}.weight", parts)


def _read_kinds(config: Settings, head_dim: int) -> Kinds:
    rope = read_rope(config, head_dim, partial=True, names=_FORMER_NAMES)
    window = config.integer("sliding_window") if "sliding_window" in config else None
    name = FULL if window is None else SLIDING
    layers = config.integer("num_hidden_layers")
    return read_kinds(config, {name: LayerKind(rope, window)}, [name] * layers)


def _project(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> Heads:
    return decoder.project(graph, shape, at, x, bias=False)

"""EXAONE 4: norms behind the blocks alone, and of each query and key head.

Of the large one three of four layers see a window, and the others know no positions. Layers take
the stream as it is. Reference: EXAONE 4.0 (2025), `Exaone4ForCausalLM`.
"""

from __future__ import annotations

from dataclasses import replace

from installer.checkpoint.families import qwen3
from installer.checkpoint.graph import decoder_shape
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form
from installer.checkpoint.graph.decoder_shape import DecoderShape, Norms
from installer.checkpoint.graph.kinds import FULL, SLIDING, Kinds, LayerKind, read_kinds
from installer.checkpoint.graph.rope import STILL, read_rope
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

_NORMS = Norms(
    before_attention=None,
    after_attention="post_attention_layernorm",
    before_feed_forward=None,
    after_feed_forward="post_feedforward_layernorm",
    heads=True,
)
_PATTERN, _WINDOW, _EVERY = "sliding_window_pattern", "sliding_window", 4


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["Exaone4ForCausalLM"])
    if _WINDOW not in checkpoint.config:
        # Null is none; not to mention it means the window of the reference.
        config.assume(_WINDOW, 4096)
    shape = decoder_shape.read_decoder(config, kinds=_read_kinds)
    config.finish(decoder_shape.HARMLESS_KEYS)
    return replace(shape, norms=_NORMS)


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    qwen3.build(graph, shape, form)


def _read_kinds(config: Settings, head_dim: int) -> Kinds:
    """Where `layer_types` says which layers see a window, the pattern says it a second time."""
    layers, rope = config.integer("num_hidden_layers"), read_rope(config, head_dim)
    kinds, names = {FULL: LayerKind(rope)}, [FULL] * layers
    if _WINDOW in config:
        kinds = {FULL: LayerKind(STILL), SLIDING: LayerKind(rope, config.integer(_WINDOW))}
        every = _EVERY if "layer_types" in config else config.integer(_PATTERN, _EVERY)
        names = [SLIDING if at % every else FULL for at in range(1, layers + 1)]
    config.ignore(_PATTERN)
    return read_kinds(config, kinds, names)

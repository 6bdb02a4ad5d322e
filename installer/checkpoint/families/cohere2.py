"""Command A and Command R7B: both blocks of a layer read one norm, which subtracts the mean.

Three of four layers see a window and turn neighbours together; the others see everything and know
no positions. Reference: Command A (2025), `Cohere2ForCausalLM`.
"""

from __future__ import annotations

from dataclasses import replace

from installer.checkpoint.families import llama
from installer.checkpoint.graph import decoder_shape
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form
from installer.checkpoint.graph.decoder_shape import DecoderShape, Norms
from installer.checkpoint.graph.kinds import FULL, SLIDING, Kinds, LayerKind, read_kinds
from installer.checkpoint.graph.rope import STILL, Rope, read_rope
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

NORMS = Norms(before_feed_forward=None, centred=True)
EPSILON = 1e-5
_SCORES, _WINDOW, _PATTERN = 0.0625, 4096, 4
HARMLESS = decoder_shape.HARMLESS_KEYS | {"cache_implementation", "use_parallel_embedding"}


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["Cohere2ForCausalLM"])
    expect_blocks(config)
    config.assume("rms_norm_eps", config.number("layer_norm_eps", EPSILON))
    shape = decoder_shape.read_decoder(config, tied=True, kinds=_read_kinds)
    scores = config.number("logit_scale", _SCORES)
    config.finish(HARMLESS)
    return replace(shape, norms=NORMS, parallel=True, score_scale=scores)


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    llama.build(graph, shape, form)


def expect_blocks(config: Settings) -> None:
    """That blocks stand side by side, as Command A's do, without more norms or biases."""
    config.expect("attention_bias", False)
    config.expect("use_qk_norm", False)
    for key in ("use_parallel_block", "use_gated_activation", "use_embedding_sharing"):
        config.expect(key, True)


def read_angles(config: Settings, head_dim: int) -> Rope:
    """Those of layers that turn, neighbours together."""
    config.expect("position_embedding_type", "rope_gptj")
    config.expect("rotary_pct", 1.0)
    config.expect("order_of_interleaved_layers", "local_attn_first")
    return replace(read_rope(config, head_dim), interleaved=True)


def _read_kinds(config: Settings, head_dim: int) -> Kinds:
    rope = read_angles(config, head_dim)
    window = config.integer("sliding_window", _WINDOW)
    kinds = {FULL: LayerKind(STILL), SLIDING: LayerKind(rope, window)}
    every = config.integer("sliding_window_pattern", _PATTERN)
    config.expect("layer_switch", every)
    layers = range(1, config.integer("num_hidden_layers") + 1)
    return read_kinds(config, kinds, [SLIDING if at % every else FULL for at in layers])

"""LFM2, dense: gated short convolutions, and a few layers that attend with normed heads.

Reference: LFM2 Technical Report (2025); `Lfm2ForCausalLM`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from appliance.errors import CheckpointError
from installer.checkpoint.graph import decoder, decoder_shape, short_convolution
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import FeedForward, Form, Heads
from installer.checkpoint.graph.decoder_shape import DecoderShape, Norms
from installer.checkpoint.graph.kinds import FULL, Kinds, LayerKind, read_kinds
from installer.checkpoint.graph.recurrent import Recurrent
from installer.checkpoint.graph.rope import read_rope
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

NORMS = Norms("operator_norm", "ffn_norm", last="embedding_norm")
CONV = "conv"
"""What config.json calls a layer with a convolution."""
_THETA = 1_000_000.0
_EPSILON = 1e-5
_TRAINED_BY = (
    *("block_mlp_init_scale", "block_out_init_scale", "block_use_xavier_init"),
    "conv_use_xavier_init",
)


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["Lfm2ForCausalLM"])
    if "block_ff_dim" in config:
        config.assume("intermediate_size", config.integer("block_ff_dim"))
    shape = read_convolving(config)
    shape = replace(shape, inner=_adjusted(config, shape.inner))
    config.finish(decoder_shape.HARMLESS_KEYS)
    return shape


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    build_convolving(graph, shape, form, feed_forward)


def read_convolving(config: Settings) -> DecoderShape:
    """Read the keys that every decoder of this kind has, of whatever feed-forward."""
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    config.expect("conv_bias", False)
    config.expect("use_pos_enc", True)
    config.expect("block_use_swiglu", True)
    config.expect("num_heads", heads)
    for key in ("block_dim", "conv_dim", "conv_dim_out"):
        config.expect(key, hidden)
    epsilon = config.number("norm_eps", _EPSILON)
    config.expect("block_norm_eps", epsilon)
    config.assume("rms_norm_eps", epsilon)
    config.ignore(*_TRAINED_BY, "theta")
    tied = config.flag("tie_embedding", True)
    shape = decoder_shape.read_decoder(config, tied=tied, kinds=_read_kinds)
    own = read_convolutions(config, shape, _default_kinds(config), usual=3)
    return replace(shape, norms=NORMS, recurrent=own)


def build_convolving(
    graph: GraphBuilder, shape: DecoderShape, form: Form, feed_forward: FeedForward
) -> None:
    """Write the graph of a decoder of this kind."""
    decoder.build_decoder(
        graph, shape, form, _project, feed_forward, _conclude, short_convolution.mix
    )


def feed_forward(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> ir.Value:
    """Gated, by the names that Llama's first publication gave."""
    by, at = shape.divisors(graph).into_feed_forward, f"{at}.feed_forward"
    names = (f"{at}.w1", f"{at}.w3")
    product, scale = graph.gated(x, *names, shape.hidden, shape.inner, "silu", divided=by)
    return graph.linear(product, f"{at}.w2", shape.inner, shape.hidden, scale=scale)


def _project(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> Heads:
    queries, keys, values = decoder.project(graph, shape, at, x, bias=False)
    own = f"{at}.self_attn"
    return (
        decoder.head_norm(graph, shape, f"{own}.q_layernorm", queries, shape.heads),
        decoder.head_norm(graph, shape, f"{own}.k_layernorm", keys, shape.kv_heads),
        values,
    )


def _conclude(graph: GraphBuilder, shape: DecoderShape, at: str, attended: ir.Value) -> ir.Value:
    return decoder.conclude_plainly(graph, shape, at, attended, "out_proj")


def _read_kinds(config: Settings, head_dim: int) -> Kinds:
    """All that attend are alike; the others turn nothing, and are said to be the same."""
    kind = LayerKind(read_rope(config, head_dim, theta=_THETA))
    return read_kinds(config, {FULL: kind, CONV: kind}, _default_kinds(config))


def _default_kinds(config: Settings) -> list[str]:
    layers = config.integer("num_hidden_layers")
    attending = config.ids("full_attn_idxs") if "full_attn_idxs" in config else range(layers)
    return [FULL if layer in attending else CONV for layer in range(layers)]


def read_convolutions(
    config: Settings, shape: DecoderShape, default: Sequence[str], *, usual: int
) -> Recurrent:
    """The layers with a convolution, of `usual` inputs; `default` is of each layer its kind."""
    names = config.texts("layer_types", default)
    layers = frozenset(at for at, name in enumerate(names) if name == CONV)
    if not 0 < len(layers) < shape.layers:
        raise CheckpointError(
            f"config.json: layer_types has {len(layers)} of {shape.layers} layers of {CONV}",
            hint="this family has layers of both kinds",
        )
    return Recurrent(layers, kernel=config.integer("conv_L_cache", usual), channels=shape.hidden)


def _adjusted(config: Settings, inner: int) -> int:
    """The width of a feed-forward, which is less than what config.json calls it."""
    unit, factor = config.integer("block_multiple_of", 256), 1.0
    factor = config.number("block_ffn_dim_multiplier", factor)
    if not config.flag("block_auto_adjust_ff_dim", True):
        return inner
    return -(-int(factor * int(2 * inner / 3)) // unit) * unit

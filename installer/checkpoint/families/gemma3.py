"""Gemma 3, text: four norms a block, layers of two kinds with angles of their own, GeGLU.

Of checkpoints that see images as well, the language model is built and the rest is left out:
docs/decisions/0173-gemma-3.md. EmbeddingGemma has the same layers, trained to see in both
directions. References: Gemma 3 Technical Report (2025), `Gemma3ForCausalLM`; EmbeddingGemma (2025),
`Gemma3TextModel`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import onnx_ir as ir

from installer.checkpoint.graph import decoder, decoder_shape
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form, Heads
from installer.checkpoint.graph.decoder_shape import DecoderShape, Norms
from installer.checkpoint.graph.kinds import FULL, SLIDING, Kinds, LayerKind, read_kinds
from installer.checkpoint.graph.rope import Basis, Rope, read_ropes, read_scaling
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

_DEFAULTS = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}
"""Published config.json files leave out what these say."""
_THETA = {FULL: 1_000_000.0, SLIDING: 10_000.0}
_PATTERN = 6
"""Every sixth layer sees everything, unless said otherwise."""
_NORMS = Norms(
    before_attention="input_layernorm",
    after_attention="post_attention_layernorm",
    before_feed_forward="pre_feedforward_layernorm",
    after_feed_forward="post_feedforward_layernorm",
    heads=True,
    offset=1.0,
)
_HARMLESS = decoder_shape.HARMLESS_KEYS | {"cache_implementation"}
_OF_IMAGES = (
    *("vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index"),
    *("image_token_index", "boi_token_id", "eoi_token_id", "image_token_id"),
)


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["Gemma3ForCausalLM"])
    return _read(config)


def read_with_images(checkpoint: Checkpoint) -> DecoderShape:
    """As `read`, of a checkpoint whose language model is one part."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["Gemma3ForConditionalGeneration"])
    text = config.section("text_config") or Settings({}, "config.json: text_config")
    config.expect("tie_word_embeddings", True)
    config.ignore(*_OF_IMAGES)
    config.finish(_HARMLESS)
    return _read(text)


def read_both_ways(checkpoint: Checkpoint) -> DecoderShape:
    """As `read`, of a model whose tokens see those behind them, too."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["Gemma3TextModel"])
    return _read(config, both_ways=True)


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    shape = replace(shape.located(graph.tensors), tied=shape.tied)
    decoder.build_decoder(graph, shape, form, _project, decoder.geglu)


def _read(config: Settings, *, both_ways: bool = False) -> DecoderShape:
    config = config.with_defaults(_DEFAULTS)
    config.expect("attention_bias", False)
    config.assume("use_bidirectional_attention", False)
    config.expect("use_bidirectional_attention", both_ways)
    # Null in every published Gemma 3; only Gemma 2 caps what it computes.
    config.expect("attn_logit_softcapping")
    config.expect("final_logit_softcapping")
    kinds = partial(_read_kinds, both_ways=both_ways)
    shape = decoder_shape.read_decoder(
        config, kinds=kinds, activation=("hidden_activation", "gelu_pytorch_tanh")
    )
    scale = config.number("query_pre_attn_scalar") ** -0.5
    config.finish(_HARMLESS)
    return replace(
        shape,
        scale=scale,
        norms=_NORMS,
        embedding_scale=shape.hidden**0.5,
        wide=True,
    )


def _read_kinds(config: Settings, head_dim: int, *, both_ways: bool) -> Kinds:
    """Layers near and far, each with angles of its own; a rescaling is of the far ones'.

    `both_ways`: half of a window lies before a token and half behind it.
    """
    ropes, window = _read_ropes(config, head_dim), config.integer("sliding_window")
    if both_ways:
        window = window // 2 + 1
    kinds = {FULL: LayerKind(ropes[FULL]), SLIDING: LayerKind(ropes[SLIDING], window)}
    pattern = config.integer("_sliding_window_pattern", _PATTERN)
    pattern = config.integer("sliding_window_pattern", pattern)
    layers = range(1, config.integer("num_hidden_layers") + 1)
    return read_kinds(config, kinds, [SLIDING if at % pattern else FULL for at in layers])


def _read_ropes(config: Settings, head_dim: int) -> dict[str, Rope]:
    basis = Basis(_THETA[FULL], head_dim, config.integer("max_position_embeddings"))
    parameters = config.section("rope_parameters")
    if parameters is not None:
        return read_ropes(parameters, _THETA, basis)
    far = replace(basis, theta=config.number("rope_theta", _THETA[FULL]))
    near = replace(basis, theta=config.number("rope_local_base_freq", _THETA[SLIDING]))
    return {
        FULL: read_scaling(config.section("rope_scaling"), far),
        SLIDING: read_scaling(None, near),
    }


def _project(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> Heads:
    queries, keys, values = decoder.project(graph, shape, at, x, bias=False)
    return (
        decoder.head_norm(graph, shape, f"{at}.self_attn.q_norm", queries, shape.heads),
        decoder.head_norm(graph, shape, f"{at}.self_attn.k_norm", keys, shape.kv_heads),
        values,
    )

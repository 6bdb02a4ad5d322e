"""What decoder-only families share: pre-norm blocks and SwiGLU around attention.

Owns the blocks that families are composed of; attention over the cache, and with it the graph's
inputs, is one of the forms of attention.py. A family gives its own projection of queries, keys
and values and its own feed-forward; what no family shares stays in the family's file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir

from appliance.bundle.manifest import DecoderSpec
from appliance.errors import CheckpointError
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.experts import Mixture
from installer.checkpoint.graph.rope import Rope, read_rope
from installer.checkpoint.graph.table import Table
from installer.checkpoint.settings import Settings

_HEAD_UNIT = 16

HARMLESS_KEYS = frozenset(
    {
        *("architectures", "model_type", "transformers_version", "torch_dtype", "dtype"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "use_cache"),
        *("attention_dropout", "_name_or_path"),
    }
)
"""Keys that name things, steer training, or say what the engine decides for itself."""


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """The numbers of a decoder. Counts, but for `epsilon`.

    Attributes:
        mixture: of the feed-forwards, in families that have experts.
    """

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    context: int
    epsilon: float
    rope: Rope
    tied: bool
    mixture: Mixture | None = None

    def spec(self) -> DecoderSpec:
        return DecoderSpec(
            layers=self.layers,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            vocab_size=self.vocab,
            context_length=self.context,
        )


Heads = tuple[ir.Value, ir.Value, ir.Value]


class Attention(Protocol):
    """One form of attention in one graph, made with the graph's inputs declared.

    Attributes:
        ids: the tokens, [B, S].
    """

    ids: ir.Value

    def attend(self, layer: int, heads: Heads) -> ir.Value:
        """Queries, keys and values of a layer -> [B, S, heads * head_dim]."""
        ...

    def choose(self, x: ir.Value) -> ir.Value | None:
        """x [B, S, hidden] -> the rows whose logits are wanted; None for a graph without."""
        ...

    def conclude(self, scores: ir.Value) -> None:
        """Make outputs of the chosen rows' scores [rows, vocab]."""
        ...


Form = Callable[[GraphBuilder, DecoderShape], Attention]


class Projection(Protocol):
    """x [B, S, hidden] -> queries, keys, values [B, S, heads * head_dim] of layer `at`."""

    def __call__(self, graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> Heads: ...


class FeedForward(Protocol):
    """x [B, S, hidden] -> [B, S, hidden] of layer `at`."""

    def __call__(
        self, graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value
    ) -> ir.Value: ...


def read_decoder(config: Settings, *, tied: bool = False) -> DecoderShape:
    """Read the keys that every decoder has; `tied` is the architecture's default."""
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    head_dim = config.integer("head_dim", hidden // heads)
    if head_dim % _HEAD_UNIT:
        raise CheckpointError(
            f"config.json: head_dim {head_dim} is not a multiple of {_HEAD_UNIT}",
            hint="the attention kernel needs it to be",
        )
    config.expect("hidden_act", "silu")
    return DecoderShape(
        vocab=config.integer("vocab_size"),
        hidden=hidden,
        layers=config.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=config.integer("num_key_value_heads", heads),
        head_dim=head_dim,
        inner=config.integer("intermediate_size"),
        context=config.integer("max_position_embeddings"),
        epsilon=config.number("rms_norm_eps"),
        rope=read_rope(config, head_dim),
        tied=config.flag("tie_word_embeddings", tied),
    )


def refuse_windows(config: Settings) -> None:
    """Raise CheckpointError if any layer attends through a sliding window."""
    config.expect("use_sliding_window", False)
    config.expect_each("layer_types", "full_attention")
    config.ignore("sliding_window", "max_window_layers")


def build_decoder(
    graph: GraphBuilder,
    shape: DecoderShape,
    form: Form,
    project: Projection,
    feed_forward: FeedForward,
) -> None:
    """Write the whole decoder into `graph`.

    The residual stream and each block's result stay apart until the next norm, which adds them
    in the same kernel.
    """
    attention = form(graph, shape)
    embeddings = Table(graph, "model.embed_tokens.weight", shape.vocab, shape.hidden)

    stream, result = graph.residual(embeddings.lookup(attention.ids)), None
    for layer in range(shape.layers):
        at = f"model.layers.{layer}"
        x, stream = _norm(graph, shape, f"{at}.input_layernorm", stream, result)
        attended = attention.attend(layer, project(graph, shape, at, x))
        inner = shape.heads * shape.head_dim
        result = graph.linear(attended, f"{at}.self_attn.o_proj", inner, shape.hidden)
        x, stream = _norm(graph, shape, f"{at}.post_attention_layernorm", stream, result)
        result = feed_forward(graph, shape, at, x)

    assert result is not None
    chosen = attention.choose(graph.add(stream, result))
    if chosen is None:
        return
    chosen, _ = _norm(graph, shape, "model.norm", chosen, None)
    head = embeddings
    if not shape.tied:
        head = Table(graph, "lm_head.weight", shape.vocab, shape.hidden)
    attention.conclude(head.scores(chosen))


def project(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value, *, bias: bool) -> Heads:
    """Three linear layers, with or without biases: the plain projection."""

    def linear(name: str, heads: int) -> ir.Value:
        full = f"{at}.self_attn.{name}_proj"
        return graph.linear(x, full, shape.hidden, heads * shape.head_dim, bias=bias)

    return linear("q", shape.heads), linear("k", shape.kv_heads), linear("v", shape.kv_heads)


def swiglu(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> ir.Value:
    """down(silu(gate(x)) * up(x)); Shazeer, GLU Variants Improve Transformer (2020)."""
    gate = graph.linear(x, f"{at}.mlp.gate_proj", shape.hidden, shape.inner)
    up, scale = graph.unscaled(x, f"{at}.mlp.up_proj", shape.hidden, shape.inner)
    silu = graph.op("Mul", gate, graph.op("Sigmoid", gate))
    product = graph.op("Mul", silu, up)
    return graph.linear(product, f"{at}.mlp.down_proj", shape.inner, shape.hidden, scale=scale)


def head_norm(
    graph: GraphBuilder, shape: DecoderShape, name: str, x: ir.Value, heads: int
) -> ir.Value:
    """RMS norm of each head on its own: x [B, S, heads * head_dim], gain [head_dim]."""
    split = graph.op("Reshape", x, graph.constant([0, 0, heads, shape.head_dim]))
    normed = graph.norm(split, f"{name}.weight", shape.head_dim, shape.epsilon)
    return graph.op("Reshape", normed, graph.constant([0, 0, heads * shape.head_dim]))


def _norm(
    graph: GraphBuilder, shape: DecoderShape, name: str, stream: ir.Value, result: ir.Value | None
) -> tuple[ir.Value, ir.Value]:
    """RMS norm of stream + result; returns it and the sum."""
    weight = f"{name}.weight"
    if result is None:
        return graph.norm(stream, weight, shape.hidden, shape.epsilon), stream
    return graph.norm_sum(stream, result, weight, shape.hidden, shape.epsilon)

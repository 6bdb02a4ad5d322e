"""What decoder-only families share: norms, gated layers and sums around attention.

Owns the blocks that families are composed of; attention over the cache, and with it the graph's
inputs, is one of the forms of attention.py. A family gives its own projection of queries, keys
and values and its own feed-forward; what no family shares stays in the family's file. In what the
layers of one decoder differ from each other: kinds.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import msgspec
import onnx_ir as ir

from appliance.bundle.specs import DecoderSpec
from appliance.errors import CheckpointError
from installer.checkpoint.graph.builder import Activation, GraphBuilder
from installer.checkpoint.graph.divisors import Divisors, divisors
from installer.checkpoint.graph.experts import Mixture
from installer.checkpoint.graph.kinds import Kinds, read_alike
from installer.checkpoint.graph.recurrent import Recurrent
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
class Norms:
    """The RMS norms of a block, by the names of their tensors.

    Attributes:
        before_attention, before_feed_forward: of what goes in; None is none.
        after_attention, after_feed_forward: of what comes out, before it is added; None is none.
        heads: whether queries and keys have some, too.
        centred: whether those before the blocks, and the last, subtract the mean first.
        offset: what is added to each stored gain.
    """

    before_attention: str | None = "input_layernorm"
    before_feed_forward: str | None = "post_attention_layernorm"
    after_attention: str | None = None
    after_feed_forward: str | None = None
    heads: bool = False
    centred: bool = False
    offset: float = 0.0


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """The numbers of a decoder. Counts, but for those described.

    Attributes:
        epsilon: of all norms.
        kinds: in what each layer differs from the others.
        scale: what products of queries and keys are multiplied by.
        embedding_scale: what the token's vector is multiplied by.
        result_scale: what each block's result is multiplied by before it is added. The stream is
            kept divided by it, which norms undo, so that nothing has to be multiplied.
        score_scale: what the scores of tokens are multiplied by.
        wide: whether sums over layers outgrow 16 bits, where other numbers have so many.
        root: in front of the names of all tensors but the output's.
        output: the name of the table of outputs, where it is one of its own.
        parallel: whether both blocks of a layer read the same, and are added together.
        mixture: of the feed-forwards, in families that have experts.
        sinks: whether each head has a number that takes part in the softmax and has no value.
        input_bias: whether queries, keys and values have biases, where checkpoints differ in it.
        output_bias: whether what attention gives to the stream has a bias.
        recurrent: the layers that keep a running state in place of keys and values; None: all
            attend.
        predicts: whether the bundle has a head that predicts further tokens from the states behind
            the last layer. It is a layer of the last one of `kinds`, beyond those of the decoder.
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
    kinds: Kinds
    tied: bool
    scale: float
    norms: Norms = Norms()
    embedding_scale: float = 1.0
    result_scale: float = 1.0
    score_scale: float = 1.0
    wide: bool = False
    root: str = "model"
    output: str = "lm_head.weight"
    parallel: bool = False
    mixture: Mixture | None = None
    sinks: bool = False
    input_bias: bool = False
    output_bias: bool = False
    recurrent: Recurrent | None = None
    predicts: bool = False

    def divisors(self, graph: GraphBuilder) -> Divisors:
        """What its numbers are divided by in this graph."""
        norms = self.norms
        return divisors(
            graph.shrink,
            normed=None not in (norms.after_attention, norms.after_feed_forward),
            heads=norms.heads,
            wide=self.wide,
            bare=norms.before_attention is None,
        )

    def recurs(self, layer: int) -> bool:
        """Whether it keeps a running state."""
        return self.recurrent is not None and layer in self.recurrent.layers

    def place(self, layer: int) -> int:
        """Its number among those that keep the same: keys and values, or a running state."""
        if self.recurrent is None:
            return layer
        own = self.recurs(layer)
        return sum(self.recurs(other) == own for other in range(layer))

    def spec(self) -> DecoderSpec:
        recurrent = self.recurrent
        return DecoderSpec(
            layers=self.layers - (0 if recurrent is None else len(recurrent.layers)),
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            vocab_size=self.vocab,
            context_length=self.context,
            recurrent=msgspec.UNSET if recurrent is None else recurrent.spec(),
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


@runtime_checkable
class Enriched(Protocol):
    """What a form may have besides: more than words goes through the decoder."""

    def embed(self, words: ir.Value) -> ir.Value:
        """The words' embeddings [B, S, hidden] -> what enters the first layer."""
        ...

    def deepen(self, layer: int, result: ir.Value) -> ir.Value:
        """A layer's result [B, S, hidden], with what else is added to the stream behind it."""
        ...


ReadKinds = Callable[[Settings, int], Kinds]
"""config.json and the size of a head -> in what each layer differs."""
Form = Callable[[GraphBuilder, DecoderShape], Attention]


class Projection(Protocol):
    """x [B, S, hidden] -> queries, keys, values [B, S, heads * head_dim] of layer `at`."""

    def __call__(self, graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> Heads: ...


class Conclusion(Protocol):
    """What the heads of layer `at` read, [B, S, heads * head_dim] -> [B, S, hidden]."""

    def __call__(
        self, graph: GraphBuilder, shape: DecoderShape, at: str, attended: ir.Value
    ) -> ir.Value: ...


class FeedForward(Protocol):
    """x [B, S, hidden] -> [B, S, hidden] of layer `at`."""

    def __call__(
        self, graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value
    ) -> ir.Value: ...


class Recurrence(Protocol):
    """x [B, S, hidden] -> what `layer`, called `at`, adds to the stream by its running state."""

    def __call__(
        self,
        graph: GraphBuilder,
        shape: DecoderShape,
        attention: Attention,
        layer: int,
        at: str,
        x: ir.Value,
    ) -> ir.Value: ...


def read_decoder(
    config: Settings,
    *,
    tied: bool = False,
    kinds: ReadKinds = read_alike,
    activation: tuple[str, str] = ("hidden_act", "silu"),
    head_dim: int | None = None,
) -> DecoderShape:
    """Read the keys that every decoder has.

    Args:
        tied: the architecture's default.
        kinds: reads what differs between layers.
        activation: the key that names the activation, and the only name there may be.
        head_dim: of the heads in the cache, if config.json does not say it.
    """
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    head_dim = head_dim or config.integer("head_dim", hidden // heads)
    if head_dim % _HEAD_UNIT:
        raise CheckpointError(
            f"config.json: head_dim {head_dim} is not a multiple of {_HEAD_UNIT}",
            hint="the attention kernel needs it to be",
        )
    config.expect(*activation)
    layers = kinds(config, head_dim)
    context = config.integer("max_position_embeddings")
    context = max(context, *(kind.rope.reach for kind in layers))
    return DecoderShape(
        vocab=config.integer("vocab_size"),
        hidden=hidden,
        layers=config.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=config.integer("num_key_value_heads", heads),
        head_dim=head_dim,
        inner=config.integer("intermediate_size"),
        context=context,
        epsilon=config.number("rms_norm_eps"),
        kinds=tuple(kind.within(context) for kind in layers),
        tied=config.flag("tie_word_embeddings", tied),
        scale=head_dim**-0.5,
    )


def build_decoder(
    graph: GraphBuilder,
    shape: DecoderShape,
    form: Form,
    project: Projection,
    feed_forward: FeedForward,
    conclude: Conclusion | None = None,
    recur: Recurrence | None = None,
) -> tuple[Attention, ir.Value]:
    """Write the whole decoder into `graph`; the form, and the states behind the last layer.

    The residual stream and each block's result stay apart until the next norm, which adds them
    in the same kernel.
    """
    attention = form(graph, shape)
    embeddings = input_table(graph, shape)
    norms, parts = shape.norms, shape.divisors(graph)

    found = embeddings.lookup(attention.ids)
    enriched = attention if isinstance(attention, Enriched) else None
    if enriched is not None:
        found = enriched.embed(found)
    factor = shape.embedding_scale / shape.result_scale / parts.stream
    stream = graph.residual(found, factor=factor, wide=shape.wide)
    result: ir.Value | None = None
    for layer in range(shape.layers):
        at = f"{shape.root}.layers.{layer}"
        name, by = norms.before_attention, parts.into_attention
        x, stream = _into_block(graph, shape, at, name, stream, result, by)
        if shape.recurs(layer):
            assert recur is not None
            result = recur(graph, shape, attention, layer, at, x)
        else:
            attended = attention.attend(layer, project(graph, shape, at, x))
            result = (conclude or conclude_plainly)(graph, shape, at, attended)
        by = parts.into_attention * parts.out_of_attention
        result = _norm_after(graph, shape, at, norms.after_attention, result, by)
        name, by = norms.before_feed_forward, parts.into_feed_forward
        if shape.parallel:
            x = graph.divide(x, by / parts.into_attention)
            result = graph.add(result, feed_forward(graph, shape, at, x))
        else:
            x, stream = _into_block(graph, shape, at, name, stream, result, by)
            result = feed_forward(graph, shape, at, x)
            result = _norm_after(graph, shape, at, norms.after_feed_forward, result, by**2)
        if enriched is not None:
            result = enriched.deepen(layer, result)

    assert result is not None
    states = graph.add(stream, result)
    chosen = attention.choose(states)
    if chosen is not None:
        by = 1 / shape.score_scale
        chosen, _ = norm_of_sum(graph, shape, f"{shape.root}.norm", chosen, None, by)
        attention.conclude(output_table(graph, shape, embeddings).scores(chosen))
    return attention, states


def input_table(graph: GraphBuilder, shape: DecoderShape) -> Table:
    """The tokens' vectors."""
    return Table(graph, f"{shape.root}.embed_tokens.weight", shape.vocab, shape.hidden)


def output_table(graph: GraphBuilder, shape: DecoderShape, embeddings: Table) -> Table:
    """What scores are products with."""
    if shape.tied:
        return embeddings
    return Table(graph, shape.output, shape.vocab, shape.hidden)


def project(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value, *, bias: bool) -> Heads:
    """Three linear layers, with or without biases: the plain projection."""

    heads = {"q": shape.heads, "k": shape.kv_heads, "v": shape.kv_heads}
    outer = {f"{at}.self_attn.{n}_proj": count * shape.head_dim for n, count in heads.items()}
    queries, keys, values = graph.linears(x, outer, shape.hidden, bias=bias)
    return queries, keys, values


def conclude_plainly(
    graph: GraphBuilder, shape: DecoderShape, at: str, attended: ir.Value
) -> ir.Value:
    """One linear layer: the plain conclusion."""
    by, name = shape.divisors(graph).out_of_attention, f"{at}.self_attn.o_proj"
    inner, bias = shape.heads * shape.head_dim, shape.output_bias
    return graph.linear(
        graph.divide(attended, by), name, inner, shape.hidden, bias=bias, divided=by
    )


def swiglu(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> ir.Value:
    """down(silu(gate(x)) * up(x)); Shazeer, GLU Variants Improve Transformer (2020)."""
    return gated(graph, shape, x, f"{at}.mlp", shape.inner)


def geglu(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> ir.Value:
    """down(gelu(gate(x)) * up(x)), gelu by tanh; the same source."""
    return gated(graph, shape, x, f"{at}.mlp", shape.inner, "gelu_tanh")


def gated(
    graph: GraphBuilder,
    shape: DecoderShape,
    x: ir.Value,
    at: str,
    inner: int,
    activation: Activation = "silu",
) -> ir.Value:
    """down(activation(gate(x)) * up(x)) of the module `at`, whose width is `inner`."""
    by, names = shape.divisors(graph).into_feed_forward, (f"{at}.gate_proj", f"{at}.up_proj")
    product, scale = graph.gated(x, *names, shape.hidden, inner, activation, divided=by)
    return graph.linear(product, f"{at}.down_proj", inner, shape.hidden, scale=scale)


def head_norm(
    graph: GraphBuilder, shape: DecoderShape, name: str, x: ir.Value, heads: int
) -> ir.Value:
    """RMS norm of each head on its own: x [B, S, heads * head_dim], gain [head_dim]."""
    epsilon = shape.epsilon / shape.divisors(graph).into_attention ** 2
    return graph.norm_heads(x, heads, f"{name}.weight", shape.head_dim, epsilon, shape.norms.offset)


def norm_of_sum(
    graph: GraphBuilder,
    shape: DecoderShape,
    name: str,
    stream: ir.Value,
    result: ir.Value | None,
    divided: float = 1.0,
    *,
    wide: bool = False,
) -> tuple[ir.Value, ir.Value]:
    """RMS norm of stream + result, `divided` by a number; returns it and the sum."""
    epsilon = shape.epsilon / (shape.divisors(graph).stream * shape.result_scale) ** 2
    gain = (f"{name}.weight", shape.hidden, epsilon, shape.norms.offset)
    centred = shape.norms.centred
    if result is None:
        return graph.norm(stream, *gain, wide=wide, divided=divided, centred=centred), stream
    return graph.norm_sum(stream, result, *gain, divided=divided, centred=centred)


def _into_block(
    graph: GraphBuilder,
    shape: DecoderShape,
    at: str,
    name: str | None,
    stream: ir.Value,
    result: ir.Value | None,
    divided: float,
) -> tuple[ir.Value, ir.Value]:
    """What a block reads of stream + result, normed where there is a norm; and the sum."""
    if name is not None:
        return norm_of_sum(graph, shape, f"{at}.{name}", stream, result, divided)
    total = stream if result is None else graph.add(stream, result)
    return graph.operand(total), total


def _norm_after(
    graph: GraphBuilder,
    shape: DecoderShape,
    at: str,
    name: str | None,
    result: ir.Value,
    divided: float,
) -> ir.Value:
    """RMS norm of what a block adds to the stream, where there is one; here it is `divided`."""
    if name is None:
        return result
    epsilon = shape.epsilon / divided**2
    gain = (f"{at}.{name}.weight", shape.hidden, epsilon, shape.norms.offset)
    return graph.norm(result, *gain, wide=shape.wide, divided=shape.divisors(graph).stream)

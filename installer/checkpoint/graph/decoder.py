"""What decoder-only families share: norms, gated layers and sums around attention.

Owns the blocks that families are composed of; attention over the cache, and with it the graph's
inputs, is one of the forms of attention.py. A family gives its own projection of queries, keys
and values and its own feed-forward; what no family shares stays in the family's file. What numbers
a decoder has: decoder_shape.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, Protocol, runtime_checkable

import onnx_ir as ir

from installer.checkpoint.graph.activations import Activation
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.table import Table

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


Block = Literal["attention", "feedforward"]


class Joining(Protocol):
    """What a block of layer `at` gave, `divided` by a number, in the stream [B, S, hidden]: what
    goes on of the stream, and what is added to it. In place of a norm behind the block."""

    def __call__(
        self,
        graph: GraphBuilder,
        shape: DecoderShape,
        at: str,
        block: Block,
        stream: ir.Value,
        result: ir.Value,
        divided: float,
    ) -> tuple[ir.Value, ir.Value]: ...


class Beside(Protocol):
    """What a family computes beside the blocks of one graph."""

    def begin(self, ids: ir.Value, stream: ir.Value) -> None:
        """Told of the tokens [B, S] and what enters the first layer [B, S, hidden]."""
        ...

    def behind(
        self, layer: int, at: str, stream: ir.Value, result: ir.Value
    ) -> tuple[ir.Value, ir.Value | None]:
        """What goes on behind a layer in place of the stream and the result that is added to it."""
        ...


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


class Mixing(Protocol):
    """x [B, S, hidden] -> what `layer`, called `at`, adds to the stream, by a running state or by
    attention of its own kind."""

    def __call__(
        self,
        graph: GraphBuilder,
        shape: DecoderShape,
        attention: Attention,
        layer: int,
        at: str,
        x: ir.Value,
    ) -> ir.Value: ...


def build_decoder(
    graph: GraphBuilder,
    shape: DecoderShape,
    form: Form,
    project: Projection,
    feed_forward: FeedForward,
    conclude: Conclusion | None = None,
    recur: Mixing | None = None,
    attend: Mixing | None = None,
    beside: Beside | None = None,
    join: Joining | None = None,
) -> tuple[Attention, ir.Value]:
    """Write the whole decoder into `graph`; the form, and the states behind the last layer.

    The residual stream and each block's result stay apart until the next norm, which adds them
    in the same kernel.
    """
    attention = form(graph, shape)
    embeddings = input_table(graph, shape)
    joined = join or _normed

    found = embeddings.lookup(attention.ids)
    if shape.embedding_normed:
        found = graph.norm_plainly(found, shape.hidden, shape.epsilon)
    enriched = attention if isinstance(attention, Enriched) else None
    if enriched is not None:
        found = enriched.embed(found)
    factor = shape.embedding_scale / shape.result_scale / shape.divisors(graph).stream
    stream = graph.residual(found, factor=factor, wide=shape.wide)
    if beside is not None:
        beside.begin(attention.ids, stream)
    result: ir.Value | None = None
    for layer in range(shape.layers):
        at, own = f"{shape.root}.layers.{layer}", shape.of(layer)
        norms, parts = own.norms, own.divisors(graph)
        name, by = norms.before_attention, parts.into_attention
        if shape.mixes(layer):
            x, stream = _into_block(graph, own, at, name, stream, result, by)
            mix = recur if shape.recurs(layer) else attend
            if mix is not None:
                result = mix(graph, own, attention, layer, at, x)
            else:
                attended = attention.attend(layer, project(graph, own, at, x))
                result = (conclude or conclude_plainly)(graph, own, at, attended)
            by = parts.into_attention * parts.out_of_attention
            stream, result = joined(graph, own, at, "attention", stream, result, by)
        name, by = norms.before_feed_forward, parts.into_feed_forward
        if shape.parallel:
            assert result is not None
            x = graph.divide(x, by / parts.into_attention)
            result = graph.add(result, feed_forward(graph, own, at, x))
        elif shape.feeds(layer):
            x, stream = _into_block(graph, own, at, name, stream, result, by)
            result = feed_forward(graph, own, at, x)
            stream, result = joined(graph, own, at, "feedforward", stream, result, by**2)
        assert result is not None
        if enriched is not None:
            result = enriched.deepen(layer, result)
        if beside is not None:
            stream, result = beside.behind(layer, at, stream, result)

    states = stream if result is None else graph.add(stream, result)
    chosen = attention.choose(states)
    if chosen is not None:
        by = (shape.score_cap or 1.0) / shape.score_scale
        last = norms.offset if norms.last_offset is None else norms.last_offset
        own = replace(shape, norms=replace(norms, offset=last))
        chosen, _ = norm_of_sum(graph, own, f"{shape.root}.{norms.last}", chosen, None, by)
        scores = output_table(graph, shape, embeddings).scores(chosen)
        attention.conclude(_capped(graph, shape, scores))
    return attention, states


def _capped(graph: GraphBuilder, shape: DecoderShape, scores: ir.Value) -> ir.Value:
    """Scores that are divided by their cap, bent towards it and times it."""
    if shape.score_cap is None:
        return scores
    cap = graph.parameter(graph.constant([shape.score_cap]))
    return graph.op("Mul", graph.op("Tanh", scores), cap)


def input_table(graph: GraphBuilder, shape: DecoderShape) -> Table:
    """The tokens' vectors."""
    return Table(graph, f"{shape.root}.embed_tokens.weight", shape.vocab, shape.hidden)


def output_table(graph: GraphBuilder, shape: DecoderShape, embeddings: Table) -> Table:
    """What scores are products with."""
    if shape.tied:
        return embeddings
    return Table(graph, shape.output, shape.vocab, shape.hidden)


def project(
    graph: GraphBuilder,
    shape: DecoderShape,
    at: str,
    x: ir.Value,
    *,
    bias: bool,
    module: str = "self_attn",
) -> Heads:
    """Three linear layers of `module`, with or without biases: the plain projection."""

    heads = {"q": shape.heads, "k": shape.kv_heads, "v": shape.kv_heads}
    outer = {f"{at}.{module}.{n}_proj": count * shape.head_dim for n, count in heads.items()}
    queries, keys, values = graph.linears(x, outer, shape.hidden, bias=bias)
    return queries, keys, values


def project_normed(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> Heads:
    """The same without biases; all query heads are normed as one, and all key heads."""
    queries, keys, values = project(graph, shape, at, x, bias=False)
    epsilon = shape.epsilon / shape.divisors(graph).into_attention ** 2

    def norm(name: str, y: ir.Value, heads: int) -> ir.Value:
        gain = f"{at}.self_attn.{name}_norm.weight"
        return graph.norm(y, gain, heads * shape.head_dim, epsilon)

    return norm("q", queries, shape.heads), norm("k", keys, shape.kv_heads), values


def conclude_plainly(
    graph: GraphBuilder,
    shape: DecoderShape,
    at: str,
    attended: ir.Value,
    name: str = "o_proj",
    module: str = "self_attn",
) -> ir.Value:
    """One linear layer of `module`, called `name`: the plain conclusion."""
    by, name = shape.divisors(graph).out_of_attention, f"{at}.{module}.{name}"
    inner, bias = shape.heads * shape.head_dim, shape.output_bias
    return graph.linear(
        graph.divide(attended, by), name, inner, shape.hidden, bias=bias, divided=by
    )


def narrow_heads(graph: GraphBuilder, x: ir.Value, heads: int, width: int, own: int) -> ir.Value:
    """Of each head of x [B, S, heads * width] the first `own` numbers, [B, S, heads * own]."""
    apart = graph.op("Reshape", x, graph.constant([0, 0, heads, width]))
    ends = (graph.constant([number]) for number in (0, own, 3))
    return graph.op("Reshape", graph.op("Slice", apart, *ends), graph.constant([0, 0, heads * own]))


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


def norm_after(
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
    epsilon = shape.after_epsilon / divided**2
    gain = (f"{at}.{name}.weight", shape.hidden, epsilon, shape.norms.offset)
    return graph.norm(result, *gain, wide=shape.wide, divided=shape.divisors(graph).stream)


def _normed(
    graph: GraphBuilder,
    shape: DecoderShape,
    at: str,
    block: Block,
    stream: ir.Value,
    result: ir.Value,
    divided: float,
) -> tuple[ir.Value, ir.Value]:
    """The plain joining: the stream, and what is added to it."""
    norms = shape.norms
    name = norms.after_attention if block == "attention" else norms.after_feed_forward
    return stream, norm_after(graph, shape, at, name, result, divided)

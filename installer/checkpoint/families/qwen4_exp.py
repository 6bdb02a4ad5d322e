"""Qwen4-Exp, words alone: Qwen3.5's layers with experts between several residual streams.

Layers that attend read the blocks of tokens that an index finds; what a few layers know besides is
said by tables of hashed n-grams. What sees images and the head that predicts further tokens are
left out. Computed by the processor alone: docs/decisions/0306-qwen4-and-lfm3.md.
Reference: `Qwen4ExpForCausalLM` and `Qwen4ExpForConditionalGeneration` (2026).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import onnx_ir as ir

from appliance.errors import CheckpointError
from installer.checkpoint.expert_weights import found
from installer.checkpoint.families import qwen2_moe, qwen3_5
from installer.checkpoint.graph import decoder, decoder_shape, experts, gated_delta
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Attention, Form
from installer.checkpoint.graph.decoder_shape import AroundDecoder
from installer.checkpoint.graph.gated_delta import Kind
from installer.checkpoint.graph.gated_heads import GatedHeads
from installer.checkpoint.graph.indexed import Search, Searchable, behind, widen
from installer.checkpoint.graph.kinds import FULL
from installer.checkpoint.graph.ngrams import EXACT, Ngrams, NgramSignal
from installer.checkpoint.graph.pooled_blocks import PooledBlocks, PooledSearch
from installer.checkpoint.graph.recurrent import Remembering
from installer.checkpoint.graph.residual_streams import Streams
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

_INDEXED = "indexed_attention"
"""What the reference calls a layer that attends."""
_UNIT = 16
_BESIDE = ("language_model_only",)


@dataclass(frozen=True, slots=True)
class QwenShape(AroundDecoder):
    """A decoder with room for an index in its cached heads.

    Attributes:
        head_dim: of its own heads.
        gate: what bends the gates of what states say.
        streams: the residual streams.
        index: of the layers that attend.
        ngrams: of some layers; None: there are none.
    """

    head_dim: int
    gate: Literal["silu", "sigmoid"]
    streams: Streams
    index: PooledBlocks
    ngrams: Ngrams | None


def read(checkpoint: Checkpoint) -> QwenShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["Qwen4ExpForCausalLM"])
    return _read(config, tied=False)


def read_words(checkpoint: Checkpoint) -> QwenShape:
    """The language model alone of a checkpoint that sees images."""
    architecture = "Qwen4ExpForConditionalGeneration"
    text, tied = qwen3_5.text_of(checkpoint, architecture, beside=_BESIDE)
    return _read(text, tied=tied)


def build(graph: GraphBuilder, shape: QwenShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    own = shape.decoder.located(graph.tensors)
    _Decoder(graph, replace(shape, decoder=own), form(graph, own)).write()


class _Decoder:
    """The layers of one graph."""

    def __init__(self, graph: GraphBuilder, shape: QwenShape, attention: Attention) -> None:
        assert isinstance(attention, Searchable)
        assert isinstance(attention, Remembering)
        self._graph = graph
        self._shape = shape
        self._attention = attention
        self._plain = replace(shape.decoder, head_dim=shape.head_dim)
        """With its own heads."""
        self._heads = GatedHeads(qwen3_5.project_gated)
        places = behind(shape.decoder.kv_heads, shape.head_dim, shape.index.width)
        search = Search(graph, attention, places)
        self._search = search
        narrow = replace(shape.decoder, head_dim=shape.index.width)
        self._found = PooledSearch(graph, narrow, shape.index, search)

    def write(self) -> None:
        graph, shape, own = self._graph, self._shape, self._shape.decoder
        attention, streams = self._attention, shape.streams
        embeddings = decoder.input_table(graph, own)
        signal = None if shape.ngrams is None else NgramSignal(shape.ngrams, streams)
        x = streams.begin(graph, embeddings.lookup(attention.ids))
        for layer in range(own.layers):
            at = f"{own.root}.layers.{layer}"
            if signal is not None and shape.ngrams is not None and layer in shape.ngrams.layers:
                x = signal.add(graph, attention, layer, at, attention.ids, x)
            x = self._around(f"{at}.attn_hyper_connection", x, partial(self._mix, layer, at))
            x = self._around(f"{at}.mlp_hyper_connection", x, partial(self._feed_forward, at))
        states, _ = streams.mix(graph, f"{own.root}.hyper_connection_mixer", x)
        chosen = attention.choose(states)
        if chosen is not None:
            attention.conclude(decoder.output_table(graph, own, embeddings).scores(chosen))

    def _around(self, at: str, x: ir.Value, block: Callable[[ir.Value], ir.Value]) -> ir.Value:
        """The streams x with what a block adds to them."""
        streams = self._shape.streams
        read, normed = streams.mix(self._graph, at, x)
        return streams.take_in(self._graph, at, x, normed, block(read))

    def _mix(self, layer: int, at: str, x: ir.Value) -> ir.Value:
        graph, shape = self._graph, self._shape
        if shape.decoder.recurs(layer):
            project = gated_delta.project_apart
            return gated_delta.mix(
                *(graph, shape.decoder, self._attention, layer, at, x),
                project=project,
                kind=Kind(gate=shape.gate),
            )
        fresh, bias = self._find(layer, f"{at}.self_attn.indexer", x)
        heads = self._heads.project(graph, self._plain, at, x)
        heads = widen(graph, shape.decoder, shape.head_dim, heads, fresh)
        attended = self._attention.attend(layer, heads, bias)
        widths = (shape.decoder.head_dim, shape.head_dim)
        attended = decoder.narrow_heads(graph, attended, shape.decoder.heads, *widths)
        return self._heads.conclude(graph, self._plain, at, attended)

    def _find(self, layer: int, at: str, x: ir.Value) -> tuple[ir.Value, ir.Value]:
        """A key by which later tokens find these, [B, S, width], and what shuts others out."""
        graph, index, own = self._graph, self._shape.index, self._shape.decoder
        widths = [index.heads * index.width, index.width]
        both = graph.linear(x, f"{at}.index_qk_proj", own.hidden, sum(widths))
        queries, fresh = graph.ops("Split", both, graph.constant(widths), outputs=2, axis=-1)
        narrow = replace(own, head_dim=index.width)
        queries = decoder.head_norm(graph, narrow, f"{at}.q_layernorm", queries, index.heads)
        form = self._attention
        queries = form.turn(layer, queries, index.heads, index.width, interleaved=False)
        keys = self._search.recall(layer, fresh, own.kv_heads)
        return fresh, self._found.find(form, layer, at, queries, keys)

    def _feed_forward(self, at: str, x: ir.Value) -> ir.Value:
        weights = found
        return qwen2_moe.feed_forward(self._graph, self._shape.decoder, at, x, weights)


def _read(config: Settings, *, tied: bool) -> QwenShape:
    config.assume("norm_topk_prob", True)
    # Of layers without experts, which there are none of.
    config.assume("intermediate_size", config.integer("moe_intermediate_size"))
    config.assume("rms_norm_eps", 1e-6)
    config.expect("hidden_act", "silu")
    shape = qwen3_5.read_hybrid(config, tied=tied, attending=(FULL, _INDEXED))
    head_dim, index = shape.head_dim, _read_index(config)
    share, rest = divmod(index.width, 2 * shape.kv_heads)
    if rest or share % _UNIT:
        raise CheckpointError(
            f"config.json: an index of {index.width} numbers does not fit behind {shape.kv_heads} "
            "heads of keys",
            hint="the checkpoint's config.json belongs to another model",
        )
    streams = Streams(
        count=config.integer("hc_count", 4),
        hidden=shape.hidden,
        rank=config.integer("hc_lowrank", 320),
        epsilon=shape.epsilon,
    )
    ngrams = _read_ngrams(config, shape.vocab, shape.hidden)
    assert shape.recurrent is not None
    further = None if ngrams is None else ngrams.further(streams)
    if ngrams is not None and not shape.recurrent.layers.issuperset(ngrams.layers):
        raise CheckpointError(
            f"config.json: ple_layer_ids = {[layer + 1 for layer in ngrams.layers]} has layers "
            "without a running state",
            hint="the checkpoint's config.json belongs to another model",
        )
    shape = replace(
        shape,
        head_dim=head_dim + share,
        mixture=qwen2_moe.read_mixture(config, shape.layers),
        recurrent=replace(shape.recurrent, further=further),
    )
    gate = config.one_of("output_gate_type", "silu", "sigmoid")
    config.ignore("mtp", *experts.HARMLESS_KEYS)
    config.finish(decoder_shape.HARMLESS_KEYS)
    return QwenShape(
        shape, head_dim, "sigmoid" if gate == "sigmoid" else "silu", streams, index, ngrams
    )


def _read_index(config: Settings) -> PooledBlocks:
    config.expect("indexer_kv_heads", 1)
    size, budget = config.integer("indexer_compress_ratio"), config.integer("indexer_budget")
    if budget % size:
        raise CheckpointError(
            f"config.json: indexer_budget {budget} is no multiple of indexer_compress_ratio {size}",
            hint="the checkpoint's config.json belongs to another model",
        )
    return PooledBlocks(
        heads=config.integer("indexer_n_heads"),
        width=config.integer("indexer_head_dim"),
        size=size,
        chosen=budget // size,
    )


def _read_ngrams(config: Settings, vocab: int, hidden: int) -> Ngrams | None:
    """The tables of n-grams; what they are hashed by is in the checkpoint's tensors."""
    config.ignore("ngram_vocab_size_base", "make_ngram_vocab_size_divisible_by", "seed")
    layers, ends = sorted(set(config.ids("ple_layer_ids"))), config.ids("eos_token_id")
    own = Ngrams(
        layers=tuple(layer - 1 for layer in layers),
        longest=config.integer("ngram_size", 3),
        heads=config.integer("heads_per_ngram", 8),
        width=config.integer("ple_embed_dim", hidden),
        kernel=config.integer("ple_conv_kernel_size", 4),
        eos=ends[0] if ends else 0,
        vocab=vocab,
        shards=config.integer("split_ngram_parts", 512),
    )
    if not layers:
        return None
    whole = own.longest > 1 and own.width % own.tables == 0 and own.kernel > 1
    if not (whole and ends and layers[0] > 0 and vocab < EXACT):
        raise CheckpointError(
            f"config.json: ple_embed_dim {own.width}, ngram_size {own.longest}, heads_per_ngram "
            f"{own.heads}, ple_conv_kernel_size {own.kernel} and eos_token_id {list(ends)} are "
            "not of tables of n-grams that can be built",
            hint="this family's models have n-grams of two tokens and more, equal shares of "
            "ple_embed_dim, and a token that ends a text",
        )
    return own

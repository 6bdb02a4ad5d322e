"""The numbers of a decoder, and how they are read from config.json.

Owns the keys that every decoder has; a family reads those of its own. In what the layers of one
decoder differ from each other: kinds.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec

from appliance.bundle.specs import DecoderSpec, LayerHeads
from appliance.errors import CheckpointError
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.divisors import Divisors, divisors
from installer.checkpoint.graph.experts import Mixture
from installer.checkpoint.graph.kinds import Kinds, read_alike
from installer.checkpoint.graph.recurrent import Part, Recurrent
from installer.checkpoint.settings import Settings
from installer.checkpoint.tensors import Tensors

_HEAD_UNIT = 16
_ROOTS = ("model", "language_model.model", "model.language_model")
_OUTPUTS = ("lm_head.weight", "language_model.lm_head.weight")

HARMLESS_KEYS = frozenset(
    {
        *("architectures", "model_type", "transformers_version", "torch_dtype", "dtype"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "use_cache"),
        *("attention_dropout", "_name_or_path"),
    }
)
"""Keys that name things, steer training, or say what the engine decides for itself."""
ReadKinds = Callable[[Settings, int], Kinds]
"""config.json and the size of a head -> in what each layer differs."""


@dataclass(frozen=True, slots=True)
class Norms:
    """The RMS norms of a block, by the names of their tensors.

    Attributes:
        before_attention, before_feed_forward: of what goes in; None is none.
        after_attention, after_feed_forward: of what comes out, before it is added; None is none.
        heads: whether queries and keys have some, too.
        last: of what the output reads.
        centred: whether those before the blocks, and the last, subtract the mean first.
        offset: what is added to each stored gain.
        last_offset: the same of `last`; None is as of all.
        after_epsilon: of those of what comes out; None is as of all.
    """

    before_attention: str | None = "input_layernorm"
    before_feed_forward: str | None = "post_attention_layernorm"
    after_attention: str | None = None
    after_feed_forward: str | None = None
    last: str = "norm"
    heads: bool = False
    centred: bool = False
    offset: float = 0.0
    last_offset: float | None = None
    after_epsilon: float | None = None


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """The numbers of a decoder. Counts, but for those described.

    Attributes:
        epsilon: of all norms, unless `norms` has another.
        kinds: in what each layer differs from the others.
        scale: what products of queries and keys are multiplied by.
        embedding_scale: what the token's vector is multiplied by.
        embedding_normed: whether the token's vector is normed, by no gain, before that.
        result_scale: what each block's result is multiplied by before it is added. The stream is
            kept divided by it, which norms undo, so that nothing has to be multiplied.
        score_scale: what the scores of tokens are multiplied by.
        score_cap: what they come near to and do not exceed, bent by a tanh; None is no bound.
        wide: whether sums over layers outgrow 16 bits, where other numbers have so many.
        root: in front of the names of all tensors but the output's.
        output: the name of the table of outputs, where it is one of its own.
        parallel: whether both blocks of a layer read the same, and are added together.
        mixture: of the feed-forwards, in families that have experts.
        sinks: whether each head has a number that takes part in the softmax and has no value.
        room: how many of a head's numbers, the last ones, only tell chunks apart (chunks.py).
        input_bias: whether queries, keys and values have biases, where checkpoints differ in it.
        output_bias: whether what attention gives to the stream has a bias.
        recurrent: the layers that keep a running state in place of keys and values; None: all
            attend.
        norms_of_states: of the layers that keep a running state, where theirs are in front of the
            blocks and the others' behind; None is as of all.
        shared: whether the stream is divided as that of layers with norms behind their blocks.
        feeding: the layers that are a feed-forward alone, in decoders whose other layers have none;
            None: every layer has both blocks.
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
    embedding_normed: bool = False
    result_scale: float = 1.0
    score_scale: float = 1.0
    score_cap: float | None = None
    wide: bool = False
    root: str = "model"
    output: str = "lm_head.weight"
    parallel: bool = False
    mixture: Mixture | None = None
    sinks: bool = False
    room: int = 0
    input_bias: bool = False
    output_bias: bool = False
    recurrent: Recurrent | None = None
    norms_of_states: Norms | None = None
    shared: bool = False
    feeding: frozenset[int] | None = None
    predicts: bool = False

    def divisors(self, graph: GraphBuilder) -> Divisors:
        """What its numbers are divided by in this graph."""
        norms = self.norms
        return divisors(
            graph.shrink**0.5 if self.shared else graph.shrink,
            normed=None not in (norms.after_attention, norms.after_feed_forward),
            heads=norms.heads,
            wide=self.wide,
            bare=norms.before_attention is None,
        )

    @property
    def after_epsilon(self) -> float:
        """Of the norms of what blocks give out."""
        own = self.norms.after_epsilon
        return self.epsilon if own is None else own

    def located(self, tensors: Tensors) -> DecoderShape:
        """The same by the names that there are, where a language model may be one part of several.

        A table of outputs that is there is read, whatever is said of it.
        """
        table = "embed_tokens.weight"
        root = next((root for root in _ROOTS if f"{root}.{table}" in tensors), self.root)
        output = next((name for name in _OUTPUTS if name in tensors), None)
        tied = self.tied and output is None
        return replace(self, root=root, tied=tied, output=output or self.output)

    def of(self, layer: int) -> DecoderShape:
        """The same with the norms of that layer."""
        if self.norms_of_states is None or not self.recurs(layer):
            return self
        return replace(self, norms=self.norms_of_states, norms_of_states=None, shared=True)

    def recurs(self, layer: int) -> bool:
        """Whether it keeps a running state."""
        return self.recurrent is not None and layer in self.recurrent.layers

    def mixes(self, layer: int) -> bool:
        """Whether it reads other tokens, by attention or by a state."""
        return self.feeding is None or layer not in self.feeding

    def feeds(self, layer: int) -> bool:
        """Whether it has a feed-forward."""
        return self.feeding is None or layer in self.feeding

    def place(self, layer: int) -> int:
        """Its number among those that keep the same: keys and values, or a running state.

        Of a layer that reads another's, that one's.
        """
        shares = self.kinds[layer].shares if layer < len(self.kinds) else None
        layer = layer if shares is None else shares
        if self.recurrent is not None and self.recurrent.beside:
            return layer
        alike = self.recurrent is None and self.feeding is None
        if alike and not any(kind.shares is not None for kind in self.kinds):
            return layer
        own = self.recurs(layer)
        return sum(self.recurs(other) == own for other in range(layer) if self._keeps(other))

    def state_place(self, part: Part, layer: int) -> int:
        """Its number among those that keep such a part of a running state."""
        if part != "further":
            return self.place(layer)
        assert self.recurrent is not None
        assert self.recurrent.further is not None
        return self.recurrent.further.layers.index(layer)

    def heads_of(self, layer: int) -> LayerHeads:
        """The key heads of a layer."""
        kind = self.kinds[layer]
        return LayerHeads(
            kv_heads=kind.kv_heads or self.kv_heads, head_dim=kind.head_dim or self.head_dim
        )

    def _keeps(self, layer: int) -> bool:
        return self.mixes(layer) and self.kinds[layer].shares is None

    def spec(self) -> DecoderSpec:
        recurrent = self.recurrent
        beside = recurrent is not None and recurrent.beside
        keeping = [layer for layer in range(self.layers) if self._keeps(layer)]
        heads = tuple(self.heads_of(layer) for layer in keeping if beside or not self.recurs(layer))
        kv_heads, head_dim = (max(heads_of) for heads_of in zip(*map(_counts, heads), strict=True))
        alike = len(set(heads)) == 1
        return DecoderSpec(
            layers=len(heads),
            kv_heads=kv_heads,
            head_dim=head_dim,
            heads=msgspec.UNSET if alike else heads,
            query_heads=msgspec.UNSET if alike else self.heads,
            vocab_size=self.vocab,
            context_length=self.context,
            recurrent=msgspec.UNSET if recurrent is None else recurrent.spec(),
        )


def _counts(heads: LayerHeads) -> tuple[int, int]:
    return heads.kv_heads, heads.head_dim


@dataclass(frozen=True, slots=True)
class AroundDecoder:
    """A decoder's numbers, in a family that has others of its own beside them."""

    decoder: DecoderShape

    @property
    def vocab(self) -> int:
        return self.decoder.vocab

    @property
    def layers(self) -> int:
        return self.decoder.layers

    @property
    def context(self) -> int:
        return self.decoder.context

    def spec(self) -> DecoderSpec:
        """As the engine sees it."""
        return self.decoder.spec()


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

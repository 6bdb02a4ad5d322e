"""Embedders that are made of a decoder: read at each text's last token, or at all of them.

Owns what they share, of whatever family. One that reads the last token is as causal as the decoder
was, and needs an end token there; one that pools all was trained to see in both directions. They
are published without the language model around them: tensors and architecture lack its name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import onnx_ir as ir

from appliance.bundle.specs import EncoderSpec
from appliance.errors import CheckpointError
from installer.checkpoint.graph import pooling
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.half_reader import token_bytes
from installer.checkpoint.graph.last_token import LastToken
from installer.checkpoint.graph.sentence import Sentence, read_sentence
from installer.checkpoint.graph.whole_text import WholeDecoder, window_bytes
from installer.checkpoint.reader import CONFIG, Checkpoint
from installer.checkpoint.settings import Settings
from installer.checkpoint.tokenizer import CheckpointTokenizer

_PREFIX = "model."
ReadDecoder = Callable[[Checkpoint], DecoderShape]
BuildDecoder = Callable[[GraphBuilder, DecoderShape, Form], None]


@dataclass(frozen=True, slots=True)
class EmbedderShape:
    """A decoder, and what makes one vector of its states."""

    decoder: DecoderShape
    sentence: Sentence
    min_dimensions: int | None

    @property
    def vocab(self) -> int:
        return self.decoder.vocab

    def spec(self) -> EncoderSpec:
        decoder = self.decoder
        return pooling.spec(
            *(self.sentence, decoder.hidden, decoder.context, self.min_dimensions),
            vocab=decoder.vocab,
            token_bytes=reading_bytes(decoder, whole=self.sentence.pooling != "last"),
        )


def read_last(
    checkpoint: Checkpoint, *, read: ReadDecoder, name: str, fewest: int | None = None
) -> EmbedderShape:
    """Read an embedder of last tokens.

    Args:
        read: the decoder's own.
        name: what the reference's classes begin with, if `read` expects a language model.
        fewest: numbers that a vector may be cut to, where the publisher says it in no file.

    Raises CheckpointError naming what it cannot express.
    """
    shape = _read(checkpoint, read, name, fewest)
    if shape.sentence.pooling != "last":
        raise CheckpointError(
            f"the pooling module chooses {shape.sentence.pooling}, "
            "a decoder is read at its last token"
        )
    if not CheckpointTokenizer(checkpoint, shape.vocab).ends_texts:
        raise CheckpointError(
            "tokenizer.json puts no end token behind a text, where the vector would be read",
            hint="its post_processor is missing: get the newest tokenizer from the publisher",
        )
    return shape


def read_whole(
    checkpoint: Checkpoint, *, read: ReadDecoder, name: str = "", fewest: int | None = None
) -> EmbedderShape:
    """As `read_last`, of an embedder that pools what all tokens say."""
    shape = _read(checkpoint, read, name, fewest)
    if shape.sentence.pooling == "last":
        raise CheckpointError(
            "the pooling module chooses the last token, of a model that sees in both directions",
            hint="models of this family are pooled over all tokens",
        )
    return shape


def build_last(graph: GraphBuilder, shape: EmbedderShape, *, build: BuildDecoder) -> None:
    """Write the graph by the decoder's own `build`."""

    def conclude(graph: GraphBuilder, states: ir.Value) -> None:
        pooling.conclude(graph, states, shape.sentence, shape.decoder.hidden)

    build_reader(graph, shape.decoder, build, partial(LastToken, conclude=conclude))


def build_whole(graph: GraphBuilder, shape: EmbedderShape, *, build: BuildDecoder) -> None:
    """Write the graph by the decoder's own `build`."""

    def conclude(graph: GraphBuilder, states: ir.Value, mask: ir.Value) -> None:
        pooled = pooling.pool(graph, states, mask, shape.sentence.pooling)
        pooling.conclude(graph, pooled, shape.sentence, shape.decoder.hidden)

    build_reader(graph, shape.decoder, build, partial(WholeDecoder, conclude=conclude))


def build_reader(
    graph: GraphBuilder, decoder: DecoderShape, build: BuildDecoder, form: Form
) -> None:
    """Write a decoder's graph in a form that generates nothing."""
    tensors = graph.tensors
    tensors.prefix = _PREFIX if "embed_tokens.weight" in tensors else ""
    # A vector has no second try as a token has: what is added up keeps 32 bits on a GPU, too.
    build(graph, replace(decoder, wide=True), form)


def reading_bytes(decoder: DecoderShape, *, whole: bool) -> int:
    """Bytes that a token takes while it is computed; `whole`: attention is in both directions."""
    attended = (decoder.heads + 2 * decoder.kv_heads) * decoder.head_dim
    plain = token_bytes(decoder.hidden, decoder.inner, attended)
    if not whole:
        return plain
    # Keys and values are laid out once for each head, too.
    spread = 4 * decoder.heads * decoder.head_dim
    return plain + spread + window_bytes(decoder.kinds, decoder.heads)


def _read(
    checkpoint: Checkpoint, read: ReadDecoder, name: str, fewest: int | None
) -> EmbedderShape:
    cut = pooling.MATRYOSHKA & checkpoint.config.keys()
    config = {key: value for key, value in checkpoint.config.items() if key not in cut}
    if name and checkpoint.architecture == f"{name}Model":
        config["architectures"] = [f"{name}ForCausalLM"]
    decoder = read(checkpoint.with_config(config))
    sentence = read_sentence(checkpoint, decoder.hidden)
    dimensions = pooling.width(sentence, decoder.hidden)
    said = Settings({key: checkpoint.config[key] for key in cut}, CONFIG)
    fewest = pooling.read_min_dimensions(said, dimensions) if cut else fewest
    return EmbedderShape(decoder, sentence, fewest and min(fewest, dimensions))

"""Qwen3-Embedding and Qwen3-Reranker: the decoder of qwen3.py, read at each text's last token.

Owns how such checkpoints say what they are for, and the texts that a reranker's pairs stand in.
The embedder is published without the language model around it, so its tensors lack a prefix.
Reference: Zhang et al., Qwen3 Embedding (2025), and the rerankers' model card.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import onnx_ir as ir

from appliance.bundle.specs import EncoderSpec, PairPrompt, RerankSpec
from appliance.errors import CheckpointError
from installer.checkpoint.graph import pooling, qwen3
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.cross_encoder import SIGMOID, conclude, read_activation
from installer.checkpoint.graph.decoder import DecoderShape
from installer.checkpoint.graph.half_reader import token_bytes
from installer.checkpoint.graph.last_token import Conclude, LastToken
from installer.checkpoint.graph.sentence import (
    MODULES,
    Sentence,
    module_kinds,
    read_max_length,
    read_sentence,
)
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings
from installer.checkpoint.tokenizer import CheckpointTokenizer

_FEWEST_DIMENSIONS = 32
"""Qwen3-Embedding is trained for vectors cut to any length from here on, says its card."""
_PREFIX = "model."

# The words that the rerankers were trained with; any others give other scores.
PROMPT = PairPrompt(
    start=(
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query "
        'and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
        "<|im_start|>user\n"
    ),
    instruct="<Instruct>: ",
    query="\n<Query>: ",
    document="\n<Document>: ",
    end="<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    instruction="Given a web search query, retrieve relevant passages that answer the query",
)
_CONTROL = ("<|im_start|>", "<|im_end|>")
_YES, _NO = "yes", "no"


@dataclass(frozen=True, slots=True)
class EmbedderShape:
    """A decoder, and what makes one vector of its last state."""

    decoder: DecoderShape
    sentence: Sentence
    min_dimensions: int

    @property
    def vocab(self) -> int:
        return self.decoder.vocab

    def spec(self) -> EncoderSpec:
        decoder = self.decoder
        return pooling.spec(
            *(self.sentence, decoder.hidden, decoder.context, self.min_dimensions),
            vocab=decoder.vocab,
            token_bytes=_token_bytes(decoder),
        )


@dataclass(frozen=True, slots=True)
class RerankerShape:
    """A decoder, and the two tokens whose odds are the score.

    Attributes:
        sigmoid: whether the score is the chance of `yes`, or the logarithm of its odds.
    """

    decoder: DecoderShape
    yes: int
    no: int
    max_length: int
    sigmoid: bool = True

    @property
    def vocab(self) -> int:
        return self.decoder.vocab

    def spec(self) -> RerankSpec:
        return RerankSpec(
            max_length=self.max_length,
            prompt=PROMPT,
            sigmoid=self.sigmoid,
            vocab_size=self.vocab,
            token_bytes=_token_bytes(self.decoder),
        )


def read_embedder(checkpoint: Checkpoint) -> EmbedderShape:
    """Read the checkpoint's JSON files. Raises CheckpointError naming what it cannot express."""
    decoder = qwen3.read(checkpoint)
    sentence = read_sentence(checkpoint, decoder.hidden)
    if sentence.pooling != "last":
        raise CheckpointError(
            f"the pooling module chooses {sentence.pooling}, a decoder is read at its last token"
        )
    tokenizer = CheckpointTokenizer(checkpoint, decoder.vocab)
    if not tokenizer.ends_texts:
        raise CheckpointError(
            "tokenizer.json puts no end token behind a text, where the vector would be read",
            hint="its post_processor is missing: get the newest tokenizer from the publisher",
        )
    return EmbedderShape(decoder, sentence, min(_FEWEST_DIMENSIONS, decoder.hidden))


def read_reranker(checkpoint: Checkpoint) -> RerankerShape:
    """Read the checkpoint's JSON files. Raises CheckpointError naming what it cannot express."""
    decoder = qwen3.read(checkpoint)
    tokenizer = CheckpointTokenizer(checkpoint, decoder.vocab)
    yes, no = tokenizer.id_of(_YES), tokenizer.id_of(_NO)
    if yes is None or no is None or not all(map(tokenizer.is_special, _CONTROL)):
        raise CheckpointError(
            f"tokenizer.json lacks one of {_YES}, {_NO}, {', '.join(_CONTROL)}",
            hint="the tokenizer belongs to another checkpoint",
        )
    if read_activation(checkpoint, Settings({}, "config.json")) != SIGMOID:
        raise CheckpointError("the activation of this reranker is not the sigmoid")
    if checkpoint.has(MODULES):
        _expect_odds(checkpoint, yes, no)
    longest = read_max_length(checkpoint, "text-generation") or decoder.context
    return RerankerShape(decoder, yes, no, min(longest, decoder.context))


def build_embedder(graph: GraphBuilder, shape: EmbedderShape) -> None:
    """Write the graph."""

    def vector(graph: GraphBuilder, states: ir.Value) -> None:
        pooling.conclude(graph, states, shape.sentence, shape.decoder.hidden)

    _build(graph, shape.decoder, vector)


def build_reranker(graph: GraphBuilder, shape: RerankerShape) -> None:
    """Write the graph."""

    def odds(graph: GraphBuilder, states: ir.Value) -> None:
        logits = graph.op("MatMul", graph.full(states), _difference(graph, shape))
        conclude(graph, graph.op("Sigmoid", logits) if shape.sigmoid else logits)

    _build(graph, shape.decoder, odds)


def _token_bytes(decoder: DecoderShape) -> int:
    attended = (decoder.heads + 2 * decoder.kv_heads) * decoder.head_dim
    return token_bytes(decoder.hidden, decoder.inner, attended)


def _build(graph: GraphBuilder, decoder: DecoderShape, end: Conclude) -> None:
    tensors = graph.tensors
    tensors.prefix = _PREFIX if "embed_tokens.weight" in tensors else ""
    # A vector has no second try as a token has: what is added up keeps 32 bits on a GPU, too.
    qwen3.build(graph, replace(decoder, wide=True), partial(LastToken, conclude=end))


def _difference(graph: GraphBuilder, shape: RerankerShape) -> ir.Value:
    """What a state is multiplied with to give logit("yes") - logit("no"), [hidden, 1].

    The softmax over two logits is the sigmoid of their difference, and two rows of the output
    table are all that it needs.
    """
    decoder = shape.decoder
    name = "model.embed_tokens.weight" if decoder.tied else "lm_head.weight"
    graph.tensors.expect(name, (decoder.vocab, decoder.hidden))
    yes, no = graph.tensors.rows_at(name, (shape.yes, shape.no))
    return graph.floats("head.yes-no", (decoder.hidden, 1), [(yes - no)[:, None]])


def _expect_odds(checkpoint: Checkpoint, yes: int, no: int) -> None:
    kinds = module_kinds(checkpoint)
    if kinds != ("Transformer", "LogitScore"):
        raise CheckpointError(f"{MODULES}: a reranker of {', '.join(kinds)} is not supported")
    settings = checkpoint.settings("1_LogitScore/config.json")
    settings.expect("true_token_id", yes)
    settings.expect("false_token_id", no)
    settings.integer("false_token_id")
    settings.finish()

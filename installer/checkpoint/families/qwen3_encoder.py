"""Qwen3-Embedding and Qwen3-Reranker: the decoder of qwen3.py, read at each text's last token.

Owns the texts that a reranker's pairs stand in, and the two tokens that it answers with. What all
embedders of decoders share: decoder_embedder.py.
Reference: Zhang et al., Qwen3 Embedding (2025), and the rerankers' model card.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import onnx_ir as ir

from appliance.bundle.specs import PairPrompt, RerankSpec
from appliance.errors import CheckpointError
from installer.checkpoint.families import decoder_embedder, qwen3
from installer.checkpoint.families.cross_encoder import SIGMOID, conclude, read_activation
from installer.checkpoint.families.decoder_embedder import EmbedderShape, reading_bytes
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.last_token import LastToken
from installer.checkpoint.graph.sentence import MODULES, module_kinds, read_max_length
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings
from installer.checkpoint.tokenizer import CheckpointTokenizer

_FEWEST_DIMENSIONS = 32
"""Qwen3-Embedding is trained for vectors cut to any length from here on, says its card."""

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
            token_bytes=reading_bytes(self.decoder, whole=False),
        )


def read_embedder(checkpoint: Checkpoint) -> EmbedderShape:
    """Read the checkpoint's JSON files. Raises CheckpointError naming what it cannot express."""
    return decoder_embedder.read_last(
        checkpoint, read=qwen3.read, name="Qwen3", fewest=_FEWEST_DIMENSIONS
    )


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
    decoder_embedder.build_last(graph, shape, build=qwen3.build)


def build_reranker(graph: GraphBuilder, shape: RerankerShape) -> None:
    """Write the graph."""

    def odds(graph: GraphBuilder, states: ir.Value) -> None:
        logits = graph.op("MatMul", graph.full(states), _difference(graph, shape))
        conclude(graph, graph.op("Sigmoid", logits) if shape.sigmoid else logits)

    form = partial(LastToken, conclude=odds)
    decoder_embedder.build_reader(graph, shape.decoder, qwen3.build, form)


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

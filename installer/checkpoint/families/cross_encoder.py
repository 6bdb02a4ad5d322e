"""What rerankers of all encoders share: a query and a document read together give one score.

Owns the reranker graph's output (docs/bundle-format.md), the label's own layer, and the files that
say what becomes of a logit. Refuses heads of several labels, which classify and do not rank.
Reference: Nogueira and Cho, Passage Re-ranking with BERT (2019).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Protocol

import onnx_ir as ir

from appliance.bundle.specs import RerankSpec
from appliance.errors import CheckpointError
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.sentence import (
    MODULES,
    module_kinds,
    read_library_config,
    read_max_length,
)
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings
from installer.checkpoint.tokenizer import CheckpointTokenizer

SIGMOID = "torch.nn.modules.activation.Sigmoid"
_IDENTITY = "torch.nn.modules.linear.Identity"


class Body(Protocol):
    """A transformer, as far as the manifest speaks of it.

    Attributes:
        longest: tokens of a text that it has positions for.
        types: of tokens; one is none.
    """

    @property
    def vocab(self) -> int: ...

    @property
    def longest(self) -> int: ...

    @property
    def types(self) -> int: ...

    @property
    def token_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class CrossEncoderShape:
    """A transformer with a head of one label.

    Attributes:
        body: the family's own transformer, a Body.
        head: what the family needs to know of what follows it.
        sigmoid: whether the score is the logit's sigmoid, or the logit itself.
    """

    body: Any
    head: Any
    sigmoid: bool
    max_length: int

    @property
    def vocab(self) -> int:
        vocab: int = self.body.vocab
        return vocab

    def spec(self) -> RerankSpec:
        return RerankSpec(
            max_length=self.max_length,
            sigmoid=self.sigmoid,
            vocab_size=self.vocab,
            token_bytes=self.body.token_bytes,
        )


def read(
    checkpoint: Checkpoint,
    config: Settings,
    body: Body,
    head: object,
    harmless: Collection[str],
) -> CrossEncoderShape:
    """Read what of the files is not the transformer's, and finish `config`."""
    _expect_one_label(checkpoint, config)
    sigmoid = read_activation(checkpoint, config) == SIGMOID
    config.finish(harmless)
    if checkpoint.has(MODULES) and (kinds := module_kinds(checkpoint)) != ("Transformer",):
        raise CheckpointError(f"{MODULES}: a cross-encoder of {', '.join(kinds)} is not supported")
    _expect_pairs(CheckpointTokenizer(checkpoint, body.vocab))
    longest = read_max_length(checkpoint, "sequence-classification") or body.longest
    return CrossEncoderShape(body, head, sigmoid, min(longest, body.longest))


def score(
    graph: GraphBuilder, shape: CrossEncoderShape, x: ir.Value, name: str, hidden: int
) -> None:
    """Make the output of x [B, hidden] by the label's layer `name`."""
    logits = _label(graph, graph.full(x), name, hidden)
    conclude(graph, graph.op("Sigmoid", logits) if shape.sigmoid else logits)


def conclude(graph: GraphBuilder, scores: ir.Value) -> None:
    """Make the output of scores [B, 1]."""
    graph.output(graph.op("Squeeze", scores, graph.constant([1])), "scores", ("batch",))


def read_activation(checkpoint: Checkpoint, config: Settings) -> str:
    """What the published score is of the logit; the sigmoid where no file says.

    Versions of the library say it in three places. Raises CheckpointError if they disagree.
    """
    section = config.section("sentence_transformers")
    library = read_library_config(checkpoint)
    library.expect("model_type", "CrossEncoder")
    said = []
    places = [(config, "sbert_ce_default_activation_function"), (library, "activation_fn")]
    if section is not None:
        section.ignore("version")
        places.append((section, "activation_fn"))
    for settings, key in places:
        if key in settings:
            settings.expect(key, SIGMOID, _IDENTITY)
            said.append(settings.text(key))
    library.finish()
    if section is not None:
        section.finish()
    if len(set(said)) > 1:
        raise CheckpointError(f"the activation is {' in one file and '.join(sorted(set(said)))}")
    return said[0] if said else SIGMOID


def _expect_one_label(checkpoint: Checkpoint, config: Settings) -> None:
    config.expect("num_labels", 1)
    config.expect("problem_type", "regression")
    labels = checkpoint.config.get("id2label")
    config.ignore("id2label", "label2id")
    count = len(labels) if isinstance(labels, dict) else checkpoint.config.get("num_labels", 2)
    if count != 1:
        raise CheckpointError(
            f"config.json: id2label has {count} labels",
            hint="a reranker has one; models that classify are not built",
        )


def _expect_pairs(tokenizer: CheckpointTokenizer) -> None:
    if not tokenizer.joins_pairs:
        raise CheckpointError(
            "tokenizer.json puts nothing between two texts",
            hint="its post_processor is missing: get the tokenizer from the publisher again",
        )


def _label(graph: GraphBuilder, x: ir.Value, name: str, hidden: int) -> ir.Value:
    """The logit [B, 1], in full precision: it is one row of weights."""
    weight = f"{name}.weight"
    graph.tensors.expect(weight, (1, hidden))
    column = graph.floats(f"{name}.transposed", (hidden, 1), graph.tensors.transposed(weight))
    bias = f"{name}.bias"
    shift = graph.floats(bias, (1,), [graph.tensors.vector(bias, 1)])
    return graph.op("Add", graph.op("MatMul", x, column), shift)

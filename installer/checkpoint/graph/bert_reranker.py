"""Cross-encoders: BERT and its like read a query and a document together and give one score.

Owns the reranker graph's output (docs/bundle-format.md) and the head of one label. Refuses heads
of several labels, which classify and do not rank. Reference: Nogueira and Cho, Passage Re-ranking
with BERT (2019).
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from appliance.bundle.specs import RerankSpec
from appliance.errors import CheckpointError
from installer.checkpoint.graph import bert
from installer.checkpoint.graph.bert import BertShape
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
_PREFIXES = {"bert": "bert.", "roberta": "roberta.", "xlm-roberta": "roberta."}


@dataclass(frozen=True, slots=True)
class CrossEncoderShape:
    """A transformer with a head of one label.

    Attributes:
        pooled: names of the layer before the label and of the label's own layer.
        sigmoid: whether the score is the logit's sigmoid, or the logit itself.
    """

    bert: BertShape
    head: tuple[str, str]
    sigmoid: bool
    max_length: int

    @property
    def vocab(self) -> int:
        return self.bert.vocab

    def spec(self) -> RerankSpec:
        return RerankSpec(
            max_length=self.max_length,
            sigmoid=self.sigmoid,
            vocab_size=self.vocab,
            token_bytes=self.bert.token_bytes,
        )


def read(checkpoint: Checkpoint) -> CrossEncoderShape:
    """Read the checkpoint's JSON files. Raises CheckpointError naming what it cannot express."""
    family = checkpoint.family
    config = checkpoint.settings("config.json")
    config.expect("architectures", [f"{bert.CLASSES[family]}ForSequenceClassification"])
    shape = bert.read_bert(checkpoint, config, prefix=_PREFIXES[family])
    _expect_one_label(checkpoint, config)
    sigmoid = read_activation(checkpoint, config) == SIGMOID
    config.finish(bert.HARMLESS_KEYS)
    if checkpoint.has(MODULES) and (kinds := module_kinds(checkpoint)) != ("Transformer",):
        raise CheckpointError(f"{MODULES}: a cross-encoder of {', '.join(kinds)} is not supported")
    _expect_pairs(CheckpointTokenizer(checkpoint, shape.vocab))
    longest = read_max_length(checkpoint, "sequence-classification") or shape.longest
    plain = family == "bert"
    return CrossEncoderShape(
        bert=shape,
        head=("bert.pooler.dense", "classifier")
        if plain
        else ("classifier.dense", "classifier.out_proj"),
        sigmoid=sigmoid,
        max_length=min(longest, shape.longest),
    )


def build(graph: GraphBuilder, shape: CrossEncoderShape) -> None:
    """Write the graph."""
    ids, mask = bert.declare_texts(graph)
    types = None
    if shape.bert.types > 1:
        types = graph.input("token_type_ids", ir.DataType.INT64, ("batch", "tokens"))
    first = bert.first_row(graph, bert.transform(graph, shape.bert, ids, mask, types))
    first = graph.operand(first)
    hidden = shape.bert.hidden
    dense, label = shape.head
    pooled = graph.op("Tanh", graph.linear(first, dense, hidden, hidden, bias=True))
    logits = _label(graph, graph.full(pooled), label, hidden)
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

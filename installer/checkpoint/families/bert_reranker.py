"""BERT and its like as rerankers: one layer with a tanh over the first token's state, then a label.

What all rerankers share: cross_encoder.py.
"""

from __future__ import annotations

import onnx_ir as ir

from installer.checkpoint.families import bert, cross_encoder
from installer.checkpoint.families.cross_encoder import CrossEncoderShape
from installer.checkpoint.graph import pooling
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.reader import Checkpoint

_PREFIXES = {"bert": "bert.", "mpnet": "mpnet.", "roberta": "roberta.", "xlm-roberta": "roberta."}
_HEAD = ("bert.pooler.dense", "classifier")
_ROBERTA_HEAD = ("classifier.dense", "classifier.out_proj")
"""The layer before the label, and the label's own."""


def read(checkpoint: Checkpoint) -> CrossEncoderShape:
    """Read the checkpoint's JSON files. Raises CheckpointError naming what it cannot express."""
    family = checkpoint.family
    config = checkpoint.settings("config.json")
    config.expect("architectures", [f"{bert.CLASSES[family]}ForSequenceClassification"])
    body = bert.read_bert(checkpoint, config, prefix=_PREFIXES[family])
    head = _HEAD if family == "bert" else _ROBERTA_HEAD
    return cross_encoder.read(checkpoint, config, body, head, bert.HARMLESS_KEYS)


def build(graph: GraphBuilder, shape: CrossEncoderShape) -> None:
    """Write the graph."""
    ids, mask = bert.declare_texts(graph)
    types = None
    if shape.body.types > 1:
        types = graph.input("token_type_ids", ir.DataType.INT64, ("batch", "tokens"))
    first = pooling.first_row(graph, bert.transform(graph, shape.body, ids, mask, types))
    dense, label = shape.head
    hidden = shape.body.hidden
    pooled = graph.linear(graph.operand(first), dense, hidden, hidden, bias=True)
    cross_encoder.score(graph, shape, graph.op("Tanh", pooled), label, hidden)

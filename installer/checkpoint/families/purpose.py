"""What a checkpoint is published for, where its architecture alone does not say.

Qwen3ForCausalLM is the architecture of chat models, of embedders and of rerankers. Owns the signs
by which publishers tell them apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from installer.checkpoint.graph.sentence import MODULES, module_kinds
from installer.checkpoint.reader import Checkpoint

Kind = Literal["chat", "embedding", "rerank"]

CARD = "README.md"
_TAG = re.compile(r"^pipeline_tag:[ ]*['\"]?([\w-]+)['\"]?[ ]*$", re.MULTILINE)
_TAGS: Mapping[str, Kind] = {
    "text-ranking": "rerank",
    "feature-extraction": "embedding",
    "sentence-similarity": "embedding",
    "text-generation": "chat",
    "image-text-to-text": "chat",
}
"""What the hub calls a model's task -> what its bundle serves."""
_TEMPLATES = ("chat_template.jinja", "tokenizer_config.json")
_JUDGES = re.compile(r"""\\?"yes\\?" or \\?"no\\?".*<Document>""", re.DOTALL)
"""In a template with these words a pair is judged, and nobody is talked to."""


def purpose_of(checkpoint: Checkpoint) -> Kind | None:
    """What the bundle is to serve; None if nothing but the architecture says so.

    A head of sequence classification ranks; modules.json with a pooling embeds, with scored
    logits ranks; so does a template that puts a document before a judge; else the front matter of
    the model card names a task.
    """
    if checkpoint.architecture.endswith("ForSequenceClassification"):
        return "rerank"
    if checkpoint.has(MODULES):
        return "rerank" if "LogitScore" in module_kinds(checkpoint) else "embedding"
    if any(_judges(checkpoint, name) for name in _TEMPLATES):
        return "rerank"
    card = checkpoint.text(CARD) if checkpoint.has(CARD) else ""
    front = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    tag = _TAG.search(front[1]) if front is not None else None
    return _TAGS.get(tag[1]) if tag is not None else None


def _judges(checkpoint: Checkpoint, name: str) -> bool:
    return checkpoint.has(name) and _JUDGES.search(checkpoint.text(name)) is not None

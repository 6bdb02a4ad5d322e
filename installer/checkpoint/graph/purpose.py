"""What a checkpoint is published for, where its architecture alone does not say.

Qwen3ForCausalLM is the architecture of chat models, of embedders and of rerankers. Owns the signs
by which publishers tell them apart.
"""

from __future__ import annotations

import re
from typing import Literal

from installer.checkpoint.graph.sentence import MODULES, module_kinds
from installer.checkpoint.reader import Checkpoint

Kind = Literal["chat", "embedding", "rerank"]

_CARD = "README.md"
_RANKING = re.compile(r"^pipeline_tag:[ ]*['\"]?text-ranking['\"]?[ ]*$", re.MULTILINE)


def purpose_of(checkpoint: Checkpoint) -> Kind | None:
    """What the bundle is to serve; None if nothing but the architecture says so.

    A head of sequence classification ranks; modules.json with a pooling embeds, with scored
    logits ranks; else the front matter of the model card may call the model a ranking one.
    """
    if checkpoint.architecture.endswith("ForSequenceClassification"):
        return "rerank"
    if checkpoint.has(MODULES):
        return "rerank" if "LogitScore" in module_kinds(checkpoint) else "embedding"
    card = checkpoint.text(_CARD) if checkpoint.has(_CARD) else ""
    front = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    return "rerank" if front is not None and _RANKING.search(front[1]) else None

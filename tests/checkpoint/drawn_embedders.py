"""Embedders made of any decoder that the reference library knows, read at their last token."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from transformers import AutoModel

from tests.checkpoint.drawn import TINY, draw_checkpoint
from tests.checkpoint.families.mistral import MISTRAL
from tests.fakes.encoder_checkpoints import make_last_token_embedder

_QWEN2 = {
    **TINY,
    "architectures": ["Qwen2Model"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "rope_theta": 1_000_000.0,
    "use_sliding_window": False,
}
_MISTRAL = MISTRAL | {"architectures": ["MistralModel"]}


def _write(directory: Path, config: Mapping[str, object]) -> Path:
    draw_checkpoint(directory, config, seed=2, model=AutoModel)
    make_last_token_embedder(directory, 64, max_length=128)
    return directory


def write_mistral_embedder(directory: Path) -> Path:
    """Write an embedder as e5-mistral is published, with a window."""
    return _write(directory, _MISTRAL)


def write_qwen2_embedder(directory: Path) -> Path:
    """Write an embedder of Qwen2's decoder."""
    return _write(directory, _QWEN2)

"""Checkpoints that see images, of which the language model is built and the rest is left out.

Owns where config.json says what of which part. The tensors' names are found by themselves
(`DecoderShape.located`). Why alone: docs/decisions/0173-gemma-3.md.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from installer.checkpoint.graph import decoder_shape
from installer.checkpoint.reader import TEXT, Checkpoint
from installer.checkpoint.settings import Settings

_TIED = "tie_word_embeddings"


def read_part(
    checkpoint: Checkpoint, architectures: Sequence[str], of_images: Collection[str]
) -> tuple[Settings, bool]:
    """What config.json says of the language model, which the caller finishes; and whether its table
    of outputs may be that of inputs.

    Raises CheckpointError naming a key beside it that is not of `of_images`.
    """
    config = checkpoint.settings("config.json")
    config.expect("architectures", *([name] for name in architectures))
    text = config.needed(TEXT)
    config.ignore(*of_images)
    # Whether it is tied shows in the tensors: config.json often leaves it to the reference.
    tied = config.flag(_TIED, True) and text.flag(_TIED, True)
    config.finish(decoder_shape.HARMLESS_KEYS)
    return text, tied


def text_of(checkpoint: Checkpoint) -> Mapping[str, object]:
    """The language model's part of config.json as it stands there."""
    text = checkpoint.config.get(TEXT)
    return text if isinstance(text, dict) else {}

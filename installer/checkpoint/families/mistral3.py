"""Mistral Small 3.1 and 3.2, Magistral, Ministral 3 and Devstral 2: what writes, without its eyes.

Most of these checkpoints see images as well; the language model is built and the rest is left out,
as of Gemma 3 (docs/decisions/0173-gemma-3.md). It is Mistral's, or Ministral 3's, whose queries
grow with their position (sharpening.py). Reference: `Mistral3ForConditionalGeneration`,
`Ministral3ForCausalLM`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from appliance.errors import CheckpointError
from installer.checkpoint.families import mistral, parts
from installer.checkpoint.graph import decoder_shape
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.kinds import FULL, SLIDING, Kinds, LayerKind, read_kinds
from installer.checkpoint.graph.rope import ORIGINAL, Rope, read_rope
from installer.checkpoint.graph.sharpening import Sharpening
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

OF_IMAGES: Final = (
    *("vision_config", "image_token_index", "image_token_id", "projector_hidden_act"),
    *("multimodal_projector_bias", "spatial_merge_size", "vision_feature_layer"),
)
_WINDOW = "sliding_window"
_ANGLES, _WEIGHT, _CONTEXT = "rope_parameters", "llama_4_scaling_beta", "max_position_embeddings"


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json of Ministral 3 alone.

    Raises CheckpointError naming a key that this graph cannot express.
    """
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["Ministral3ForCausalLM"])
    return _read_ministral3(config)


def read_with_images(checkpoint: Checkpoint) -> DecoderShape:
    """As `read`, of a checkpoint whose language model is one part."""
    text, tied = read_part(checkpoint)
    kind = text.text("model_type", "mistral")
    text.expect("model_type", "mistral", "ministral3")
    if kind == "ministral3":
        return replace(_read_ministral3(text), tied=tied)
    return replace(
        mistral.read_text(text, silent=_WINDOW not in parts.text_of(checkpoint)), tied=tied
    )


def read_part(checkpoint: Checkpoint) -> tuple[Settings, bool]:
    """What such a checkpoint says of its language model, as `parts.read_part` has it."""
    return parts.read_part(checkpoint, ("Mistral3ForConditionalGeneration",), OF_IMAGES)


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms, of the tensors by the names that there are."""
    mistral.build(graph, shape.located(graph.tensors), form)


def _read_ministral3(config: Settings) -> DecoderShape:
    shape = decoder_shape.read_decoder(config, kinds=_read_kinds)
    config.finish(decoder_shape.HARMLESS_KEYS)
    return shape


def _read_kinds(config: Settings, head_dim: int) -> Kinds:
    """All layers alike."""
    rope, sharpening = read_angles(config, head_dim)
    window = config.integer(_WINDOW) if _WINDOW in config else None
    name = FULL if window is None else SLIDING
    kind = LayerKind(rope, window, sharpening)
    return read_kinds(config, {name: kind}, [name] * config.integer("num_hidden_layers"))


def read_angles(
    config: Settings, head_dim: int, *, partial: bool = False
) -> tuple[Rope, Sharpening | None]:
    """The angles, of `partial` a share of a head, and what queries grow by.

    Raises CheckpointError.
    """
    if _ANGLES not in config:
        # The reference would take some of its own.
        raise CheckpointError(f"config.json has no {_ANGLES!r}", hint="it is incomplete")
    angles = config.needed(_ANGLES)
    angles.expect(_CONTEXT, config.integer(_CONTEXT))
    rope = read_rope(config, head_dim, partial=partial, beside=(_WEIGHT, _CONTEXT))
    weight = angles.number(_WEIGHT, 0.0)
    return rope, Sharpening(angles.integer(ORIGINAL), weight) if weight else None

"""Mistral Small 4: DeepSeek's latent attention and experts, whose queries grow with their position.

Experts are chosen by the shares of a softmax, and no groups are told apart among them. Of a
checkpoint that sees images the language model is built, as of Mistral Small 3 (mistral3.py).
Reference: Mistral Small 4 (2026), `Mistral4ForCausalLM` and `Mistral3ForConditionalGeneration`.
"""

from __future__ import annotations

from dataclasses import replace

from appliance.errors import CheckpointError
from installer.checkpoint.families import deepseek, mistral3, parts
from installer.checkpoint.families.deepseek import LatentShape
from installer.checkpoint.graph import routed
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form
from installer.checkpoint.graph.kinds import LayerKind
from installer.checkpoint.graph.latent import Latent
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

TEXT = "mistral4"
"""The `model_type` of its part of a config.json with images."""


def read(checkpoint: Checkpoint) -> LatentShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["Mistral4ForCausalLM"])
    return _read(config)


def read_with_images(checkpoint: Checkpoint) -> LatentShape:
    """As `read`, of a checkpoint whose language model is one part."""
    text, tied = mistral3.read_part(checkpoint)
    text.expect("model_type", TEXT)
    shape = _read(text)
    return replace(shape, decoder=replace(shape.decoder, tied=tied))


def is_part(checkpoint: Checkpoint) -> bool:
    """Whether the language model of a checkpoint with images is of this family."""
    return parts.text_of(checkpoint).get("model_type") == TEXT


def build(graph: GraphBuilder, shape: LatentShape, form: Form) -> None:
    """Write the graph in one of its forms, of the tensors by the names that there are."""
    deepseek.build_located(graph, shape, form)


def _read(config: Settings) -> LatentShape:
    config.assume("norm_topk_prob", True)
    config.assume("first_k_dense_replace", 0)
    # Of several groups the reference adds up the two best shares, which no published one has.
    config.expect("n_group", 1)
    config.expect("topk_group", 1)
    config.expect("sliding_window")
    widths = map(config.integer, ("qk_nope_head_dim", "qk_rope_head_dim"))
    config.expect("head_dim", sum(widths))
    mixture = routed.read_routed(config, scores="softmax")
    return deepseek.read_around(config, mixture, angles=_read_angles)


def _read_angles(config: Settings, latent: Latent) -> LayerKind:
    whole = latent.plain + latent.turned
    parameters = config.section("rope_parameters")
    if parameters is not None and "partial_rotary_factor" not in parameters:
        config.assume("partial_rotary_factor", latent.turned / whole)
    rope, sharpening = mistral3.read_angles(config, whole, partial=True)
    if rope.turned != latent.turned:
        raise CheckpointError(
            f"config.json: partial_rotary_factor turns {rope.turned} numbers of a head, "
            f"qk_rope_head_dim is {latent.turned}",
            hint="the checkpoint's config.json belongs to another model",
        )
    rope = replace(rope, interleaved=config.flag("rope_interleave", True))
    return LayerKind(rope, sharpening=sharpening)

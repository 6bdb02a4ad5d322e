"""Qwen3-VL, dense: Qwen3's decoder with interleaved three-axis rope, and a tower with DeepStack.

The tower's states after some layers are added to the decoder's after its first ones.
Reference: Qwen3-VL Technical Report (2025), `Qwen3VLForConditionalGeneration`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Protocol

import onnx_ir as ir

from appliance.errors import CheckpointError
from installer.checkpoint.families import qwen3
from installer.checkpoint.graph import decoder, decoder_shape, tower
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.pictures import PictureShape, read_axes, slots_of
from installer.checkpoint.graph.tower import Patches, TowerShape
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

WORDS = "model.language_model"
SIGHT = "model.visual"
AXES = read_axes("interleaved")


class ReadWords(Protocol):
    """config.json's `text_config` -> the decoder, whose positions have three axes."""

    def __call__(self, config: Settings, *, tied: bool) -> DecoderShape: ...


def read(checkpoint: Checkpoint) -> PictureShape:
    """Read config.json. Raises CheckpointError naming a key that these graphs cannot express."""
    read_words = partial(decoder_shape.read_decoder, kinds=AXES)
    return read_as(checkpoint, "Qwen3VLForConditionalGeneration", read_words)


def read_as(checkpoint: Checkpoint, architecture: str, read_words: ReadWords) -> PictureShape:
    """The same of an `architecture` whose words `read_words` reads, but for what all share."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", [architecture])
    text, sight = config.needed("text_config"), config.needed("vision_config")
    shape = _read_words(text, read_words, tied=config.flag("tie_word_embeddings", False))
    seen = _read_tower(sight, shape.hidden)
    picture = PictureShape(shape, seen, config.integer("image_token_id"))
    if len(seen.deep) > shape.layers or max(seen.deep, default=0) >= seen.layers:
        raise CheckpointError("config.json: deepstack_visual_indexes names absent layers")
    # Videos are not offered; the tokens around an image are the template's to write.
    config.ignore("video_token_id", "vision_start_token_id", "vision_end_token_id")
    config.finish(decoder_shape.HARMLESS_KEYS)
    return picture


def build(graph: GraphBuilder, shape: PictureShape, form: object) -> None:
    """Write the decoder."""
    slots = partial(slots_of(form), picture=shape)
    decoder.build_decoder(graph, shape.decoder, slots, qwen3.project, decoder.swiglu)


def build_tower(graph: GraphBuilder, shape: TowerShape) -> None:
    """Write the tower."""
    patches = Patches(graph, shape)
    learned = tower.learned(graph, shape, f"{shape.at}.pos_embed.weight")
    x = graph.op("Add", patches.embed(bias=True), learned)
    deep: list[ir.Value] = []
    for layer in range(shape.layers):
        at = f"{shape.at}.blocks.{layer}"
        normed = tower.layer_norm(graph, f"{at}.norm1", x, shape.hidden)
        attended = patches.flat(patches.attend(patches.heads(normed, at)))
        result = graph.linear(attended, f"{at}.attn.proj", shape.hidden, shape.hidden, bias=True)
        x = graph.op("Add", x, result)
        normed = tower.layer_norm(graph, f"{at}.norm2", x, shape.hidden)
        x = graph.op("Add", x, _feed_forward(graph, shape, f"{at}.mlp", normed))
        if layer in shape.deep:
            name = f"{shape.at}.deepstack_merger_list.{shape.deep.index(layer)}"
            width = shape.hidden * shape.merge**2
            normed = tower.layer_norm(graph, f"{name}.norm", patches.merged(x), width)
            deep.append(_merge(graph, shape, name, normed))
    normed = tower.layer_norm(graph, f"{shape.at}.merger.norm", x, shape.hidden)
    last = _merge(graph, shape, f"{shape.at}.merger", patches.merged(normed))
    patches.conclude([last, *deep])


def _feed_forward(graph: GraphBuilder, shape: TowerShape, at: str, x: ir.Value) -> ir.Value:
    inner = graph.linear(x, f"{at}.linear_fc1", shape.hidden, shape.inner, bias=True)
    inner = graph.op("Gelu", inner, approximate="tanh")
    return graph.linear(inner, f"{at}.linear_fc2", shape.inner, shape.hidden, bias=True)


def _merge(graph: GraphBuilder, shape: TowerShape, at: str, x: ir.Value) -> ir.Value:
    """Normed patches of each token [tokens, merge * merge * hidden] -> features [tokens, out]."""
    width = shape.hidden * shape.merge**2
    inner = graph.op("Gelu", graph.linear(x, f"{at}.linear_fc1", width, width, bias=True))
    return graph.linear(inner, f"{at}.linear_fc2", width, shape.out, bias=True)


def _read_words(text: Settings, read_words: ReadWords, *, tied: bool) -> DecoderShape:
    text.expect("attention_bias", False)
    text.expect("tie_word_embeddings", tied)
    shape = read_words(text, tied=tied)
    text.finish(decoder_shape.HARMLESS_KEYS)
    return replace(shape, root=WORDS)


def _read_tower(sight: Settings, width: int) -> TowerShape:
    sight.expect("hidden_act", "gelu_pytorch_tanh")
    sight.expect("out_hidden_size", width)
    sight.expect("rope_parameters", tower.ROPE)
    places = sight.integer("num_position_embeddings")
    side = round(places**0.5)
    if side**2 != places:
        raise CheckpointError(f"config.json: num_position_embeddings {places} is no square")
    shape = TowerShape(
        at=SIGHT,
        hidden=sight.integer("hidden_size"),
        layers=sight.integer("depth"),
        heads=sight.integer("num_heads"),
        inner=sight.integer("intermediate_size"),
        out=width,
        channels=sight.integer("in_channels", 3),
        patch=sight.integer("patch_size"),
        temporal=sight.integer("temporal_patch_size"),
        merge=sight.integer("spatial_merge_size"),
        side=side,
        deep=sight.ids("deepstack_visual_indexes"),
    )
    sight.finish(decoder_shape.HARMLESS_KEYS)
    return shape

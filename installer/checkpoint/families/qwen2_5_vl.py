"""Qwen2.5-VL: Qwen2's decoder with three-axis rope, and a tower that mostly attends in windows.

Reference: Qwen2.5-VL Technical Report (2025), `Qwen2_5_VLForConditionalGeneration`. Checkpoints
come with two sets of names, the published and the newer one of the reference implementation.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import onnx_ir as ir

from appliance.errors import CheckpointError
from installer.checkpoint.families import qwen2
from installer.checkpoint.graph import decoder, decoder_shape
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.pictures import PictureShape, read_axes, slots_of
from installer.checkpoint.graph.tower import EPSILON, ROPE, Patches, TowerShape, Windows
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

_TOKENS = ("video_token_id", "vision_start_token_id", "vision_end_token_id", "vision_token_id")


def read(checkpoint: Checkpoint) -> PictureShape:
    """Read config.json. Raises CheckpointError naming a key that these graphs cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["Qwen2_5_VLForConditionalGeneration"])
    text = config.section("text_config") or config
    tied = config.flag("tie_word_embeddings", False)
    if text is not config:
        text.expect("tie_word_embeddings", tied)
    text.expect("use_sliding_window", False)
    text.ignore("sliding_window", "max_window_layers")
    shape = decoder_shape.read_decoder(text, tied=tied, kinds=read_axes("apart"))
    newer = "model.language_model.norm.weight" in checkpoint.tensors
    seen = _read_tower(
        config.needed("vision_config"), shape.hidden, "model.visual" if newer else "visual"
    )
    root = "model.language_model" if newer else "model"
    picture = PictureShape(replace(shape, root=root), seen, config.integer("image_token_id"))
    # Videos are not offered; the tokens around an image are the template's to write.
    config.ignore(*_TOKENS)
    if text is not config:
        text.finish(decoder_shape.HARMLESS_KEYS)
    config.finish(decoder_shape.HARMLESS_KEYS)
    return picture


def build(graph: GraphBuilder, shape: PictureShape, form: object) -> None:
    """Write the decoder."""
    slots = partial(slots_of(form), picture=shape)
    decoder.build_decoder(graph, shape.decoder, slots, qwen2.project, decoder.swiglu)


def build_tower(graph: GraphBuilder, shape: TowerShape) -> None:
    """Write the tower."""
    patches = Patches(graph, shape)
    windows = Windows(graph, patches)
    x = patches.embed(bias=False)
    for layer in range(shape.layers):
        at = f"{shape.at}.blocks.{layer}"
        heads = patches.heads(graph.norm(x, f"{at}.norm1.weight", shape.hidden, EPSILON), at)
        attended = patches.attend(heads) if layer in shape.full else windows.attend(heads)
        result = graph.linear(
            patches.flat(attended), f"{at}.attn.proj", shape.hidden, shape.hidden, bias=True
        )
        x = graph.op("Add", x, result)
        normed = graph.norm(x, f"{at}.norm2.weight", shape.hidden, EPSILON)
        x = graph.op("Add", x, _feed_forward(graph, shape, f"{at}.mlp", normed))
    at, width = f"{shape.at}.merger", shape.hidden * shape.merge**2
    normed = graph.norm(x, f"{at}.ln_q.weight", shape.hidden, EPSILON)
    inner = graph.linear(patches.merged(normed), f"{at}.mlp.0", width, width, bias=True)
    features = graph.linear(graph.op("Gelu", inner), f"{at}.mlp.2", width, shape.out, bias=True)
    patches.conclude([features])


def _feed_forward(graph: GraphBuilder, shape: TowerShape, at: str, x: ir.Value) -> ir.Value:
    gate = graph.linear(x, f"{at}.gate_proj", shape.hidden, shape.inner, bias=True)
    up = graph.linear(x, f"{at}.up_proj", shape.hidden, shape.inner, bias=True)
    product = graph.op("Mul", graph.op("Mul", gate, graph.op("Sigmoid", gate)), up)
    return graph.linear(product, f"{at}.down_proj", shape.inner, shape.hidden, bias=True)


def _read_tower(sight: Settings, width: int, at: str) -> TowerShape:
    sight.expect("hidden_act", "silu")
    sight.expect("out_hidden_size", width)
    sight.expect("rope_parameters", ROPE)
    sight.expect("in_chans", 3)
    patch, merge = sight.integer("patch_size"), sight.integer("spatial_merge_size")
    sight.expect("spatial_patch_size", patch)
    window = sight.integer("window_size")
    if window % (patch * merge):
        raise CheckpointError(f"config.json: window_size {window} is no multiple of a token's")
    sight.ignore("tokens_per_second")  # of videos
    shape = TowerShape(
        at=at,
        hidden=sight.integer("hidden_size"),
        layers=sight.integer("depth"),
        heads=sight.integer("num_heads"),
        inner=sight.integer("intermediate_size"),
        out=width,
        channels=sight.integer("in_channels", 3),
        patch=patch,
        temporal=sight.integer("temporal_patch_size"),
        merge=merge,
        window=window // (patch * merge),
        full=frozenset(sight.ids("fullatt_block_indexes")),
    )
    sight.finish(decoder_shape.HARMLESS_KEYS)
    return shape

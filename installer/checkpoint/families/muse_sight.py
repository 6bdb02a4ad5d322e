"""What sees of Muse Glimmer: a tower that mostly attends in windows, and a bridge to the words.

Learned positions are spread by centres, columns turn before rows, and counting begins with one.
A bridge norms a feature as the decoder does a token's vector. Positions of a prompt have one
axis: an image's tokens are counted like words. Reference: Muse Glimmer (2026),
`MuseGlimmerVisionModel`, `MuseGlimmerModel`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import onnx_ir as ir

from appliance.errors import CheckpointError
from installer.checkpoint.families import muse_glimmer
from installer.checkpoint.graph import decoder_shape, tower
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.pictures import PictureShape, slots_of
from installer.checkpoint.graph.tower import ROPE, Patches, TowerShape, Windows
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

_AT, _ADAPTER, _BRIDGE = "model.vision_tower", "model.vision_adapter", "model.vision_projection"
_FULL, _NEAR = "full_attention", "window_attention"
_COLOURS, _EVERY = 3, 4
_EPSILON = 1e-5
"""Of norms within layers, and around them if nothing else is said."""


@dataclass(frozen=True, slots=True)
class MuseTower(TowerShape):
    """A tower and the bridge behind it.

    Attributes:
        bridge: width between the tower and a feature.
        epsilon: of the norms around the layers.
        last_epsilon: of the norm of a feature.
    """

    bridge: int = 0
    epsilon: float = _EPSILON
    last_epsilon: float = _EPSILON


def read(checkpoint: Checkpoint) -> PictureShape:
    """Read config.json. Raises CheckpointError naming a key that these graphs cannot express."""
    config = checkpoint.settings("config.json")
    sight = config.needed("vision_config")
    config.expect("projector_hidden_act", "gelu")
    bridge = config.integer("projector_hidden_size", 4096)
    merged, token = config.integer("out_hidden_size", 6144), config.integer("image_token_id")
    config.ignore("video_token_id")  # videos are not offered
    text = muse_glimmer.read_part(config, "MuseGlimmer", "muse_glimmer_text")
    shape = muse_glimmer.read_glimmer(text)
    seen = _read_tower(sight, shape, bridge)
    if merged != seen.hidden * seen.merge**2:
        raise CheckpointError(
            f"config.json: out_hidden_size {merged} is not that of {seen.merge**2} patches",
            hint="the checkpoint's config.json belongs to another model",
        )
    return PictureShape(shape, seen, token)


def build(graph: GraphBuilder, shape: PictureShape, form: object) -> None:
    """Write the decoder."""
    slots = partial(slots_of(form, counted=True), picture=shape)
    muse_glimmer.build(graph, shape.decoder, slots)


def build_tower(graph: GraphBuilder, shape: TowerShape) -> None:
    """Write the tower."""
    assert isinstance(shape, MuseTower)
    patches = Patches(graph, shape, first=1, columns_first=True)
    x = _embed(graph, shape, patches)
    x = tower.layer_norm(graph, f"{shape.at}.ln_pre", x, shape.hidden, shape.epsilon)
    windows = Windows(graph, patches)
    for layer in range(shape.layers):
        at = f"{shape.at}.layers.{layer}"
        normed = tower.layer_norm(graph, f"{at}.norm1", x, shape.hidden, _EPSILON)
        heads = _heads(graph, shape, patches, f"{at}.attn", normed)
        attended = patches.attend(heads) if layer in shape.full else windows.attend(heads)
        size = shape.hidden
        result = graph.linear(patches.flat(attended), f"{at}.attn.proj", size, size, bias=True)
        x = graph.op("Add", x, result)
        normed = tower.layer_norm(graph, f"{at}.norm2", x, shape.hidden, _EPSILON)
        x = graph.op("Add", x, _feed_forward(graph, shape, f"{at}.mlp", normed))
    x = tower.layer_norm(graph, f"{shape.at}.ln_post", x, shape.hidden, shape.epsilon)
    patches.conclude([_cross(graph, shape, patches.merged(x))])


def _embed(graph: GraphBuilder, shape: TowerShape, patches: Patches) -> ir.Value:
    """Patches, whose frames stand in front of their colours here, and where they are learned."""
    frames, colours, dots = shape.temporal, shape.channels, shape.patch**2
    apart = graph.op("Reshape", patches.given, graph.constant([-1, colours, frames, dots]))
    apart = graph.op("Transpose", apart, perm=[0, 2, 1, 3])
    flat = graph.op("Reshape", apart, graph.constant([-1, shape.patch_width]))
    at = f"{shape.at}.patch_embedder"
    seen = graph.linear(flat, f"{at}.patch_embedding", shape.patch_width, shape.hidden)
    learned = tower.learned(graph, shape, f"{at}.position_embedding_table.weight")
    return graph.op("Add", seen, learned)


def _heads(
    graph: GraphBuilder, shape: TowerShape, patches: Patches, at: str, x: ir.Value
) -> Sequence[ir.Value]:
    """States [n, hidden] -> turned queries and keys, and values, [1, n, hidden] each."""
    first = graph.constant([0])
    each = (
        graph.linear(x, f"{at}.{name}_proj", shape.hidden, shape.hidden, bias=True)
        for name in "qkv"
    )
    queries, keys, values = (graph.op("Unsqueeze", one, first) for one in each)
    return patches.turn(queries, keys, values)


def _feed_forward(graph: GraphBuilder, shape: TowerShape, at: str, x: ir.Value) -> ir.Value:
    inner = graph.op("Gelu", graph.linear(x, f"{at}.fc1", shape.hidden, shape.inner, bias=True))
    return graph.linear(inner, f"{at}.fc2", shape.inner, shape.hidden, bias=True)


def _cross(graph: GraphBuilder, shape: MuseTower, x: ir.Value) -> ir.Value:
    """Patches of each token [tokens, merge * merge * hidden] -> features [tokens, out].

    The reference has the patches of a number follow each other, not the numbers of a patch.
    """
    count, width = shape.merge**2, shape.hidden * shape.merge**2
    apart = graph.op("Reshape", x, graph.constant([-1, count, shape.hidden]))
    turned = graph.op("Transpose", apart, perm=[0, 2, 1])
    x = graph.op("Reshape", turned, graph.constant([-1, width]))
    x = graph.op("Gelu", graph.linear(x, f"{_ADAPTER}.fc1", width, shape.bridge))
    x = graph.op("Gelu", graph.linear(x, f"{_ADAPTER}.fc2", shape.bridge, shape.bridge))
    features = graph.linear(x, _BRIDGE, shape.bridge, shape.out)
    return graph.norm_plainly(features, shape.out, shape.last_epsilon)


def _read_tower(sight: Settings, shape: DecoderShape, bridge: int) -> MuseTower:
    sight.expect("model_type", "muse_glimmer_vision")
    sight.expect("hidden_act", "gelu")
    sight.expect("rope_parameters", ROPE, {**ROPE, "rope_type": "default"})
    layers, merge = sight.integer("num_hidden_layers"), sight.integer("merge_size", 2)
    side = sight.integer("pos_emb_height")
    sight.expect("pos_emb_width", side)
    sight.expect("max_position_embeddings", side**2)
    if side % merge:
        raise CheckpointError(
            f"config.json: pos_emb_height {side} is no multiple of merge_size {merge}",
            hint="windows of this tower hold whole tokens",
        )
    seen = MuseTower(
        at=_AT,
        hidden=sight.integer("hidden_size"),
        layers=layers,
        heads=sight.integer("num_attention_heads"),
        inner=sight.integer("intermediate_size"),
        out=shape.hidden,
        channels=_COLOURS,
        patch=sight.integer("patch_size"),
        temporal=sight.integer("patch_temporal", 2),
        merge=merge,
        side=side,
        window=side // merge,
        full=_read_full(sight, layers),
        counted=True,
        bridge=bridge,
        epsilon=sight.number("layer_norm_eps", _EPSILON),
        last_epsilon=shape.epsilon,
    )
    sight.finish(decoder_shape.HARMLESS_KEYS)
    return seen


def _read_full(sight: Settings, layers: int) -> frozenset[int]:
    """The layers in which all patches attend to all: every fourth and the last, if not said."""
    usual = [_NEAR if at % _EVERY and at < layers else _FULL for at in range(1, layers + 1)]
    names = sight.texts("layer_types", usual)
    if len(names) != layers or not {_FULL, _NEAR} >= set(names):
        raise CheckpointError(
            f"config.json: vision_config: layer_types has {len(names)} layers of "
            f"{', '.join(sorted(set(names)))}",
            hint=f"this tower needs {layers} of {_FULL}, {_NEAR}",
        )
    return frozenset(at for at, name in enumerate(names) if name == _FULL)

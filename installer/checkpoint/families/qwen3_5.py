"""Qwen3.5, dense: three of four layers are Gated DeltaNets, the fourth attends with gated heads.

Those that see images have Qwen3-VL's tower, without DeepStack, and in the layers that attend its
positions of three axes. The head that predicts further tokens is left out.
Reference: `Qwen3_5ForCausalLM` and `Qwen3_5ForConditionalGeneration` (2026).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import onnx_ir as ir

from appliance.errors import CheckpointError
from installer.checkpoint.families import qwen3_vl
from installer.checkpoint.families.qwen3_vl import ReadWords
from installer.checkpoint.graph import decoder, decoder_shape, gated_delta
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form, Heads
from installer.checkpoint.graph.decoder_shape import DecoderShape, Norms
from installer.checkpoint.graph.gated_delta import Project
from installer.checkpoint.graph.gated_heads import GatedHeads
from installer.checkpoint.graph.kinds import FULL, Kinds, LayerKind, read_kinds
from installer.checkpoint.graph.pictures import PictureShape, slots_of
from installer.checkpoint.graph.recurrent import LINEAR, Deltas, Recurrent
from installer.checkpoint.graph.rope import Rope, read_rope
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

NORMS = Norms(offset=1.0)
_INTERVAL = 4
"""Every fourth layer attends, unless said otherwise."""
_SHARE = 0.25
"""Of a head's numbers turn, unless said otherwise."""
_OF_IMAGES = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["Qwen3_5ForCausalLM"])
    return _read(config, tied=False)


def read_with_images(checkpoint: Checkpoint) -> PictureShape:
    """As `read`, of a checkpoint whose language model is one part."""
    return read_seeing(checkpoint, "Qwen3_5ForConditionalGeneration", _read)


def read_words(checkpoint: Checkpoint) -> DecoderShape:
    """The language model alone of such a checkpoint."""
    return read_part(checkpoint, "Qwen3_5ForConditionalGeneration", _read)


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    build_hybrid(graph, shape, form, gated_delta.project_apart, decoder.swiglu)


def build_with_images(graph: GraphBuilder, shape: PictureShape, form: object) -> None:
    """Write the decoder; the tower is Qwen3-VL's."""
    build(graph, shape.decoder, partial(slots_of(form), picture=shape))


def read_seeing(checkpoint: Checkpoint, architecture: str, read_text: ReadWords) -> PictureShape:
    """The decoder with its tower, of an `architecture` whose words `read_text` reads."""
    shape = qwen3_vl.read_as(checkpoint, architecture, read_text)
    if shape.tower.deep:
        raise CheckpointError(
            f"config.json: deepstack_visual_indexes = {list(shape.tower.deep)} is not supported",
            hint="this family's reference implementation leaves DeepStack out",
        )
    if any(kind.rope.sections is None for kind in shape.decoder.kinds):
        raise CheckpointError(
            "config.json: text_config has no 'mrope_section'",
            hint="a model that sees images has positions of three axes",
        )
    return shape


def read_part(checkpoint: Checkpoint, architecture: str, read_text: ReadWords) -> DecoderShape:
    """The decoder alone of an `architecture` whose words `read_text` reads."""
    text, tied = text_of(checkpoint, architecture)
    return replace(read_text(text, tied=tied), root=qwen3_vl.WORDS)


def text_of(
    checkpoint: Checkpoint, architecture: str, *, beside: Sequence[str] = ()
) -> tuple[Settings, bool]:
    """What config.json of an `architecture` says of words, and whether it ties both tables.

    `beside`: further keys that say nothing of words.
    """
    config = checkpoint.settings("config.json")
    config.expect("architectures", [architecture])
    text = config.needed("text_config")
    tied = config.flag("tie_word_embeddings", False)
    text.expect("tie_word_embeddings", tied)
    config.ignore("vision_config", *_OF_IMAGES, *beside)
    config.finish(decoder_shape.HARMLESS_KEYS)
    return text, tied


def read_hybrid(
    config: Settings, *, tied: bool, attending: Sequence[str] = (FULL,)
) -> DecoderShape:
    """Read the keys that every decoder of this kind has, of whatever feed-forward.

    `attending`: what the kind of a layer may be called that attends.
    """
    config.expect("attention_bias", False)
    config.expect("attn_output_gate", True)
    config.expect("use_sliding_window", False)
    config.ignore("mamba_ssm_dtype", "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings")
    shape = decoder_shape.read_decoder(
        config, tied=tied, kinds=partial(_read_kinds, attending=attending)
    )
    own = read_recurrent(config, _default_kinds(config, shape.layers))
    return replace(shape, norms=NORMS, recurrent=own)


def build_hybrid(
    graph: GraphBuilder,
    shape: DecoderShape,
    form: Form,
    project: Project,
    feed_forward: decoder.FeedForward,
) -> None:
    """Write the graph of a decoder whose Gated DeltaNets read by `project`."""
    gated, recur = GatedHeads(project_gated), partial(gated_delta.mix, project=project)
    decoder.build_decoder(graph, shape, form, gated.project, feed_forward, gated.conclude, recur)


def project_gated(
    graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value
) -> tuple[Heads, ir.Value]:
    """Normed queries and keys, and values; queries come with the gates."""
    own, width = f"{at}.self_attn", shape.head_dim
    kv = shape.kv_heads * width
    outer = {"q": 2 * shape.heads * width, "k": kv, "v": kv}
    widths = {f"{own}.{name}_proj": count for name, count in outer.items()}
    both, keys, values = graph.linears(x, widths, shape.hidden)
    heads = graph.op("Reshape", both, graph.constant([0, 0, shape.heads, 2 * width]))
    halves = graph.ops("Split", heads, graph.constant([width, width]), outputs=2, axis=-1)
    flat = graph.constant([0, 0, shape.heads * width])
    queries, gate = (graph.op("Reshape", half, flat) for half in halves)
    queries = decoder.head_norm(graph, shape, f"{own}.q_norm", queries, shape.heads)
    keys = decoder.head_norm(graph, shape, f"{own}.k_norm", keys, shape.kv_heads)
    return (queries, keys, values), gate


def _read(config: Settings, *, tied: bool) -> DecoderShape:
    config.expect("mlp_only_layers", [])
    shape = read_hybrid(config, tied=tied)
    config.finish(decoder_shape.HARMLESS_KEYS)
    return shape


def _read_kinds(config: Settings, head_dim: int, *, attending: Sequence[str]) -> Kinds:
    """All that attend are alike; those that do not turn nothing, and are said to be the same."""
    kind = LayerKind(_read_rope(config, head_dim))
    layers = config.integer("num_hidden_layers")
    kinds = dict.fromkeys((*attending, LINEAR), kind)
    return read_kinds(config, kinds, _default_kinds(config, layers))


def _default_kinds(config: Settings, layers: int) -> list[str]:
    interval = config.integer("full_attention_interval", _INTERVAL)
    return [LINEAR if at % interval else FULL for at in range(1, layers + 1)]


def _read_rope(config: Settings, head_dim: int) -> Rope:
    """Where it has three axes, words are at the same place on each."""
    config.assume("partial_rotary_factor", _SHARE)
    parameters = config.section("rope_parameters")
    axes = parameters is not None and "mrope_section" in parameters
    return read_rope(config, head_dim, partial=True, axes="interleaved" if axes else "one")


def read_recurrent(config: Settings, default: Sequence[str]) -> Recurrent:
    """The layers with a state, and its numbers; `default` is of each layer its kind."""
    names, layers = config.texts("layer_types", default), len(default)
    deltas = Deltas(
        key_heads=config.integer("linear_num_key_heads"),
        heads=config.integer("linear_num_value_heads"),
        key_dim=config.integer("linear_key_head_dim"),
        value_dim=config.integer("linear_value_head_dim"),
    )
    own = Recurrent(
        layers=frozenset(at for at, name in enumerate(names) if name == LINEAR),
        kernel=config.integer("linear_conv_kernel_dim"),
        channels=2 * deltas.keys + deltas.values,
        deltas=deltas,
    )
    if not 0 < len(own.layers) < layers:
        raise CheckpointError(
            f"config.json: layer_types has {len(own.layers)} of {layers} layers of {LINEAR}",
            hint="this family has layers of both kinds",
        )
    if deltas.heads % deltas.key_heads:
        raise CheckpointError(
            f"config.json: linear_num_value_heads {deltas.heads} is not a multiple of "
            f"linear_num_key_heads {deltas.key_heads}",
            hint="the checkpoint's config.json belongs to another model",
        )
    return own

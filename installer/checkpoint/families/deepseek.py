"""DeepSeek-V2, V3, V3.2 and R1, GLM-4.7-Flash and GLM-5: latent attention, and experts of
DeepSeek's kind.

Owns what latent attention, and an index for it, have in config.json; experts are routed.py's.
Reference: DeepSeek-V2 (2024), DeepSeek-V3 Technical Report (2024), DeepSeek-V3.2 (2025),
`DeepseekV2ForCausalLM`, `DeepseekV3ForCausalLM`, `DeepseekV32ForCausalLM`,
`Glm4MoeLiteForCausalLM` and `GlmMoeDsaForCausalLM`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from appliance.errors import CheckpointError
from installer.checkpoint.graph import decoder, decoder_shape, experts, routed
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form
from installer.checkpoint.graph.decoder_shape import AroundDecoder, DecoderShape
from installer.checkpoint.graph.kinds import Kinds, LayerKind, read_dense
from installer.checkpoint.graph.latent import Latent
from installer.checkpoint.graph.lightning import LatentSearch, Lightning
from installer.checkpoint.graph.rope import read_rope
from installer.checkpoint.graph.routed import Routed
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

_HARMLESS = decoder_shape.HARMLESS_KEYS | experts.HARMLESS_KEYS
_HARMLESS |= {"ep_size", "aux_loss_alpha", "seq_aux"}
_HEAD_UNIT = 16
_INDEXED = ("indexed_attention", "deepseek_sparse_attention")
"""What config.json calls attention by an index, now and before."""


@dataclass(frozen=True, slots=True)
class LatentShape(AroundDecoder):
    """A decoder whose cache holds latents, its heads, and the index that finds what they read."""

    latent: Latent
    index: Lightning | None = None


def read(checkpoint: Checkpoint) -> LatentShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["DeepseekV3ForCausalLM"])
    config.expect("head_dim", config.integer("qk_rope_head_dim"))
    config.expect("topk_method", "noaux_tc")
    return _read(config, routed.read_routed(config))


def read_v2(checkpoint: Checkpoint) -> LatentShape:
    """The same of DeepSeek-V2, whose experts are chosen by a softmax."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["DeepseekV2ForCausalLM"])
    config.expect("head_dim", config.integer("qk_rope_head_dim"))
    config.expect("mlp_bias", False)
    # Neighbours turn together always, and weights are never made to add up to one.
    config.expect("rope_interleave", True)
    config.expect("norm_topk_prob", False)
    config.expect("topk_method", "greedy", "group_limited_greedy")
    mixture = routed.read_routed(config, scores="softmax")
    if config.text("topk_method", "greedy") == "greedy":
        mixture = replace(mixture, groups=1, best=1)  # whatever is said of groups
    return _read(config, mixture)


def read_v32(checkpoint: Checkpoint) -> LatentShape:
    """The same of DeepSeek-V3.2, whose attention reads what an index finds."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["DeepseekV32ForCausalLM"])
    config.expect("topk_method", "noaux_tc")
    config.expect("mlp_bias", False)
    config.expect("rope_interleave", True)
    _expect_indexed(config)
    config.expect("head_dim", config.integer("qk_rope_head_dim"))
    return _read_sparse(config, _read_index(config, interleaved=False))


def read_glm5(checkpoint: Checkpoint) -> LatentShape:
    """The same of GLM-5, of whose layers some read what was found for the one before."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["GlmMoeDsaForCausalLM"])
    config.expect("topk_method", "noaux_tc")
    config.expect("mlp_bias", False)
    config.expect("rope_interleave", True)
    config.expect("indexer_rope_interleave", True)
    _expect_indexed(config)
    # Of what is turned, or of the rest; and of layers that predict further tokens.
    config.expect("head_dim", *map(config.integer, ("qk_rope_head_dim", "qk_nope_head_dim")))
    config.ignore("index_share_for_mtp_iteration")
    index = replace(_read_index(config, interleaved=True), shared=_read_shared(config))
    return _read_sparse(config, index)


def read_glm(checkpoint: Checkpoint) -> LatentShape:
    """The same of GLM-4.7-Flash, which says of each layer whether it has experts."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["Glm4MoeLiteForCausalLM"])
    config.expect("topk_method", "noaux_tc")
    config.expect("partial_rotary_factor", 1.0)
    config.expect("head_dim", config.integer("qk_rope_head_dim"))
    return _read(config, routed.read_routed(config, dense=_read_dense(config, 1)))


def build(graph: GraphBuilder, shape: LatentShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    routed.leave_out_further(graph, shape.decoder)
    latent, index = shape.latent, shape.index
    for layer in index.shared if index is not None else ():
        graph.tensors.leave_out(f"{shape.decoder.root}.layers.{layer}.self_attn.indexer.")
    decoder.build_decoder(
        *(graph, shape.decoder, form, latent.project, routed.feed_forward, latent.conclude),
        attend=None if index is None else LatentSearch(latent, index).mix,
    )


def _read(config: Settings, mixture: Routed, index: Lightning | None = None) -> LatentShape:
    config.expect("attention_bias", False)
    config.expect("num_key_value_heads", config.integer("num_attention_heads"))
    config.expect("pretraining_tp", 1)
    latent = read_latent(config, index)
    shape = _read_decoder(config, latent)
    config.finish(_HARMLESS)
    return LatentShape(replace(shape, mixture=mixture), latent, index)


def _read_sparse(config: Settings, index: Lightning) -> LatentShape:
    first = min(config.whole("first_k_dense_replace", 3), config.integer("num_hidden_layers"))
    return _read(config, routed.read_routed(config, dense=_read_dense(config, first)), index)


def _read_shared(config: Settings) -> frozenset[int]:
    """The layers without an index of their own."""
    layers = config.integer("num_hidden_layers")
    every, offset = config.integer("index_topk_freq", 1), config.whole("index_skip_topk_offset", 2)
    usual = ["shared" if max(at - offset + 1, 0) % every else "full" for at in range(layers)]
    kinds = config.texts("indexer_types", usual)
    if len(kinds) != layers or not {"full", "shared"} >= set(kinds) or kinds[0] != "full":
        raise CheckpointError(
            f"config.json: indexer_types names {len(kinds)} layers of "
            f"{', '.join(sorted(set(kinds)))}",
            hint=f"this model needs {layers} of full, shared, of which the first is full",
        )
    return frozenset(at for at, kind in enumerate(kinds) if kind == "shared")


def _read_index(config: Settings, *, interleaved: bool) -> Lightning:
    index = Lightning(
        heads=config.integer("index_n_heads"),
        width=config.integer("index_head_dim"),
        chosen=config.integer("index_topk"),
        interleaved=interleaved,
    )
    if "q_lora_rank" not in config:
        raise CheckpointError(
            "config.json: q_lora_rank is missing",
            hint="the index of this model makes its queries of the vector that q_lora_rank is the "
            "width of",
        )
    if index.width % _HEAD_UNIT or index.width < config.integer("qk_rope_head_dim"):
        raise CheckpointError(
            f"config.json: index_head_dim {index.width} is not a multiple of {_HEAD_UNIT} that "
            "holds qk_rope_head_dim",
            hint="the checkpoint's config.json belongs to another model",
        )
    return index


def _expect_indexed(config: Settings) -> None:
    """That `layer_types`, where it is said, names attention by an index for each layer."""
    layers = config.integer("num_hidden_layers")
    config.expect("layer_types", *([name] * layers for name in _INDEXED))


def _read_dense(config: Settings, first: int) -> frozenset[int]:
    """The layers without experts: so many at the bottom, if nothing else is said."""
    dense = read_dense(config, config.integer("num_hidden_layers"), range(first))
    if dense == set(range(len(dense))):
        config.expect("first_k_dense_replace", len(dense))
    return dense


def read_latent(config: Settings, index: Lightning | None = None) -> Latent:
    """Read the widths of latent attention. Raises CheckpointError."""
    latent = Latent(
        queries=config.integer("q_lora_rank") if "q_lora_rank" in config else None,
        rank=config.integer("kv_lora_rank"),
        turned=config.integer("qk_rope_head_dim"),
        plain=config.integer("qk_nope_head_dim"),
        values=config.integer("v_head_dim"),
        index=0 if index is None else index.width,
    )
    if latent.head_dim % _HEAD_UNIT or latent.turned % _HEAD_UNIT:
        raise CheckpointError(
            f"config.json: kv_lora_rank {latent.rank} and qk_rope_head_dim {latent.turned} are "
            f"not multiples of {_HEAD_UNIT}",
            hint="the attention kernel needs them to be",
        )
    return latent


def _read_decoder(config: Settings, latent: Latent) -> DecoderShape:
    def read_kinds(config: Settings, _head_dim: int) -> Kinds:
        rope = read_rope(config, latent.turned)
        rope = replace(rope, interleaved=config.flag("rope_interleave", True))
        return (LayerKind(rope),) * config.integer("num_hidden_layers")

    config.expect("qk_head_dim", latent.plain + latent.turned)
    shape = decoder_shape.read_decoder(config, kinds=read_kinds, head_dim=latent.head_dim)
    return replace(shape, kv_heads=1, scale=_read_scale(config, latent))


def _read_scale(config: Settings, latent: Latent) -> float:
    """What products are multiplied by: YaRN's sharpening, where it is said, is in it squared."""
    scale: float = (latent.plain + latent.turned) ** -0.5
    scaling = config.section("rope_parameters") or config.section("rope_scaling")
    if scaling is None:
        return scale
    weight = scaling.number("mscale_all_dim", 0.0)
    factor = scaling.number("factor", 1.0)
    return scale * (0.1 * weight * math.log(factor) + 1) ** 2 if factor > 1 else scale

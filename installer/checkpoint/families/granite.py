"""Granite 3 and 4: Llama's blocks with multipliers, of embeddings, results, products and scores.

`granitemoehybrid` is built where all its layers attend and none has experts, as Granite 4.0 Micro
is published; its feed-forwards have names of their own. Reference: Granite 3.0 Language Models
(2024), `GraniteForCausalLM`, `GraniteMoeHybridForCausalLM`; the multipliers: Yang et al., Tensor
Programs V (2022).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from appliance.errors import CheckpointError
from installer.checkpoint.families import llama
from installer.checkpoint.graph import decoder_shape
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.kinds import FULL, Kinds, LayerKind, read_alike, read_kinds
from installer.checkpoint.graph.rope import STILL, read_rope
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

_EXPERTS, _KINDS, _POSITIONS = "num_local_experts", "layer_types", "position_embedding_type"
_ATTENDS: Final = ("attention", FULL)
"""What a layer that attends is called; the first as published."""
_OF_OTHER_LAYERS: Final = (
    *("mamba_chunk_size", "mamba_conv_bias", "mamba_d_conv", "mamba_d_head", "mamba_d_state"),
    *("mamba_expand", "mamba_n_groups", "mamba_n_heads", "mamba_proj_bias", "time_step_limit"),
    *("num_experts_per_tok", "output_router_logits", "router_aux_loss_coef"),
    *("init_method", "logits_to_keep", "intermediate_size"),
)
"""Keys that say nothing where no layer has a state and none has experts."""


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["GraniteForCausalLM"])
    shape = _read(config, read_alike)
    config.finish(decoder_shape.HARMLESS_KEYS)
    return shape


def read_hybrid(checkpoint: Checkpoint) -> DecoderShape:
    """As `read`, for model_type granitemoehybrid. Refuses other layers than those that attend."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["GraniteMoeHybridForCausalLM"])
    _expect_attention_alone(config)
    config.expect("normalization_function", "rmsnorm")
    config.ignore(*_OF_OTHER_LAYERS)
    inner = config.integer("shared_intermediate_size")
    config.assume("intermediate_size", inner)
    shape = _read(config, _read_kinds)
    config.finish(decoder_shape.HARMLESS_KEYS)
    return replace(shape, inner=inner)


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    llama.build(graph, shape, form)


def build_hybrid(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """As `build`, of feed-forwards by the names that they have here."""
    for layer in range(shape.layers):
        at = f"{shape.root}.layers.{layer}"
        opening, way_down = (f"{at}.shared_mlp.{n}_linear.weight" for n in ("input", "output"))
        names = (f"{at}.mlp.{name}_proj.weight" for name in ("gate", "up"))
        graph.tensors.divide(opening, dict.fromkeys(names, shape.inner))
        graph.tensors.divide(way_down, {f"{at}.mlp.down_proj.weight": shape.hidden})
    llama.build(graph, shape, form)


def _read(config: Settings, kinds: decoder_shape.ReadKinds) -> DecoderShape:
    for bias in ("attention_bias", "mlp_bias"):
        config.expect(bias, False)
    shape = decoder_shape.read_decoder(config, kinds=kinds)
    return replace(
        shape,
        scale=config.number("attention_multiplier", 1.0),
        embedding_scale=config.number("embedding_multiplier", 1.0),
        result_scale=_above_zero(config, "residual_multiplier"),
        score_scale=1 / _above_zero(config, "logits_scaling"),
    )


def _above_zero(config: Settings, key: str) -> float:
    number = config.number(key, 1.0)
    if number <= 0:
        raise CheckpointError(
            f"config.json: {key} = {number} is not above zero",
            hint="the checkpoint's config.json is damaged",
        )
    return number


def _expect_attention_alone(config: Settings) -> None:
    layers = config.integer("num_hidden_layers")
    others = set(config.texts(_KINDS, ["mamba"] * layers)) - set(_ATTENDS)
    if others:
        raise CheckpointError(
            f"config.json: {_KINDS} has layers of {', '.join(sorted(others))}, which keep a "
            "running state",
            hint="of this family the dense models are built whose layers all attend, such as "
            "Granite 4.0 Micro without an H in its name",
        )
    if config.whole(_EXPERTS, 8):
        raise CheckpointError(
            f"config.json: {_EXPERTS} = {config.whole(_EXPERTS, 8)} is not supported",
            hint="of this family only models without experts are built",
        )


def _read_kinds(config: Settings, head_dim: int) -> Kinds:
    """All layers alike: they turn, or they know no positions."""
    config.expect(_POSITIONS, "rope", "nope")
    rope = read_rope(config, head_dim)
    if config.text(_POSITIONS, "nope") != "rope":
        rope = STILL
    layers = config.integer("num_hidden_layers")
    kinds = dict.fromkeys(_ATTENDS, LayerKind(rope))
    return read_kinds(config, kinds, [FULL] * layers)

"""Kimi-Linear: layers whose state decays by channels among latent attention without positions.

Experts are DeepSeek's, by names of their own. Layers that predict further tokens are left out.
Reference: Kimi Linear (2025); `KimiLinearForCausalLM`.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from appliance.errors import CheckpointError
from installer.checkpoint.expert_weights import ExpertWeights
from installer.checkpoint.families import deepseek
from installer.checkpoint.families.deepseek import LatentShape
from installer.checkpoint.graph import decoder, decoder_shape, experts, kimi_delta, routed
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.kinds import FULL, Kinds, LayerKind
from installer.checkpoint.graph.latent import Latent
from installer.checkpoint.graph.recurrent import LINEAR, Deltas, Recurrent
from installer.checkpoint.graph.rope import STILL
from installer.checkpoint.graph.routed import Routed
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

_MIXTURE = "block_sparse_moe"


def read(checkpoint: Checkpoint) -> LatentShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["KimiLinearForCausalLM"])
    config.expect("mla_use_nope", True)
    config.expect("attention_bias", False)
    config.expect("num_key_value_heads", config.integer("num_attention_heads"))
    config.expect("pretraining_tp", 1)
    # Of no use where nothing knows positions; and of what the cache does not hold.
    config.ignore("rope_theta", "rope_scaling", "rope_parameters", "head_dim")
    if "model_max_length" in config:
        config.assume("max_position_embeddings", config.integer("model_max_length"))
    config.assume("hidden_act", "silu")
    latent, mixture = deepseek.read_latent(config), _read_mixture(config)
    shape = _read_decoder(config, latent)
    config.finish(decoder_shape.HARMLESS_KEYS | experts.HARMLESS_KEYS)
    return LatentShape(replace(shape, mixture=mixture), latent)


def build(graph: GraphBuilder, shape: LatentShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    routed.leave_out_further(graph, shape.decoder)
    latent = shape.latent
    decoder.build_decoder(
        *(graph, shape.decoder, form, latent.project, _feed_forward, latent.conclude),
        kimi_delta.mix,
    )


def _feed_forward(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> ir.Value:
    mixture, divided = shape.mixture, shape.divisors(graph).into_feed_forward
    assert isinstance(mixture, Routed)
    own, hidden = f"{at}.{_MIXTURE}", shape.hidden
    if mixture.is_dense(at):
        # The reference gives these the mixture's name when it writes them.
        written = graph.tensors.holds(f"{own}.gate_proj.weight")
        return decoder.gated(graph, shape, x, own if written else f"{at}.mlp", shape.inner)
    choice = routed.choose(graph, shape, own, x, divided=divided)
    stored = f"{own}.experts"
    gate, up, down = (f"{stored}.{{}}.{name}.weight" for name in ("w1", "w3", "w2"))
    weights = ExpertWeights(graph.tensors, (gate, up), down)
    mixed = experts.mix(graph, x, choice, mixture, weights, hidden, stored, divided=divided)
    return graph.add(mixed, decoder.gated(graph, shape, x, f"{own}.shared_experts", mixture.shared))


def _read_mixture(config: Settings) -> Routed:
    config.expect("moe_router_activation_func", "sigmoid")
    config.expect("moe_layer_freq", 1)
    config.expect("use_grouped_topk", True)
    config.expect("topk_method", "noaux_tc")
    inner = config.integer("moe_intermediate_size")
    mixture = Routed(
        experts=config.integer("num_experts"),
        chosen=config.integer("num_experts_per_token"),
        inner=inner,
        dense=frozenset(range(config.whole("first_k_dense_replace", 1))),
        adds_up=config.flag("moe_renormalize", True),
        groups=config.integer("num_expert_group", 1),
        best=config.integer("topk_group", 1),
        factor=config.number("routed_scaling_factor", 1.0),
        shared=config.integer("num_shared_experts") * inner,
        further=config.whole("num_nextn_predict_layers", 0),
    )
    routed.check_groups(mixture)
    return mixture


def _read_decoder(config: Settings, latent: Latent) -> DecoderShape:
    layers = config.integer("num_hidden_layers")
    own = config.needed("linear_attn_config")
    recurrent = _read_recurrent(own, _read_recurring(own, config, layers))
    own.finish()

    def kinds(_config: Settings, _head_dim: int) -> Kinds:
        return (LayerKind(STILL),) * layers

    shape = decoder_shape.read_decoder(config, kinds=kinds, head_dim=latent.head_dim)
    scale = (latent.plain + latent.turned) ** -0.5
    return replace(shape, kv_heads=1, scale=scale, recurrent=recurrent)


def _read_recurring(own: Settings, config: Settings, layers: int) -> frozenset[int]:
    """The layers with a state, which config.json counts from 1."""
    recurring, attending = own.ids("kda_layers"), own.ids("full_attn_layers")
    said = [LINEAR if at in recurring else FULL for at in range(1, layers + 1)]
    named = config.texts("layer_types", said)
    both = sorted((*recurring, *attending))
    if both != list(range(1, layers + 1)) or list(named) != said or not (recurring and attending):
        raise CheckpointError(
            f"config.json: kda_layers and full_attn_layers do not share the {layers} layers",
            hint="each layer is of one kind, and there are both",
        )
    return frozenset(layer - 1 for layer in recurring)


def _read_recurrent(own: Settings, layers: frozenset[int]) -> Recurrent:
    heads, width = own.integer("num_heads"), own.integer("head_dim")
    deltas = Deltas(key_heads=heads, heads=heads, key_dim=width, value_dim=width)
    return Recurrent(
        layers=layers,
        kernel=own.integer("short_conv_kernel_size"),
        channels=2 * deltas.keys + deltas.values,
        deltas=deltas,
    )

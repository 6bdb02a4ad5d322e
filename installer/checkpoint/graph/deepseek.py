"""DeepSeek-V3 and R1: latent attention, and experts chosen among groups beside one for all.

The layers that predict further tokens (`num_nextn_predict_layers`) serve training and speculation,
and are left out. Reference: DeepSeek-V3 Technical Report (2024), `DeepseekV3ForCausalLM`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import onnx_ir as ir

from appliance.bundle.specs import DecoderSpec
from appliance.errors import CheckpointError
from installer.checkpoint.expert_weights import ExpertWeights
from installer.checkpoint.graph import decoder, experts
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import DecoderShape, Form
from installer.checkpoint.graph.experts import Choice, Mixture
from installer.checkpoint.graph.kinds import Kinds, LayerKind
from installer.checkpoint.graph.latent import Latent
from installer.checkpoint.graph.rope import read_rope
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

_NAMES = ("gate_proj", "up_proj", "down_proj")
_HARMLESS = decoder.HARMLESS_KEYS | {"ep_size", "aux_loss_alpha", "seq_aux"}
_LEAST_WEIGHT = 1e-30
"""Below what any chosen expert weighs; its logarithm is finite."""
_HEAD_UNIT = 16
_OUT_OF_REACH = -60_000.0


@dataclass(frozen=True, slots=True)
class Routing:
    """How experts are chosen.

    Attributes:
        groups: of equally many experts.
        best: the groups that are chosen among.
        factor: what the mixture's result is multiplied by.
        shared: experts that every token goes through, as one of their width together.
        further: layers beyond the last that predict further tokens.
    """

    groups: int
    best: int
    factor: float
    shared: int
    further: int


@dataclass(frozen=True, slots=True)
class DeepseekShape:
    """A decoder whose cache holds latents, its heads, and its routing."""

    decoder: DecoderShape
    latent: Latent
    mixture: Mixture
    routing: Routing

    @property
    def vocab(self) -> int:
        return self.decoder.vocab

    @property
    def layers(self) -> int:
        return self.decoder.layers

    @property
    def context(self) -> int:
        return self.decoder.context

    def spec(self) -> DecoderSpec:
        """As the engine sees it: one key head."""
        return self.decoder.spec()


def read(checkpoint: Checkpoint) -> DeepseekShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["DeepseekV3ForCausalLM"])
    config.expect("attention_bias", False)
    config.expect("num_key_value_heads", config.integer("num_attention_heads"))
    config.expect("pretraining_tp", 1)
    latent = _read_latent(config)
    shape = DeepseekShape(
        _read_decoder(config, latent), latent, _read_mixture(config), _read_routing(config)
    )
    config.finish(_HARMLESS)
    return shape


def build(graph: GraphBuilder, shape: DeepseekShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    for layer in range(shape.layers, shape.layers + shape.routing.further):
        graph.tensors.leave_out(f"model.layers.{layer}.")

    latent, feed_forward = shape.latent, partial(_feed_forward, shape)
    decoder.build_decoder(graph, shape.decoder, form, latent.project, feed_forward, latent.conclude)


def _feed_forward(
    whole: DeepseekShape, graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value
) -> ir.Value:
    if whole.mixture.is_dense(at):
        return decoder.swiglu(graph, shape, at, x)
    return _mix(graph, whole, f"{at}.mlp", x, shape.divisors(graph).into_feed_forward)


def _read_latent(config: Settings) -> Latent:
    latent = Latent(
        queries=config.integer("q_lora_rank") if "q_lora_rank" in config else None,
        rank=config.integer("kv_lora_rank"),
        turned=config.integer("qk_rope_head_dim"),
        plain=config.integer("qk_nope_head_dim"),
        values=config.integer("v_head_dim"),
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

    config.expect("head_dim", latent.turned)
    config.expect("qk_head_dim", latent.plain + latent.turned)
    shape = decoder.read_decoder(config, kinds=read_kinds, head_dim=latent.head_dim)
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


def _read_mixture(config: Settings) -> Mixture:
    config.expect("moe_layer_freq", 1)
    dense = config.whole("first_k_dense_replace")
    return Mixture(
        experts=config.integer("n_routed_experts"),
        chosen=config.integer("num_experts_per_tok"),
        inner=config.integer("moe_intermediate_size"),
        dense=frozenset(range(dense)),
        adds_up=config.flag("norm_topk_prob", True),
    )


def _read_routing(config: Settings) -> Routing:
    config.expect("scoring_func", "sigmoid")
    config.expect("topk_method", "noaux_tc")
    routing = Routing(
        groups=config.integer("n_group"),
        best=config.integer("topk_group"),
        factor=config.number("routed_scaling_factor"),
        shared=config.integer("n_shared_experts"),
        further=config.whole("num_nextn_predict_layers", 0),
    )
    count = config.integer("n_routed_experts")
    if count % routing.groups or count // routing.groups < 2 or routing.best > routing.groups:
        raise CheckpointError(
            f"config.json: n_group {routing.groups} and topk_group {routing.best} do not divide "
            f"{count} experts",
            hint="the checkpoint's config.json belongs to another model",
        )
    return routing


def _mix(
    graph: GraphBuilder, shape: DeepseekShape, at: str, x: ir.Value, divided: float
) -> ir.Value:
    """The chosen experts' results and that of the shared one, of an x that is `divided`."""
    mixture, hidden = shape.mixture, shape.decoder.hidden
    choice = _choose(graph, shape, at, x, divided)
    stored = f"{at}.experts"
    gate, up, down = (f"{stored}.{{}}.{name}.weight" for name in _NAMES)
    weights = ExpertWeights(graph.tensors, (gate, up), down)
    mixed = experts.mix(graph, x, choice, mixture, weights, hidden, stored, divided=divided)
    inner = mixture.inner * shape.routing.shared
    shared = decoder.gated(graph, shape.decoder, x, f"{at}.shared_experts", inner)
    return graph.add(mixed, shared)


def _choose(
    graph: GraphBuilder, shape: DeepseekShape, at: str, x: ir.Value, divided: float
) -> Choice:
    """The experts with the highest scores in the best groups; a correction weighs in the choice
    alone."""
    mixture, routing = shape.mixture, shape.routing
    name, hidden = f"{at}.gate", shape.decoder.hidden
    logits = experts.router(graph, x, name, hidden, mixture.experts, divided=divided)
    scores = graph.op("Sigmoid", logits)
    correction = experts.vector(graph, f"{at}.gate.e_score_correction_bias", mixture.experts)
    corrected = _within_groups(graph, graph.op("Add", scores, correction), mixture, routing)
    _, indices = experts.highest(graph, corrected, mixture.chosen)
    weights = graph.op("GatherElements", scores, indices, axis=1)
    logarithms = graph.op("Log", graph.op("Max", weights, graph.constant([_LEAST_WEIGHT])))
    total = graph.constant([routing.factor])
    if not mixture.adds_up:
        sums = graph.op("ReduceSum", weights, graph.constant([-1]), keepdims=1)
        total = graph.op("Mul", sums, total)
    return Choice(indices, logarithms, total)


def _within_groups(
    graph: GraphBuilder, scores: ir.Value, mixture: Mixture, routing: Routing
) -> ir.Value:
    """scores [tokens, experts], out of reach but in the groups whose two best add up to most."""
    if routing.best == routing.groups:
        return scores
    size = mixture.experts // routing.groups
    apart = graph.op("Reshape", scores, graph.constant([-1, routing.groups, size]))
    two, _ = experts.highest(graph, apart, 2)
    sums = graph.op("ReduceSum", two, graph.constant([-1]), keepdims=0)
    best, chosen = experts.highest(graph, sums, routing.best)
    none = graph.op("Expand", graph.constant([_OUT_OF_REACH]), graph.op("Shape", sums))
    nothing = graph.op("Mul", best, graph.constant([0.0]))
    reach = graph.op("ScatterElements", none, chosen, nothing, axis=1)
    within = graph.op("Add", apart, graph.op("Unsqueeze", reach, graph.constant([2])))
    return graph.op("Reshape", within, graph.constant([-1, mixture.experts]))

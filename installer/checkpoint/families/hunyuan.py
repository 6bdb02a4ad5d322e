"""Hunyuan, dense and with experts (A13B): heads are normed behind the turning, with learned gains.

The kernel would turn behind the norm, so queries and keys are turned in front of it, and the kernel
turns by nothing. Angles are stretched by one number, whatever the length of a text.
Reference: `HunYuanDenseV1ForCausalLM` and `HunYuanMoEV1ForCausalLM` (2025).
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from appliance.errors import CheckpointError
from installer.checkpoint.expert_weights import matrices
from installer.checkpoint.graph import decoder, decoder_shape, experts
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Attention, Form
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.experts import Mixture
from installer.checkpoint.graph.indexed import Searchable
from installer.checkpoint.graph.kinds import Kinds, LayerKind
from installer.checkpoint.graph.rope import STILL, Basis, Rope, read_scaling
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

_INERT = (
    *("add_classification_head", "class_num", "dense_list", "pool_type", "skip_cls_token"),
    *("cla_share_factor", "norm_topk_prob", "org_vocab_size", "pad_id", "eod_token_id"),
    *("sep_token_id", "mask_init_id", "text_start_id", "text_end_id", "im_start_id", "im_end_id"),
    *("im_newline_id", "image_token_id", "video_start_id", "video_end_id", "num_media_embeds"),
    *("moe_drop_tokens", "moe_random_routing_dropped_token", "rope_type"),
)
"""Of other heads and other senses, of training, and of what is refused where it is switched on."""
_SWITCHED_OFF = (
    *("attention_bias", "mlp_bias", "use_cla", "position_embedding_xdrope"),
    *("group_limited_greedy", "n_group", "topk_group", "routed_scaling_factor"),
)
_OF_YARN = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim")
"""Stand beside a stretching that does not ask for them."""


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["HunYuanDenseV1ForCausalLM"])
    shape = _read(config)
    config.finish(decoder_shape.HARMLESS_KEYS)
    return shape


def read_mixed(checkpoint: Checkpoint) -> DecoderShape:
    """The same of one with experts."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["HunYuanMoEV1ForCausalLM"])
    config.expect("use_mixed_mlp_moe", True)
    config.expect("moe_layer_num_skipped", 0)
    shape = _read(config)
    inner = _of_all_layers(config, "moe_intermediate_size", shape.inner)
    if inner != shape.inner or _of_all_layers(config, "num_shared_expert", 1) != 1:
        raise CheckpointError(
            f"config.json: moe_intermediate_size {inner} is not intermediate_size {shape.inner}, "
            "or num_shared_expert is not 1",
            hint="the reference has one shared expert, and one width for all",
        )
    mixture = Mixture(
        experts=_of_all_layers(config, "num_experts"),
        chosen=_of_all_layers(config, "moe_topk"),
        inner=inner,
        shared=inner,
    )
    config.finish(decoder_shape.HARMLESS_KEYS | experts.HARMLESS_KEYS)
    return replace(shape, mixture=mixture)


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    feed_forward = decoder.swiglu if shape.mixture is None else _feed_forward
    decoder.build_decoder(graph, shape, form, _project, feed_forward, attend=_attend)


def _project(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> decoder.Heads:
    return decoder.project(graph, shape, at, x, bias=False)


def _attend(
    graph: GraphBuilder,
    shape: DecoderShape,
    attention: Attention,
    layer: int,
    at: str,
    x: ir.Value,
) -> ir.Value:
    assert isinstance(attention, Searchable), "this form does not turn in front of the kernel"
    queries, keys, values = _project(graph, shape, at, x)

    def turned_and_normed(name: str, y: ir.Value, heads: int) -> ir.Value:
        turned = attention.turn(layer, y, heads, shape.head_dim, interleaved=False)
        name = f"{at}.self_attn.{name}_layernorm"
        return decoder.head_norm(graph, shape, name, turned, heads)

    heads = (
        turned_and_normed("query", queries, shape.heads),
        turned_and_normed("key", keys, shape.kv_heads),
        values,
    )
    return decoder.conclude_plainly(graph, shape, at, attention.attend(layer, heads))


def _feed_forward(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> ir.Value:
    """The chosen experts' results and that of the one for all."""
    mixture, divided = shape.mixture, shape.divisors(graph).into_feed_forward
    assert mixture is not None
    at, hidden = f"{at}.mlp", shape.hidden
    scores = experts.router(graph, x, f"{at}.gate.wg", hidden, mixture.experts, divided=divided)
    choice, stored = experts.choose_by_softmax(graph, scores, mixture), f"{at}.experts"
    weights = matrices(graph.tensors, stored)
    mixed = experts.mix(graph, x, choice, mixture, weights, hidden, stored, divided=divided)
    return graph.add(mixed, decoder.gated(graph, shape, x, f"{at}.shared_mlp", mixture.shared))


def _read(config: Settings) -> DecoderShape:
    """The keys that both have, and those of what neither does."""
    for key in _SWITCHED_OFF:
        config.expect(key, False)
    config.expect("use_qk_norm", True)
    config.expect("use_rotary_pos_emb", True)
    config.expect("norm_type", "rms")
    config.expect("pretraining_tp", 1)
    config.ignore(*_INERT)
    if "attention_head_dim" in config:
        config.assume("head_dim", config.integer("attention_head_dim"))
        config.expect("attention_head_dim", config.integer("head_dim"))
    return decoder_shape.read_decoder(config, kinds=_read_kinds)


def _read_kinds(config: Settings, head_dim: int) -> Kinds:
    kind = LayerKind(STILL, early=_read_angles(config, head_dim))
    return (kind,) * config.integer("num_hidden_layers")


def _read_angles(config: Settings, head_dim: int) -> Rope:
    """Those of a base that is stretched by `alpha`, if it is said."""
    parameters = config.section("rope_parameters")
    scaling = parameters or config.section("rope_scaling")
    theta = (parameters or config).number("rope_theta", 10_000.0)
    if parameters is not None:
        config.expect("rope_theta", theta)
        config.expect("rope_scaling")
    stretched = theta
    if scaling is not None:
        said = ("dynamic",) if "alpha" in scaling else ("default",)
        for key in ("type", "rope_type"):
            scaling.expect(key, *said)
        scaling.expect("factor", 1.0)
        scaling.expect("rope_theta", theta)
        scaling.ignore(*_OF_YARN)
        stretched *= scaling.number("alpha", 1.0) ** (head_dim / (head_dim - 2))
        scaling.finish()
    basis = Basis(stretched, head_dim, config.integer("max_position_embeddings"), None)
    return read_scaling(None, basis)


def _of_all_layers(config: Settings, key: str, usual: int | None = None) -> int:
    """What is said once, or the same for each layer."""
    said = set(config.ids(key)) if key in config else {usual}
    value = said.pop() if len(said) == 1 else None
    if value is None:
        raise CheckpointError(
            f"config.json: {key} is missing, or not the same for all layers",
            hint="the experts of all layers are built alike",
        )
    return value

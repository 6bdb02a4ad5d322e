"""OLMo Hybrid: three of four layers are Gated DeltaNets with norms in front of their blocks, the
fourth is OLMo 3's, with norms behind them.

What a state learns may turn over what it knows: rates go up to two. Published models know positions
by their states alone: config.json then says no `rope_theta`. Reference: `OlmoHybridForCausalLM`
(2026).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import onnx_ir as ir

from installer.checkpoint.families import olmo, qwen3_5
from installer.checkpoint.graph import decoder, decoder_shape, gated_delta
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form
from installer.checkpoint.graph.decoder_shape import DecoderShape, Norms
from installer.checkpoint.graph.gated_delta import Inputs, Kind
from installer.checkpoint.graph.kinds import FULL, Kinds, LayerKind, read_kinds
from installer.checkpoint.graph.linear_attention import deltas_of
from installer.checkpoint.graph.recurrent import LINEAR
from installer.checkpoint.graph.rope import STILL, read_rope
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

_EPSILON = 1e-5
"""Of the norms of what states say."""
_SHARE = 0.75
"""Of the hidden size, what all keys have, unless said otherwise."""
_DRAWN_BY = (
    *("linear_a_log_min", "linear_a_log_max", "linear_dt_min", "linear_dt_max"),
    "linear_dt_init_floor",
)
_SAVED = "feedforward_layer_norm"
_BEFORE = Norms("attention_layer_norm", _SAVED)
"""As they are published. The reference, which has the names of others in memory, writes the second
one for what is behind attention, too."""
_PARTS = "qkv"
_DOUBLED = "linear_allow_neg_eigval"
_ROPE = "rope_parameters"


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["OlmoHybridForCausalLM"])
    config.expect("attention_bias", False)
    config.expect(_DOUBLED, True)
    config.ignore(*_DRAWN_BY)
    config.assume("rms_norm_eps", 1e-6)
    _assume_heads(config)
    shape = decoder_shape.read_decoder(config, kinds=_read_kinds)
    own = qwen3_5.read_recurrent(config, _usual(shape.layers))
    config.finish(decoder_shape.HARMLESS_KEYS)
    return replace(shape, norms=olmo.NORMS, norms_of_states=Norms(), recurrent=own)


def restated(config: Mapping[str, object]) -> dict[str, object]:
    """config.json as the reference has to be told it: without angles only if it says so."""
    said = config.get(_ROPE)
    turned = isinstance(said, dict) and said.get("rope_theta") is not None
    if turned or config.get("rope_theta") is not None:
        return dict(config)
    return {**config, _ROPE: {"rope_type": "default", "rope_theta": None}}


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms, of the tensors by the names that there are."""
    first, other = (
        next(layer for layer in range(shape.layers) if shape.recurs(layer) == recurs)
        for recurs in (True, False)
    )
    stored, at = graph.tensors, f"{shape.root}.layers.{first}"
    if stored.holds(f"{at}.{_BEFORE.before_attention}.weight"):
        shape = replace(shape, norms_of_states=_BEFORE)
    if stored.holds(f"{shape.root}.layers.{other}.{_SAVED}.weight"):
        shape = replace(shape, norms=replace(shape.norms, after_attention=_SAVED))
    together = stored.holds(f"{at}.linear_attn.conv1d.weight")
    parts = ("conv1d",) if together else tuple(f"{part}_conv1d" for part in _PARTS)
    kind = Kind(parts, norm="o_norm", out="o_proj", epsilon=_EPSILON, most=2.0)
    recur = partial(gated_delta.mix, project=_project, kind=kind)
    decoder.build_decoder(graph, shape, form, decoder.project_normed, decoder.swiglu, recur=recur)


def _project(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> Inputs:
    """By six linear layers."""
    own, hidden = deltas_of(shape), shape.hidden
    widths = (own.keys, own.keys, own.values, own.values)
    outer = {f"{at}.{n}_proj": width for n, width in zip((*_PARTS, "g"), widths, strict=True)}
    *mixed, gates = graph.linears(x, outer, hidden)
    rates, steps = (graph.linear_in_full(x, f"{at}.{n}_proj", hidden, own.heads) for n in "ba")
    return Inputs(graph.op("Concat", *mixed, axis=-1), gates, rates, steps)


def _usual(layers: int) -> list[str]:
    """The kind of each layer, unless said otherwise."""
    kinds = [LINEAR if at % 4 else FULL for at in range(1, layers + 1)]
    return kinds if FULL in kinds else [*kinds[:-1], FULL]


def _assume_heads(config: Settings) -> None:
    """What states have where config.json is silent."""
    heads, hidden = config.integer("num_attention_heads"), config.integer("hidden_size")
    for key in ("linear_num_key_heads", "linear_num_value_heads"):
        config.assume(key, heads)
    size = int(_SHARE * hidden / config.integer("linear_num_key_heads"))
    config.assume("linear_key_head_dim", size)
    config.assume("linear_value_head_dim", 2 * config.integer("linear_key_head_dim"))
    config.assume("linear_conv_kernel_dim", 4)


def _read_kinds(config: Settings, head_dim: int) -> Kinds:
    """All that attend are alike; those that do not turn nothing, and are said to be the same."""
    parameters = config.section(_ROPE)
    if "rope_theta" in (parameters or config):
        rope = read_rope(config, head_dim)
    else:
        config.expect("rope_scaling")
        if parameters is not None:
            parameters.expect("rope_type", "default")
            parameters.finish()
        rope = STILL
    kind = LayerKind(rope)
    return read_kinds(
        config, {FULL: kind, LINEAR: kind}, _usual(config.integer("num_hidden_layers"))
    )

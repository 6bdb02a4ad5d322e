"""Granite 4: layers that attend, Mamba-2 layers, or both; each with a gated feed-forward, experts,
or both.

Granite 4.0 Micro has layers that attend alone, H-Micro has both, H-Tiny and H-Small have experts,
too. Granite 3's mixtures are the same without the layers and mostly without the feed-forward. The
multipliers are granite.py's. Reference: `GraniteMoeHybridForCausalLM` (2025),
`GraniteMoeForCausalLM` and `GraniteMoeSharedForCausalLM` (2024).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Final

import onnx_ir as ir

from appliance.errors import CheckpointError
from installer.checkpoint.expert_weights import HalvedRows
from installer.checkpoint.families import granite, llama
from installer.checkpoint.graph import decoder, decoder_shape, experts, state_space
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.experts import Mixture
from installer.checkpoint.graph.kinds import FULL, Kinds, LayerKind, read_alike, read_kinds
from installer.checkpoint.graph.recurrent import LINEAR, Recurrent
from installer.checkpoint.graph.rope import STILL, read_rope
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

_EXPERTS, _CHOSEN, _KINDS = "num_local_experts", "num_experts_per_tok", "layer_types"
_POSITIONS = "position_embedding_type"
_ATTENDS: Final = ("attention", FULL)
"""What a layer that attends is called; the first as published."""
_REMEMBERS: Final = ("mamba", LINEAR)
"""The same of one with a state."""
_OF_STATES: Final = (
    *("mamba_conv_bias", "mamba_d_conv", "mamba_d_head", "mamba_d_state", "mamba_expand"),
    *("mamba_n_groups", "mamba_n_heads", "mamba_proj_bias", "time_step_limit"),
)
"""Keys that say nothing where no layer has a state."""
_HARMLESS: Final = ("init_method", "logits_to_keep", "mamba_chunk_size")
_USUAL_EXPERTS = 8


def kinds_of(checkpoint: Checkpoint) -> tuple[bool, bool]:
    """Whether layers keep a running state, and whether they have experts."""
    config = checkpoint.settings("config.json")
    names = _names(config)
    return bool(set(names) - set(_ATTENDS)), config.whole(_EXPERTS, _USUAL_EXPERTS) > 0


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["GraniteMoeHybridForCausalLM"])
    config.expect("normalization_function", "rmsnorm")
    config.ignore(*_HARMLESS)
    inner = config.integer("shared_intermediate_size")
    mixture = _read_mixture(config, inner)
    config.assume("intermediate_size", inner)
    shape = granite.read_multiplied(config, _read_kinds)
    shape = replace(
        shape, inner=inner, mixture=mixture, recurrent=_read_recurrent(config, shape.hidden)
    )
    config.finish(decoder_shape.HARMLESS_KEYS | experts.HARMLESS_KEYS)
    return shape


def read_mixture(checkpoint: Checkpoint, *, architecture: str) -> DecoderShape:
    """The same of Granite 3's mixtures, of which `architecture` is one."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", [architecture])
    config.expect("normalization_function", "rmsnorm")
    config.ignore(*_HARMLESS)
    shared = config.whole("shared_intermediate_size", 0)
    mixture = _read_mixture(config, shared)
    if mixture is None:
        raise CheckpointError(
            f"config.json: {_EXPERTS} = 0 is not supported",
            hint="this family has experts in every layer",
        )
    shape = granite.read_multiplied(config, read_alike)
    config.finish(decoder_shape.HARMLESS_KEYS | experts.HARMLESS_KEYS)
    return replace(shape, inner=shared, mixture=mixture)


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    for layer in range(shape.layers if shape.inner else 0):
        at = f"{shape.root}.layers.{layer}"
        opening, way_down = (f"{at}.shared_mlp.{n}_linear.weight" for n in ("input", "output"))
        names = (f"{at}.mlp.{name}_proj.weight" for name in ("gate", "up"))
        graph.tensors.divide(opening, dict.fromkeys(names, shape.inner))
        graph.tensors.divide(way_down, {f"{at}.mlp.down_proj.weight": shape.hidden})
    recur = partial(state_space.mix, kind=state_space.Kind("mamba"))
    decoder.build_decoder(graph, shape, form, llama.project, _feed_forward, recur=recur)


def _feed_forward(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> ir.Value:
    """What every token goes through, and the experts that it chose, where there are any."""
    shared = decoder.swiglu(graph, shape, at, x) if shape.inner else None
    if shape.mixture is None:
        assert shared is not None
        return shared
    at, hidden = f"{at}.block_sparse_moe", shape.hidden
    divided = shape.divisors(graph).into_feed_forward
    count = shape.mixture.experts
    scores = experts.router(graph, x, f"{at}.router.layer", hidden, count, divided=divided)
    choice = experts.choose_by_softmax(graph, scores, shape.mixture)
    opening, way_down = (f"{at}.{name}_linear.weight" for name in ("input", "output"))
    weights = HalvedRows(graph.tensors, (opening,), way_down)
    stored = f"{at}.experts"
    mixed = experts.mix(graph, x, choice, shape.mixture, weights, hidden, stored, divided=divided)
    return mixed if shared is None else graph.add(mixed, shared)


def _names(config: Settings) -> tuple[str, ...]:
    """What each layer is called."""
    return config.texts(_KINDS, [_REMEMBERS[0]] * config.integer("num_hidden_layers"))


def _read_mixture(config: Settings, shared: int) -> Mixture | None:
    count = config.whole(_EXPERTS, _USUAL_EXPERTS)
    if not count:
        config.ignore("intermediate_size", _CHOSEN)
        return None
    inner = config.integer("intermediate_size")
    return Mixture(experts=count, chosen=config.integer(_CHOSEN, 2), inner=inner, shared=shared)


def _read_kinds(config: Settings, head_dim: int) -> Kinds:
    """All that attend are alike: they turn, or they know no positions. Those with a state turn
    nothing, and are said to be the same."""
    config.expect(_POSITIONS, "rope", "nope")
    rope = read_rope(config, head_dim)
    if config.text(_POSITIONS, "nope") != "rope":
        rope = STILL
    kinds = dict.fromkeys((*_ATTENDS, *_REMEMBERS), LayerKind(rope))
    return read_kinds(config, kinds, [_REMEMBERS[0]] * config.integer("num_hidden_layers"))


def _read_recurrent(config: Settings, hidden: int) -> Recurrent | None:
    names = _names(config)
    layers = frozenset(at for at, name in enumerate(names) if name in _REMEMBERS)
    if not layers:
        config.ignore(*_OF_STATES)
        return None
    if len(layers) == len(names):
        raise CheckpointError(
            f"config.json: {_KINDS} has no layer that attends",
            hint="this family has some in every model that is built",
        )
    return state_space.read(config, layers, config.integer("mamba_expand", 2) * hidden)

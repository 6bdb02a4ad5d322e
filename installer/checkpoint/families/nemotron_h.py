"""Nemotron-H: layers of one block each, which is a Mamba-2 layer, attention, a feed-forward or
experts.

Feed-forwards and experts have no gate: they square what is positive. Nothing knows positions but by
the states. Heads that predict further tokens (`mtp`) are left out. Steps have no bounds, as
config.json says: the reference holds those of prompts above `time_step_min`, unless told not to.
Reference: Nemotron-H (2025), Nemotron 3 (2025); `NemotronHForCausalLM`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Final

import onnx_ir as ir

from appliance.errors import CheckpointError
from installer.checkpoint.expert_weights import ExpertWeights
from installer.checkpoint.graph import decoder, decoder_shape, experts, routed, state_space
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form, Heads
from installer.checkpoint.graph.decoder_shape import DecoderShape, Norms
from installer.checkpoint.graph.kinds import FULL, Kinds, LayerKind
from installer.checkpoint.graph.recurrent import LINEAR, Recurrent
from installer.checkpoint.graph.rope import STILL
from installer.checkpoint.graph.routed import Routed
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

_NORMS = Norms("norm", "norm", last="norm_f")
_MODULE: Final = "mixer"
"""What every layer's block is called."""
_PATTERN, _KINDS = "hybrid_override_pattern", "layers_block_type"
_PLAIN, _SPARSE = "mlp", "moe"
_LETTERS: Final = {"M": LINEAR, "*": FULL, "-": _PLAIN, "E": _SPARSE}
_NAMES: Final = {"mamba": LINEAR, "attention": FULL} | {name: name for name in _LETTERS.values()}
_STEEP = 2048.0
"""What gates of experts are multiplied by before their sigmoid: a step, but for numbers whose
square is nothing. 16-bit floats hold it, also where gates are divided."""
_NO_STEP = 1e-30
_HARMLESS: Final = (
    *("chunk_size", "mamba_ssm_cache_dtype", "use_mamba_kernels", "num_logits_to_keep"),
    *("hidden_dropout", "rescale_prenorm_residual", "residual_in_fp32", "expand"),
    *("time_step_min", "time_step_max", "time_step_floor", "time_step_rank"),
    *("moe_shared_expert_overlap", "rope_theta", "partial_rotary_factor", "output_router_logits"),
    *("num_nextn_predict_layers", "mtp_hybrid_override_pattern", "mtp_layers_block_type"),
)
"""They steer training or kernels, or say something of angles, of which there are none."""


def kinds_of(checkpoint: Checkpoint) -> tuple[bool, bool]:
    """Whether layers keep a running state, and whether some have experts."""
    kinds = _kinds(checkpoint.settings("config.json"))
    return LINEAR in kinds, _SPARSE in kinds


def restated(config: Mapping[str, object]) -> dict[str, object]:
    """config.json as the reference has to be told it."""
    return {**config, "time_step_min": _NO_STEP}


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["NemotronHForCausalLM"])
    _expect_plain(config)
    kinds = _kinds(config)
    config.assume("num_hidden_layers", len(kinds))
    config.expect("num_hidden_layers", len(kinds))
    config.assume("intermediate_size", 21_504)
    config.assume("head_dim", 128)
    epsilon = config.number("layer_norm_epsilon", 1e-5)
    for key in ("norm_eps", "rms_norm_eps"):
        config.expect(key, epsilon)
    config.assume("rms_norm_eps", epsilon)
    shape = decoder_shape.read_decoder(
        config, kinds=_read_still, activation=("mlp_hidden_act", "relu2")
    )
    config.expect("attention_head_dim", shape.head_dim)
    mixture = _read_mixture(config, kinds) if _SPARSE in kinds else None
    shape = replace(
        shape,
        norms=_NORMS,
        mixture=mixture,
        recurrent=_read_recurrent(config, kinds),
        feeding=_those(kinds, _PLAIN, _SPARSE),
    )
    config.finish(decoder_shape.HARMLESS_KEYS)
    return shape


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    root = "backbone" if "backbone.embeddings.weight" in graph.tensors else "model"
    shape = replace(shape, root=root)
    graph.tensors.divide(f"{root}.embeddings.weight", {f"{root}.embed_tokens.weight": shape.vocab})
    conclude = partial(decoder.conclude_plainly, module=_MODULE)
    recur = partial(state_space.mix, kind=state_space.Kind(_MODULE))
    decoder.build_decoder(graph, shape, form, _project, _feed_forward, conclude, recur)


def _project(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> Heads:
    return decoder.project(graph, shape, at, x, bias=False, module=_MODULE)


def _feed_forward(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> ir.Value:
    """One feed-forward, or the chosen experts' and that of all tokens."""
    # Squares outgrow 16 bits sooner than products of two halves: they are divided once more.
    by, mixture = shape.divisors(graph).into_feed_forward, shape.mixture
    x = graph.divide(x, by)
    own = f"{at}.{_MODULE}"
    if mixture is None or mixture.is_dense(at):
        y = _squared(graph, shape, x, own, shape.inner)
    else:
        y = _mixed(graph, shape, x, own, by**2)
        y = graph.add(y, _squared(graph, shape, x, f"{own}.shared_experts", mixture.shared))
    return graph.divide(y, 1 / by**2)


def _squared(
    graph: GraphBuilder, shape: DecoderShape, x: ir.Value, at: str, inner: int
) -> ir.Value:
    """down(relu(up(x))^2) of the module `at`; So et al., Primer (2021)."""
    positive = graph.op("Relu", graph.linear(x, f"{at}.up_proj", shape.hidden, inner))
    squares = graph.op("Mul", positive, positive)
    return graph.linear(squares, f"{at}.down_proj", inner, shape.hidden)


def _mixed(
    graph: GraphBuilder, shape: DecoderShape, x: ir.Value, at: str, divided: float
) -> ir.Value:
    """The chosen experts of x, which is `divided` by a number; their results are by its square.

    The processor's kernels do not square. A gate that opens steeply, and is what it lets through,
    does: every expert's first matrix is stored twice.
    """
    mixture = shape.mixture
    assert isinstance(mixture, Routed)
    narrow = mixture.latent
    choice = routed.choose(graph, shape, at, x, divided=divided)
    width, stored = shape.hidden, f"{at}.experts"
    if narrow:
        x = graph.linear(x, f"{at}.fc1_latent_proj", width, narrow)
    up, down = (f"{stored}.{{}}.{name}_proj.weight" for name in ("up", "down"))
    weights = ExpertWeights(graph.tensors, (up, up), down)
    size = narrow or width
    y = experts.mix(graph, x, choice, mixture, weights, size, stored, divided=divided)
    return graph.linear(y, f"{at}.fc2_latent_proj", narrow, width) if narrow else y


def _expect_plain(config: Settings) -> None:
    for bias in ("attention_bias", "mlp_bias", "mamba_proj_bias", "use_bias"):
        config.expect(bias, False)
    config.expect("use_conv_bias", True)
    config.expect("mamba_hidden_act", "silu")
    config.expect("tie_word_embeddings", False)
    config.expect("time_step_limit", state_space.UNLIMITED)
    config.ignore(*_HARMLESS)


def _kinds(config: Settings) -> tuple[str, ...]:
    """What each layer is, by a letter or a name for each. Raises CheckpointError for others."""
    if _KINDS in config:
        key, table, said = _KINDS, _NAMES, config.texts(_KINDS, [])
        config.ignore(_PATTERN)
    else:
        key, table, said = _PATTERN, _LETTERS, tuple(config.text(_PATTERN))
    kinds = tuple(table.get(one, one) for one in said)
    if not {LINEAR, FULL} <= set(kinds) <= set(_LETTERS.values()):
        raise CheckpointError(
            f"config.json: {key} has layers of {', '.join(sorted(set(said)))}, which is not "
            "supported",
            hint=f"this family has Mamba-2 layers and some that attend, of {', '.join(table)}",
        )
    return kinds


def _those(kinds: tuple[str, ...], *wanted: str) -> frozenset[int]:
    return frozenset(layer for layer, kind in enumerate(kinds) if kind in wanted)


def _read_still(config: Settings, _head_dim: int) -> Kinds:
    return (LayerKind(STILL),) * config.integer("num_hidden_layers")


def _read_mixture(config: Settings, kinds: tuple[str, ...]) -> Routed:
    config.expect("n_shared_experts", 1)
    config.assume("n_shared_experts", 1)
    dense = _those(kinds, LINEAR, FULL, _PLAIN)
    return replace(
        routed.read_routed(config, dense=dense),
        alpha=_STEEP,
        shared=config.integer("moe_shared_expert_intermediate_size"),
        latent=config.whole("moe_latent_size", 0),
    )


def _read_recurrent(config: Settings, kinds: tuple[str, ...]) -> Recurrent:
    return state_space.numbers(
        _those(kinds, LINEAR),
        kernel=config.integer("conv_kernel", 4),
        heads=config.integer("mamba_num_heads", 128),
        head_dim=config.integer("mamba_head_dim", 64),
        groups=config.integer("n_groups", 8),
        state=config.integer("ssm_state_size", 128),
    )

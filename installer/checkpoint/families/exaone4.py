"""EXAONE 4: norms behind the blocks alone, and of each query and key head; and K-EXAONE, a mixture.

Of the large one three of four layers see a window, and the others know no positions. Layers take
the stream as it is. K-EXAONE has the usual norms in front of the blocks instead, and experts of
DeepSeek's kind; what predicts further tokens is left out. Reference: EXAONE 4.0 (2025), K-EXAONE
(2026), `Exaone4ForCausalLM`, `ExaoneMoeForCausalLM`.
"""

from __future__ import annotations

from dataclasses import replace

from appliance.errors import CheckpointError
from installer.checkpoint.families import qwen3
from installer.checkpoint.graph import decoder, decoder_shape, experts, routed
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form
from installer.checkpoint.graph.decoder_shape import DecoderShape, Norms
from installer.checkpoint.graph.kinds import FULL, SLIDING, Kinds, LayerKind, read_kinds
from installer.checkpoint.graph.rope import STILL, read_rope
from installer.checkpoint.graph.routed import Names, Routed
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

_NORMS = Norms(
    before_attention=None,
    after_attention="post_attention_layernorm",
    before_feed_forward=None,
    after_feed_forward="post_feedforward_layernorm",
    heads=True,
)
MIXED = "ExaoneMoeForCausalLM"
"""What the reference library calls the mixture; its publisher writes MoE."""
_PATTERN, _WINDOW, _EVERY = "sliding_window_pattern", "sliding_window", 4
_PUBLISHED = Names(correction="e_score_correction_bias")


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["Exaone4ForCausalLM"])
    if _WINDOW not in checkpoint.config:
        # Null is none; not to mention it means the window of the reference.
        config.assume(_WINDOW, 4096)
    shape = decoder_shape.read_decoder(config, kinds=_read_kinds)
    config.finish(decoder_shape.HARMLESS_KEYS)
    return replace(shape, norms=_NORMS)


def read_mixed(checkpoint: Checkpoint) -> DecoderShape:
    """As `read`, for K-EXAONE."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", [MIXED], ["ExaoneMoEForCausalLM"])
    if _WINDOW not in checkpoint.config:
        config.assume(_WINDOW, 4096)
    if isinstance(checkpoint.config.get(_PATTERN), str) and "layer_types" not in config:
        raise CheckpointError(
            f"config.json: {_PATTERN} {checkpoint.config[_PATTERN]!r} needs layer_types beside it",
            hint="the reference implementation counts by a number only",
        )
    config.expect("topk_method", "noaux_tc")
    mixture = _read_mixture(config)
    shape = decoder_shape.read_decoder(config, kinds=_read_kinds)
    config.finish(decoder_shape.HARMLESS_KEYS | experts.HARMLESS_KEYS | {"tokenizer_class"})
    return replace(shape, mixture=mixture, norms=Norms(heads=True))


def build_mixed(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph of K-EXAONE in one of its forms, of the tensors by the names that there
    are."""
    mixture = shape.mixture
    assert isinstance(mixture, Routed)
    sparse = min(set(range(shape.layers)) - mixture.dense, default=0)
    published = f"{shape.root}.layers.{sparse}.mlp.{_PUBLISHED.correction}"
    names = _PUBLISHED if published in graph.tensors else Names()
    shape = replace(shape, mixture=replace(mixture, names=names))
    decoder.build_decoder(graph, shape, form, qwen3.project, routed.feed_forward)


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    qwen3.build(graph, shape, form)


def _read_kinds(config: Settings, head_dim: int) -> Kinds:
    """Where `layer_types` says which layers see a window, the pattern says it a second time."""
    layers, rope = config.integer("num_hidden_layers"), read_rope(config, head_dim)
    kinds, names = {FULL: LayerKind(rope)}, [FULL] * layers
    if _WINDOW in config:
        kinds = {FULL: LayerKind(STILL), SLIDING: LayerKind(rope, config.integer(_WINDOW))}
        every = _EVERY if "layer_types" in config else config.integer(_PATTERN, _EVERY)
        names = [SLIDING if at % every else FULL for at in range(1, layers + 1)]
    config.ignore(_PATTERN)
    return read_kinds(config, kinds, names)


def _read_mixture(config: Settings) -> Routed:
    config.assume("n_routed_experts", config.integer("num_experts"))
    config.assume("n_shared_experts", config.whole("num_shared_experts", 1))
    config.assume("routed_scaling_factor", 2.5)
    config.assume("norm_topk_prob", True)
    dense = routed.read_dense(config, config.whole("first_k_dense_replace", 1))
    layers = config.integer("num_hidden_layers")
    config.expect("is_moe_layer", [layer not in dense for layer in range(layers)])
    config.expect("first_last_k_dense_replace", len(dense))
    return routed.read_routed(config, dense=dense)

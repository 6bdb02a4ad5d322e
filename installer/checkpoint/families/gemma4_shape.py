"""The numbers of Gemma 4, and how they are read from config.json.

Owns the keys of both architectures, and the refusal of experts. What is computed with them:
gemma4.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from appliance.errors import CheckpointError
from installer.checkpoint.graph import decoder_shape
from installer.checkpoint.graph.decoder_shape import AroundDecoder, Norms
from installer.checkpoint.graph.heads import read_heads
from installer.checkpoint.graph.kinds import FULL, SLIDING, Kinds, LayerKind
from installer.checkpoint.graph.rope import Basis, Rope, read_scaling
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

_DEFAULTS = {
    "vocab_size": 262_144,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 30,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
_OF_PLAIN = {"max_position_embeddings": 131_072, "sliding_window": 512}
_OF_UNIFIED = {"max_position_embeddings": 262_144, "sliding_window": 1024}
_THETA = {FULL: 1_000_000.0, SLIDING: 10_000.0}
_SCALING = {"rope_type": "proportional", "partial_rotary_factor": 0.25}
"""Of the layers that see everything, where nothing is said."""
_PERIOD, _WIDE = 6, 512
_NORMS = Norms(
    before_attention="input_layernorm",
    after_attention="post_attention_layernorm",
    before_feed_forward="pre_feedforward_layernorm",
    after_feed_forward="post_feedforward_layernorm",
    heads=True,
)
_OF_OTHERS = (
    *("vision_config", "audio_config", "boi_token_id", "eoi_token_id", "image_token_id"),
    *("video_token_id", "boa_token_id", "eoa_token_index", "eoa_token_id", "audio_token_id"),
)
_OF_EXPERTS = ("num_experts", "top_k_experts", "moe_intermediate_size")


@dataclass(frozen=True, slots=True)
class GemmaShape(AroundDecoder):
    """A decoder, and what it has beside.

    Attributes:
        alike: the layers that take their keys for values.
        widened: how many times as wide the feed-forward is of layers that read others' keys.
        signal: numbers of the second signal in each layer; 0 if there is none.
        signals: tokens that the second table has.
    """

    alike: frozenset[int] = frozenset()
    widened: int = 1
    signal: int = 0
    signals: int = 0


def read(checkpoint: Checkpoint, *, unified: bool = False) -> GemmaShape:
    """Read config.json of a language model alone.

    Raises CheckpointError naming a key that this graph cannot express.
    """
    config = checkpoint.settings("config.json")
    config.expect("architectures", [f"Gemma4{'Unified' * unified}ForCausalLM"])
    return _read(config, unified=unified)


def read_with_others(checkpoint: Checkpoint, *, unified: bool = False) -> GemmaShape:
    """As `read`, of a checkpoint whose language model is one part."""
    name = f"Gemma4{'Unified' * unified}"
    config = checkpoint.settings("config.json")
    config.expect("architectures", [f"{name}ForConditionalGeneration"])
    text = config.needed("text_config")
    text.expect("model_type", f"gemma4{'_unified' * unified}_text")
    config.expect("tie_word_embeddings", True)
    config.ignore(*_OF_OTHERS)
    config.finish(decoder_shape.HARMLESS_KEYS)
    return _read(text, unified=unified)


def _read(config: Settings, *, unified: bool) -> GemmaShape:
    config = config.with_defaults({**_DEFAULTS, **(_OF_UNIFIED if unified else _OF_PLAIN)})
    config.expect("attention_bias", False)
    # Only tokens of images see those behind them.
    config.expect("use_bidirectional_attention", "vision")
    _refuse_experts(config)
    alike = config.flag("attention_k_eq_v", False)
    shape = decoder_shape.read_decoder(
        config,
        kinds=partial(_read_kinds, alike=alike),
        activation=("hidden_activation", "gelu_pytorch_tanh"),
    )
    cap = "final_logit_softcapping"
    signal = 0 if unified else config.whole("hidden_size_per_layer_input", 256)
    made = GemmaShape(
        replace(
            shape,
            scale=1.0,
            norms=_NORMS,
            embedding_scale=shape.hidden**0.5,
            score_cap=config.number(cap) if cap in config else None,
            wide=True,
        ),
        frozenset(at for at, name in enumerate(_read_names(config)) if alike and name == FULL),
        2 if config.flag("use_double_wide_mlp", False) else 1,
        signal,
        config.integer("vocab_size_per_layer_input", 262_144) if signal else 0,
    )
    if not signal:
        config.ignore("vocab_size_per_layer_input")
    config.finish(decoder_shape.HARMLESS_KEYS)
    return made


def _refuse_experts(config: Settings) -> None:
    if config.flag("enable_moe_block", False):
        raise CheckpointError(
            "config.json: enable_moe_block = True is not supported",
            hint="experts are bent by a GELU, which the runtime's kernels for a processor do not "
            "know; the models without experts are built: E2B, E4B, 12B and 31B",
        )
    config.ignore(*_OF_EXPERTS)


def _read_kinds(config: Settings, head_dim: int, *, alike: bool) -> Kinds:
    """Of each layer: window, angles, heads, and whose keys it reads."""
    names = _read_names(config)
    count = len(names)
    plain = config.integer("num_key_value_heads"), head_dim
    most = config.integer("num_global_key_value_heads", plain[0])
    wide = (most if alike else plain[0]), config.integer("global_head_dim", _WIDE)
    sizes = read_heads(config, names, plain, wide)
    ropes = _read_ropes(config, names, [size for _, size in sizes])
    windows = {FULL: None, SLIDING: config.integer("sliding_window")}
    own = count - config.whole("num_kv_shared_layers", 0)
    return tuple(
        LayerKind(
            *(ropes[name], windows[name]),
            kv_heads=kv_heads,
            head_dim=size,
            shares=None if layer < own else _source(names, own, name),
        )
        for layer, (name, (kv_heads, size)) in enumerate(zip(names, sizes, strict=True))
    )


def _read_names(config: Settings) -> Sequence[str]:
    """The kind of each layer."""
    count = config.integer("num_hidden_layers")
    usual = [SLIDING if at % _PERIOD else FULL for at in range(1, count + 1)]
    names = config.texts("layer_types", [*usual[:-1], FULL])
    if len(names) != count or not {FULL, SLIDING} >= set(names) or names[-1] != FULL:
        raise CheckpointError(
            f"config.json: layer_types has {len(names)} layers of {', '.join(sorted(set(names)))}",
            hint=f"this model needs {count} of {FULL}, {SLIDING}, the last one of the former",
        )
    return names


def _source(names: Sequence[str], own: int, name: str) -> int:
    """The last layer of that kind among the first `own`."""
    found = [layer for layer in range(own) if names[layer] == name]
    if not found:
        raise CheckpointError(
            f"config.json: num_kv_shared_layers leaves no layer of {name} with keys of its own",
            hint="the checkpoint's config.json belongs to another model",
        )
    return found[-1]


def _read_ropes(config: Settings, names: Sequence[str], sizes: Sequence[int]) -> dict[str, Rope]:
    """Angles of each kind; heads of one kind are alike, or their angles would not be."""
    parameters = config.section("rope_parameters")
    said = parameters or Settings({FULL: _SCALING, SLIDING: {}}, "")
    ropes: dict[str, Rope] = {}
    for name, theta in _THETA.items():
        section, widths = (
            said.section(name),
            {s for n, s in zip(names, sizes, strict=True) if n == name},
        )
        if len(widths) > 1:
            raise CheckpointError(f"config.json: per_layer_config has several widths of {name}")
        if not widths:
            continue
        theta = section.number("rope_theta", theta) if section is not None else theta
        basis = Basis(theta, widths.pop(), config.integer("max_position_embeddings"))
        ropes[name] = read_scaling(section, basis)
    said.finish()
    return ropes

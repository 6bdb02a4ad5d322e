"""Gemma 4, words alone: layers whose heads differ, keys that later layers read again.

Layers that see the whole text have wider heads, of which a quarter turns, and may take their keys
for values; values are normed, too. The last layers of the small models read the keys and values of
earlier ones, and a second table of the tokens speaks to each layer (`_Beside`). What sees and
hears is left out. Computed by the processor alone: docs/decisions/0292-llama-4-and-gemma-4.md.
Reference: Gemma 4 (2026), `Gemma4ForCausalLM`, `Gemma4UnifiedForCausalLM`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import onnx_ir as ir

from appliance.bundle.specs import DecoderSpec
from appliance.errors import CheckpointError
from installer.checkpoint.graph import decoder, decoder_shape
from installer.checkpoint.graph.builder import ACTIVATIONS, GraphBuilder
from installer.checkpoint.graph.decoder import Form, Heads
from installer.checkpoint.graph.decoder_shape import DecoderShape, Norms
from installer.checkpoint.graph.heads import read_heads
from installer.checkpoint.graph.kinds import FULL, SLIDING, Kinds, LayerKind
from installer.checkpoint.graph.rope import Basis, Rope, read_scaling
from installer.checkpoint.graph.table import Table
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
_SHARED = ("k_proj", "v_proj", "k_norm", "v_norm")


@dataclass(frozen=True, slots=True)
class GemmaShape:
    """A decoder, and what it has beside.

    Attributes:
        alike: whether layers that see everything take their keys for values.
        widened: how many times as wide the feed-forward is of layers that read others' keys.
        signal: numbers of the second signal in each layer; 0 if there is none.
        signals: tokens that the second table has.
    """

    decoder: DecoderShape
    alike: bool = False
    widened: int = 1
    signal: int = 0
    signals: int = 0

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
        """As the engine sees it: layers that have keys of their own."""
        return self.decoder.spec()


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


def build(graph: GraphBuilder, shape: GemmaShape, form: Form) -> None:
    """Write the graph in one of its forms, of the tensors by the names that there are."""
    own = shape.decoder.located(graph.tensors)
    shape = replace(shape, decoder=replace(own, tied=shape.decoder.tied))
    for layer, kind in enumerate(own.kinds):
        for name in _SHARED if kind.shares is not None else ():
            graph.tensors.leave_out(f"{own.root}.layers.{layer}.self_attn.{name}.")
    decoder.build_decoder(
        *(graph, shape.decoder, form, _Projection(shape.alike)),
        partial(_feed_forward, widened=shape.widened),
        _conclude,
        beside=_Beside(graph, shape),
    )


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
        alike,
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
    count = config.integer("num_hidden_layers")
    usual = [SLIDING if at % _PERIOD else FULL for at in range(1, count + 1)]
    names = config.texts("layer_types", [*usual[:-1], FULL])
    if len(names) != count or not {FULL, SLIDING} >= set(names) or names[-1] != FULL:
        raise CheckpointError(
            f"config.json: layer_types has {len(names)} layers of {', '.join(sorted(set(names)))}",
            hint=f"this model needs {count} of {FULL}, {SLIDING}, the last one of the former",
        )
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


class _Projection:
    """Queries, keys and values of one graph; a layer without the latter gives another's."""

    def __init__(self, alike: bool) -> None:
        self._alike = alike
        self._known: dict[int, tuple[ir.Value, ir.Value]] = {}

    def __call__(self, graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> Heads:
        layer = int(at.rpartition(".")[2])
        kind, own = shape.kinds[layer], _own(shape, layer)
        width, at = own.head_dim, f"{at}.self_attn"
        wanted = {f"{at}.q_proj": own.heads * width}
        if kind.shares is None:
            wanted[f"{at}.k_proj"] = own.kv_heads * width
        if kind.shares is None and not (self._alike and kind.window is None):
            wanted[f"{at}.v_proj"] = own.kv_heads * width
        queries, *others = graph.linears(x, wanted, shape.hidden)
        queries = decoder.head_norm(graph, own, f"{at}.q_norm", queries, own.heads)
        if kind.shares is None:
            keys = decoder.head_norm(graph, own, f"{at}.k_norm", others[0], own.kv_heads)
            values = graph.norm_heads_plainly(others[-1], own.kv_heads, width, own.epsilon)
            self._known[layer] = keys, values
        known = self._known[layer if kind.shares is None else kind.shares]
        return queries, *known


def _own(shape: DecoderShape, layer: int) -> DecoderShape:
    """The same with the heads of that layer."""
    heads = shape.heads_of(layer)
    return replace(shape, kv_heads=heads.kv_heads, head_dim=heads.head_dim)


def _conclude(graph: GraphBuilder, shape: DecoderShape, at: str, attended: ir.Value) -> ir.Value:
    own = _own(shape, int(at.rpartition(".")[2]))
    return decoder.conclude_plainly(graph, own, at, attended)


def _feed_forward(
    graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value, *, widened: int
) -> ir.Value:
    shares = shape.kinds[int(at.rpartition(".")[2])].shares
    inner = shape.inner * (1 if shares is None else widened)
    return decoder.gated(graph, shape, x, f"{at}.mlp", inner, "gelu_tanh")


class _Beside:
    """The second signal of a graph, and the factor of each layer.

    A signal is made of the token alone: of its row in a second table, and of its vector. It gates
    a narrow way beside the stream.
    """

    def __init__(self, graph: GraphBuilder, shape: GemmaShape) -> None:
        assert graph.shrink == 1, "it computes in 32 bits"
        self._graph = graph
        self._shape = shape
        self._signals: Sequence[ir.Value] = ()

    def begin(self, ids: ir.Value, stream: ir.Value) -> None:
        """Make the signals of all layers, [B, S, signal] each."""
        graph, own, size = self._graph, self._shape.decoder, self._shape.signal
        if not size:
            return
        count, width = own.layers, own.layers * size
        name = f"{own.root}.per_layer_model_projection"
        made = graph.linear(stream, name, own.hidden, width)
        # The norm takes the factor of the reference, hidden^-0.5, but for its epsilon.
        name, epsilon = f"{own.root}.per_layer_projection_norm.weight", own.epsilon * own.hidden
        made = graph.norm_heads(made, count, name, size, epsilon)
        name = f"{own.root}.embed_tokens_per_layer.weight"
        table = Table(graph, name, self._shape.signals, width, looked_up=True)
        found = graph.op("Mul", table.lookup(ids), graph.constant([size**0.5]))
        both = graph.op("Mul", graph.op("Add", made, found), graph.constant([2**-0.5]))
        self._signals = graph.ops(
            "Split", both, graph.constant([size] * count), outputs=count, axis=-1
        )

    def behind(
        self, layer: int, at: str, stream: ir.Value, result: ir.Value
    ) -> tuple[ir.Value, ir.Value | None]:
        """With what the signal lets through added, and times the layer's factor."""
        graph, own, size = self._graph, self._shape.decoder, self._shape.signal
        if size:
            stream = graph.add(stream, result)
            gate = graph.linear(stream, f"{at}.per_layer_input_gate", own.hidden, size)
            opened = ACTIVATIONS["gelu_tanh"](graph, gate, 1.0)
            product = graph.op("Mul", opened, self._signals[layer])
            result = graph.linear(product, f"{at}.per_layer_projection", size, own.hidden)
            name = f"{at}.post_per_layer_input_norm.weight"
            result = graph.norm(result, name, own.hidden, own.epsilon)
        factor = float(graph.tensors.vector(f"{at}.layer_scalar", 1)[0])
        if factor == 1:
            return stream, result
        return graph.residual(graph.add(stream, result), factor=factor), None

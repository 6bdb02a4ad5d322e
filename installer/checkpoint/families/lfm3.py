"""LFM3, dense: LFM2's short convolutions, and layers that attend with gated heads.

Of the layers that attend every other one has a window. What a block adds to the stream is normed.
A head is let through by one number, and not by one for each of its own. Reference:
`Lfm3ForCausalLM` (2026).
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from installer.checkpoint.families import lfm2
from installer.checkpoint.families.lfm2 import CONV
from installer.checkpoint.graph import decoder, decoder_shape, short_convolution
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form, Heads
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.kinds import FULL, SLIDING, Kinds, LayerKind, read_kinds
from installer.checkpoint.graph.rope import Basis, read_ropes
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

_NORMS = replace(
    lfm2.NORMS, after_attention="post_operator_norm", after_feed_forward="post_ffn_norm", heads=True
)
_THETAS = {FULL: 1_000_000.0, SLIDING: 10_000.0}
_SCALINGS = {FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.5}, SLIDING: {}}
"""Of each kind, unless said otherwise."""
_PERIOD = 4
"""Of so many layers two convolve, one sees a window and one everything."""
_WINDOW = 256
_TAPS = 7
_HEAD = 128


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["Lfm3ForCausalLM"])
    for key, only in (("conv_bias", False), ("attention_bias", False)):
        config.expect(key, only)
    for key in ("use_sandwich_norm", "use_attention_gate"):
        config.assume(key, True)
        config.expect(key, True)
    config.assume("head_dim", _HEAD)
    config.assume("rms_norm_eps", config.number("norm_eps", 1e-5))
    shape = decoder_shape.read_decoder(config, tied=True, kinds=_read_kinds)
    own = lfm2.read_convolutions(config, shape, _usual(shape.layers), usual=_TAPS)
    config.finish(decoder_shape.HARMLESS_KEYS)
    return replace(shape, norms=_NORMS, recurrent=own)


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    gated = _GatedHeads()
    decoder.build_decoder(
        *(graph, shape, form, gated.project, lfm2.feed_forward, gated.conclude),
        short_convolution.mix,
    )


class _GatedHeads:
    """Attention with normed heads, each of which a number of its own lets through."""

    def __init__(self) -> None:
        self._gates: dict[str, ir.Value] = {}
        """Of each layer, from its projection to its conclusion."""

    def project(self, graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> Heads:
        """Normed queries and keys, and values."""
        queries, keys, values = decoder.project(graph, shape, at, x, bias=False)
        own, divided = f"{at}.self_attn", shape.divisors(graph).into_attention
        gates = graph.linear(x, _gate(graph, own), shape.hidden, shape.heads)
        gates = graph.divide(gates, 1 / divided)
        self._gates[at] = graph.op("Sigmoid", gates)
        return (
            decoder.head_norm(graph, shape, f"{own}.q_norm", queries, shape.heads),
            decoder.head_norm(graph, shape, f"{own}.k_norm", keys, shape.kv_heads),
            values,
        )

    def conclude(
        self, graph: GraphBuilder, shape: DecoderShape, at: str, attended: ir.Value
    ) -> ir.Value:
        """One linear layer of what the gates let through."""
        sizes = [0, 0, shape.heads, shape.head_dim]
        heads = graph.op("Reshape", attended, graph.constant(sizes))
        gates = graph.op("Unsqueeze", self._gates.pop(at), graph.constant([-1]))
        flat = graph.constant([0, 0, shape.heads * shape.head_dim])
        opened = graph.op("Reshape", graph.op("Mul", heads, gates), flat)
        return decoder.conclude_plainly(graph, shape, at, opened)


def _gate(graph: GraphBuilder, at: str) -> str:
    """What lets heads through, as it is published or as the reference has it in memory."""
    inside = f"{at}.g_proj"
    return inside if graph.tensors.holds(f"{inside}.weight") else f"{at}.gate_proj"


def _usual(layers: int) -> list[str]:
    """The kind of each layer, unless said otherwise."""
    period = [SLIDING, CONV, FULL, CONV]
    return [CONV if at == 0 else period[at % _PERIOD] for at in range(layers)]


def _read_kinds(config: Settings, head_dim: int) -> Kinds:
    """Those that convolve turn nothing, and are said to see everything."""
    basis = Basis(0.0, head_dim, config.integer("max_position_embeddings"))
    parameters = config.section("rope_parameters") or Settings(_SCALINGS, "")
    ropes = read_ropes(parameters, _THETAS, basis)
    far = LayerKind(ropes[FULL])
    near = LayerKind(ropes[SLIDING], config.integer("sliding_window", _WINDOW))
    usual = _usual(config.integer("num_hidden_layers"))
    return read_kinds(config, {FULL: far, SLIDING: near, CONV: far}, usual)

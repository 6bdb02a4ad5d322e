"""Gemma 4, words alone: layers whose heads differ, keys that later layers read again.

Layers that see the whole text have wider heads, of which a quarter turns, and may take their keys
for values; values are normed, too. The last layers of the small models read the keys and values of
earlier ones, and a second table of the tokens speaks to each layer (`_Beside`). What sees and
hears is left out. Computed by the processor alone: docs/decisions/0292-llama-4-and-gemma-4.md.
Reference: Gemma 4 (2026), `Gemma4ForCausalLM`, `Gemma4UnifiedForCausalLM`. Its numbers:
gemma4_shape.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import onnx_ir as ir

from installer.checkpoint.families.gemma4_shape import GemmaShape
from installer.checkpoint.graph import decoder
from installer.checkpoint.graph.activations import ACTIVATIONS
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form, Heads
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.table import Table

_SHARED = ("k_proj", "v_proj", "k_norm", "v_norm")
"""What a layer has not that reads another's keys; some checkpoints have it all the same."""


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


class _Projection:
    """Queries, keys and values of one graph; a layer without the latter gives another's."""

    def __init__(self, alike: frozenset[int]) -> None:
        self._alike = alike
        self._known: dict[int, tuple[ir.Value, ir.Value]] = {}

    def __call__(self, graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> Heads:
        layer = int(at.rpartition(".")[2])
        kind, own = shape.kinds[layer], _own(shape, layer)
        width, at = own.head_dim, f"{at}.self_attn"
        wanted = {f"{at}.q_proj": own.heads * width}
        if kind.shares is None:
            wanted[f"{at}.k_proj"] = own.kv_heads * width
        if kind.shares is None and layer not in self._alike:
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

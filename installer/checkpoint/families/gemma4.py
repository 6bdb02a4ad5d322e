"""Gemma 4, words alone: layers whose heads differ, keys that later layers read again.

Layers that see the whole text have wider heads, of which a quarter turns, and may take their keys
for values; values are normed, too. The last layers of the small models read the keys and values of
earlier ones, and a second table of the tokens speaks to each layer (`_Beside`). What sees and
hears is left out. docs/decisions/0292-llama-4-and-gemma-4.md; in 16 bits: 0307-gemma-4-on-a-gpu.md.
Reference: Gemma 4 (2026), `Gemma4ForCausalLM`, `Gemma4UnifiedForCausalLM`. Its numbers:
gemma4_shape.py.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
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
            # As of all families, what heads read is divided, and not what they compare.
            by = own.divisors(graph).into_attention
            sizes = own.kv_heads, width
            values = graph.norm_heads_plainly(others[-1], *sizes, own.epsilon / by**2, divided=by)
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
    a narrow way beside the stream, which is read as it is: not normed, and so divided by more than
    what lies between norms where the graph has 16 bits.
    """

    def __init__(self, graph: GraphBuilder, shape: GemmaShape) -> None:
        self._graph = graph
        self._shape = shape
        self._signals: ir.Value | None = None

    def begin(self, ids: ir.Value, stream: ir.Value) -> None:
        """Make the signals of all layers, [B, S, layers, signal]."""
        graph, own, size = self._graph, self._shape.decoder, self._shape.signal
        if not size:
            return
        count, width = own.layers, own.layers * size
        name = f"{own.root}.per_layer_model_projection"
        made = graph.linear(self._narrowed(stream), name, own.hidden, width)
        # The norm takes the factor of the reference, hidden^-0.5, but for its epsilon.
        epsilon = own.epsilon * own.hidden / self._by**2
        name = f"{own.root}.per_layer_projection_norm.weight"
        made = graph.norm_heads(made, count, name, size, epsilon)
        name = f"{own.root}.embed_tokens_per_layer.weight"
        table = Table(graph, name, self._shape.signals, width, looked_up=True)
        found = graph.op("Mul", graph.full(table.lookup(ids)), graph.constant([size**0.5]))
        both = graph.op("Add", graph.full(made), found)
        both = graph.op("Mul", both, graph.constant([2**-0.5]))
        self._signals = graph.op("Reshape", both, graph.constant([0, 0, count, size]))

    def behind(
        self, layer: int, at: str, stream: ir.Value, result: ir.Value
    ) -> tuple[ir.Value, ir.Value | None]:
        """With what the signal lets through added, and times the layer's factor."""
        graph, own = self._graph, self._shape.decoder
        if self._signals is not None:
            stream = graph.add(stream, result)
            result = self._let_through(layer, at, stream)
        factor = float(graph.tensors.vector(f"{at}.layer_scalar", 1)[0])
        if factor == 1:
            return stream, result
        total = graph.add(stream, result)
        return graph.residual(total, factor=factor, wide=own.wide), None

    def _let_through(self, layer: int, at: str, stream: ir.Value) -> ir.Value:
        """What the layer's signal adds to the stream."""
        graph, own, size = self._graph, self._shape.decoder, self._shape.signal
        name = f"{at}.per_layer_input_gate"
        gate = graph.linear(self._narrowed(stream), name, own.hidden, size)
        opened = ACTIVATIONS["gelu_tanh"](
            graph, graph.residual(gate, factor=self._by, wide=True), 1.0
        )
        # One by one: of so many parts the provider's Split would send a table in each step.
        signal = graph.op(
            "Gather", self._signals, graph.array(f"const.layer.{layer}", np.array(layer)), axis=2
        )
        product = graph.made_full(graph.op("Mul", opened, signal))
        name = f"{at}.per_layer_projection"
        result = graph.linear(self._narrowed(product), name, size, own.hidden)
        name = f"{at}.post_per_layer_input_norm.weight"
        return graph.norm(result, name, own.hidden, own.epsilon / self._by**2, wide=own.wide)

    @property
    def _by(self) -> float:
        """What is divided by it that no norm has seen."""
        return self._graph.shrink**2

    def _narrowed(self, x: ir.Value) -> ir.Value:
        """x in the graph's precision, divided."""
        return self._graph.operand(self._graph.residual(x, factor=1 / self._by, wide=True))

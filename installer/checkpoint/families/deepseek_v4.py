"""DeepSeek-V4: windows of tokens, entries that stand for many, and several residual streams.

One head of keys is all heads' keys and values; what was turned of it is turned back in what heads
read. Every layer sees a window; most see entries of compressed windows besides (compressed.py), all
of them or those that an index finds. Each token's slot holds its key and, of windows, the running
means (docs/decisions/0303-deepseek-v4.md). The first layers choose experts by a table of tokens.
Left out are layers that predict further tokens; computed by the processor alone, in grades whose
cache is of floats. Reference: DeepSeek-V4 (2026), `DeepseekV4ForCausalLM`. Its numbers:
deepseek_v4_shape.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx_ir as ir

from appliance.errors import CheckpointError
from installer.checkpoint.expert_weights import ExpertWeights
from installer.checkpoint.families.deepseek_v4_attention import Reader, near
from installer.checkpoint.families.deepseek_v4_shape import CompressedShape
from installer.checkpoint.graph import experts
from installer.checkpoint.graph.attention import FloatSlots
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.compressed import Windows
from installer.checkpoint.graph.decoder import Form
from installer.checkpoint.graph.experts import Choice
from installer.checkpoint.graph.hyper import Names
from installer.checkpoint.graph.table import Table

_LEAST_WEIGHT = 1e-30
_PREDICTING = "mtp."
_LASTS = ("norm.weight", "model.norm.weight")
_EMBEDDINGS = ("embed.weight", "model.embed_tokens.weight")
_HEADS = ("hc_head_fn", "hc_head.hc_fn")
_OUTPUTS = ("head.weight", "lm_head.weight")
"""Names of the publisher, and those that the reference writes."""


def build(graph: GraphBuilder, shape: CompressedShape, form: Form) -> None:
    """Write the graph in the form of float slots, the only one that there is."""
    _Decoder(graph, shape, form).build()


class _Decoder:
    """One graph."""

    def __init__(self, graph: GraphBuilder, shape: CompressedShape, form: Form) -> None:
        attention = form(graph, shape.decoder)
        assert isinstance(attention, FloatSlots)
        self._graph, self._shape, self._form = graph, shape, attention
        self._root = graph.tensors.which(*_LASTS).removesuffix(_LASTS[0])
        self._windows: dict[int, Windows] = {}
        graph.tensors.leave_out(_PREDICTING)
        graph.tensors.leave_out(f"{self._root}{_PREDICTING}")

    def build(self) -> None:
        graph, form, own = self._graph, self._form, self._shape.decoder
        hyper, tensors, root = self._shape.hyper, graph.tensors, self._root
        table = Table(graph, tensors.which(*_EMBEDDINGS), own.vocab, own.hidden)
        streams = hyper.spread(graph, table.lookup(form.ids))
        seen = near(graph, form, self._shape.window)
        for layer in range(own.layers):
            at = f"{root}layers.{layer}"
            reader = Reader(graph, self._shape, form, layer, f"{at}.attn", self._of(layer))
            attend = partial(reader.attend, near=seen)
            feed = partial(self._feed, layer, f"{at}.ffn")
            streams = self._through(streams, f"{at}.hc_attn_", f"{at}.attn_norm.weight", attend)
            streams = self._through(streams, f"{at}.hc_ffn_", f"{at}.ffn_norm.weight", feed)
        head = tensors.which(*(f"{root}{name}" for name in _HEADS))
        states = hyper.collapse(graph, streams, _names(head.removesuffix("fn")))
        chosen = graph.norm(form.choose(states), f"{root}norm.weight", own.hidden, own.epsilon)
        output = Table(graph, tensors.which(*_OUTPUTS), own.vocab, own.hidden)
        form.conclude(output.scores(chosen))

    def _through(
        self, streams: ir.Value, names: str, norm: str, block: Callable[[ir.Value], ir.Value]
    ) -> ir.Value:
        """The streams behind a block, with the tensors whose names begin so around it."""
        graph, hyper, own = self._graph, self._shape.hyper, self._shape.decoder
        opened = hyper.open(graph, streams, _names(names))
        x = graph.norm(opened.read, norm, own.hidden, own.epsilon)
        return hyper.close(graph, streams, opened, block(x))

    def _of(self, layer: int) -> Windows | None:
        """The windows that a layer compresses, which layers of one kind share."""
        size = self._shape.rates.get(self._shape.kinds[layer])
        if size is None:
            return None
        if size not in self._windows:
            self._windows[size] = Windows(self._graph, self._form, size)
        return self._windows[size]

    def _feed(self, layer: int, at: str, x: ir.Value) -> ir.Value:
        """The chosen experts' results, and that of the one for all."""
        graph, shape = self._graph, self._shape
        own, mixture = shape.decoder, shape.decoder.mixture
        assert mixture is not None
        logits = experts.router(graph, x, f"{at}.gate", own.hidden, mixture.experts)
        scores = graph.op("Sqrt", graph.op("Softplus", logits))
        if layer in shape.hashed:
            indices = self._told(f"{at}.gate.tid2eid")
        else:
            correction = experts.vector(graph, f"{at}.gate.bias", mixture.experts)
            corrected = graph.op("Add", scores, correction)
            _, indices = experts.highest(graph, corrected, mixture.chosen)
        weights = graph.op("GatherElements", scores, indices, axis=1)
        logarithms = graph.op("Log", graph.op("Max", weights, graph.constant([_LEAST_WEIGHT])))
        choice = Choice(indices, logarithms, graph.constant([shape.factor]))
        gate, down, up = (f"{at}.experts.{{}}.w{number}.weight" for number in (1, 2, 3))
        stored = ExpertWeights(graph.tensors, (gate, up), down)
        mixed = experts.mix(graph, x, choice, mixture, stored, own.hidden, f"{at}.experts")
        names = [f"{at}.shared_experts.w{number}" for number in (1, 3, 2)]
        alone = experts.clamped(graph, x, mixture, names, own.hidden, mixture.shared)
        return graph.add(mixed, alone)

    def _told(self, name: str) -> ir.Value:
        """The experts that the table `name` has for the tokens, [tokens, chosen].

        Raises CheckpointError if it has one twice, or one that is not there.
        """
        graph, own = self._graph, self._shape.decoder
        assert own.mixture is not None
        count, chosen = own.mixture.experts, own.mixture.chosen
        told = graph.tensors.numbers(name, (own.vocab, chosen))
        ordered = np.sort(told, axis=1)
        if told.min() < 0 or told.max() >= count or (ordered[:, 1:] == ordered[:, :-1]).any():
            raise CheckpointError(
                f"{name} does not name {chosen} of {count} experts for each token",
                hint="the checkpoint is damaged, or its config.json belongs to another model",
            )
        stored = graph.files.write(name, ir.DataType.INT64, told.shape, [told])
        flat = graph.op("Reshape", self._form.ids, graph.constant([-1]))
        return graph.op("Gather", stored, flat, axis=0)


def _names(start: str) -> Names:
    return Names(*(f"{start}{name}" for name in ("fn", "base", "scale")))

"""A decoder's graph with room for adapters beside its linear layers.

Owns what adapters add to a layer: y + up(down(x)), for as many adapters as the caller binds, whose
rows lie one below the other. A mask says which of them are a sequence's own; a sequence whose mask
is all zeros gets what the plain graph gives it, to the bit. Hu et al., LoRA (2021).

Inputs for each target t, such as `q` (the layer `q_proj`), docs/bundle-format.md:
    adapter_mask_t            [batch, 1, ranks]; [tokens, ranks] in native graphs
    adapter_down_LAYER_t      [ranks, inner]
    adapter_up_LAYER_t        [ranks, outer], the adapter's scale in it
float32 for the processor, float16 for a GPU.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import onnx_ir as ir

from appliance.bundle.specs import AdapterTarget
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.compact import CompactBuilder
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.half import HalfBuilder
from installer.checkpoint.quantize import Scheme
from installer.checkpoint.tensors import Tensors
from installer.checkpoint.weights import WeightFiles

LAYER = re.compile(r"model\.layers\.(\d+)\.(?:self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj")
"""The linear layers that adapters may change: their number and target."""


FAMILIES = frozenset({"llama", "qwen2", "qwen3"})
"""Whose linear layers have the names above, and no others that adapters change."""


def targets(shape: DecoderShape) -> tuple[AdapterTarget, ...]:
    """What adapters of such a decoder may change."""
    queries, pairs = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return (
        AdapterTarget(name="q", inner=shape.hidden, outer=queries),
        AdapterTarget(name="k", inner=shape.hidden, outer=pairs),
        AdapterTarget(name="v", inner=shape.hidden, outer=pairs),
        AdapterTarget(name="o", inner=queries, outer=shape.hidden),
        AdapterTarget(name="gate", inner=shape.hidden, outer=shape.inner),
        AdapterTarget(name="up", inner=shape.hidden, outer=shape.inner),
        AdapterTarget(name="down", inner=shape.inner, outer=shape.hidden),
    )


class AdapterInputs:
    """The inputs of one graph for adapters.

    Args:
        leading: the axes of a mask before the ranks': whose rows the adapters are.
    """

    def __init__(self, graph: GraphBuilder, leading: Sequence[int | str]) -> None:
        self._graph = graph
        self._leading = tuple(leading)
        self._masks: dict[str, ir.Value] = {}

    def added(
        self,
        y: ir.Value,
        x: ir.Value,
        name: str,
        inner: int,
        outer: int,
        factor: ir.Value | None = None,
    ) -> ir.Value:
        """y + up(mask * down(x)) / factor, if the layer `name` takes adapters."""
        found = LAYER.fullmatch(name)
        if found is None:
            return y
        graph, kind = self._graph, self._graph.dtype
        layer, target = found.groups()
        ranks = f"ranks_{target}"
        if target not in self._masks:
            axes = (*self._leading, ranks)
            self._masks[target] = graph.input(f"adapter_mask_{target}", kind, axes)
        down = graph.input(f"adapter_down_{layer}_{target}", kind, (ranks, inner))
        up = graph.input(f"adapter_up_{layer}_{target}", kind, (ranks, outer))
        low = graph.op("MatMul", x, graph.op("Transpose", down, perm=[1, 0]))
        own = graph.op("Mul", low, self._masks[target])
        if factor is not None:
            own = graph.op("Div", own, factor)
        return graph.op("Add", y, graph.op("MatMul", own, up))


class AdaptedBuilder(GraphBuilder):
    """A graph whose linear layers take adapters; for the processor, if nothing else is mixed in."""

    def __init__(self, tensors: Tensors, files: WeightFiles, scheme: Scheme) -> None:
        super().__init__(tensors, files, scheme)
        self._adapters = AdapterInputs(self, ("batch", 1))

    def linear(
        self,
        x: ir.Value,
        name: str,
        inner: int,
        outer: int,
        *,
        bias: bool = False,
        scale: ir.Value | None = None,
        divided: float = 1.0,
    ) -> ir.Value:
        """As the plain graph's, with what adapters add."""
        y = super().linear(x, name, inner, outer, bias=bias, scale=scale, divided=divided)
        if self._leaves_factors:
            return y  # through `unscaled`, which has added it
        return self._adapters.added(y, x, name, inner, outer)

    @property
    def _leaves_factors(self) -> bool:
        """Whether layers are `unscaled` with a factor that is still to come."""
        return self.scheme.integer_products

    def unscaled(
        self, x: ir.Value, name: str, inner: int, outer: int
    ) -> tuple[ir.Value, ir.Value | None]:
        """As the plain graph's: what adapters add is divided by the factor that is still to come.

        So the order of the other operations stays, and with it every bit of a sequence that has
        no adapter.
        """
        y, factor = super().unscaled(x, name, inner, outer)
        if factor is not None:
            y = self._adapters.added(y, x, name, inner, outer, factor)
        return y, factor


class AdaptedHalfBuilder(AdaptedBuilder, HalfBuilder):
    """A graph for CUDA whose linear layers take adapters, of an x divided as it is there."""

    @property
    def _leaves_factors(self) -> bool:
        return False


class AdaptedCompactBuilder(AdaptedHalfBuilder, CompactBuilder):
    """The same over weights of 8 bits."""

"""Drives the graphs of a bundle with an 8-bit cache as the engine does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort

from appliance.bundle.specs import DecoderSpec
from appliance.engine.cache_budget import CacheShape, state_bytes, token_bytes
from appliance.engine.model_runner import ModelRunner
from appliance.engine.native_pool import NativePool
from appliance.engine.native_runner import Graph, Step
from appliance.engine.slot_pool import SlotPool
from installer.checkpoint.probe import open_graph
from tests.checkpoint.conftest import Built
from tests.checkpoint.runner import Floats

OTHER_WAY = 0.02
"""What roundings that fall the other way were seen to change on random weights, doubled."""
FEW = 1.5 * OTHER_WAY
"""The same of a row or a few, over which it does not even out: 0.022 was seen."""


class Bytes:
    """A w8a8 bundle's two graphs over one pool, as the engine runs them."""

    def __init__(self, model: Built, *, slots: int = 4) -> None:
        self.spec: DecoderSpec = model.spec
        shape = CacheShape(slots, 128, token_bytes(self.spec), state_bytes(self.spec))
        self.pool = SlotPool(self.spec, shape)
        graphs = [open_graph(model.graph.with_name(f"{n}.onnx")) for n in ("model", "prefill")]
        self._runner = ModelRunner(graphs[0], self.pool, self.spec.vocab_size, 128, graphs[1])

    def prefill(
        self, tokens: Sequence[int], *, slot: int = 0, start: int = 0, rows: int = 1
    ) -> Floats:
        logits: Floats = np.full((rows, self.spec.vocab_size), np.nan, np.float32)
        self._runner.prefill(slot, start, tokens, logits)
        return logits

    def decode(self, starts: Sequence[int], tokens: Sequence[Sequence[int]]) -> Floats:
        logits: Floats = np.full((sum(map(len, tokens)), self.spec.vocab_size), np.nan, np.float32)
        self._runner.decode(starts, tokens, logits)
        return logits


class Natively:
    """The graph of native operators over one slot."""

    def __init__(self, model: Built) -> None:
        graph = model.manifest.variant("native")
        assert graph is not None
        self._vocab = model.spec.vocab_size
        pool = NativePool(model.spec, CacheShape(1, 128, token_bytes(model.spec)))
        session = open_graph(model.bundle / graph.path, model.bundle / graph.weights_folder)
        self._graph = Graph(session, pool)

    def run(self, tokens: Sequence[int], *, start: int = 0) -> Floats:
        """Logits after each of `tokens`, which follow what is cached up to `start`."""
        step = Step()
        step.tokens, step.spans = list(tokens), [(0, start, len(tokens))]
        step.rows = list(range(len(tokens)))
        logits: Floats = np.full((len(tokens), self._vocab), np.nan, np.float32)
        self._graph.run(step, logits, ort.RunOptions())
        return logits


def distance(got: Floats, wanted: Floats) -> float:
    """Relative, in the Euclidean norm."""
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))

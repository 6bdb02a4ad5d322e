"""Sessions of graphs, and models of the reference, that one test asks many times.

Opening one costs many times what it computes of a tiny model. Owns the few that were asked last;
a file that was written again is opened again. Refuses to hold what a test changes: hooks and the
like belong to a model that the test loads itself.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch

from appliance.compiler.compile import EXACT_PRODUCTS
from installer.checkpoint.probe import open_graph
from tests.checkpoint.reference import ReferenceEncoder


def session_of(graph: Path, weights: Path | None = None) -> ort.InferenceSession:
    """`graph` as the probe of a build opens it, over the weights in `weights`, if not beside it."""
    return _session(graph, weights, graph.stat().st_mtime_ns)


@lru_cache(4)
def _session(graph: Path, weights: Path | None, _written: int) -> ort.InferenceSession:
    return open_graph(graph, weights)


def plain_session_of(graph: Path) -> ort.InferenceSession:
    """`graph` as a node's compiler opens it."""
    return _plain(graph, graph.stat().st_mtime_ns)


@lru_cache(4)
def _plain(graph: Path, _written: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.add_session_config_entry(*EXACT_PRODUCTS)
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


@lru_cache(2)
def encoder_of(checkpoint: Path, pooling: str, normalize: bool) -> ReferenceEncoder:
    """The reference's embeddings of a checkpoint that no test writes again."""
    return ReferenceEncoder(checkpoint, pooling=pooling, normalize=normalize)


@lru_cache(2)
def loaded(kind: Any, checkpoint: Path) -> Any:
    """`kind.from_pretrained(checkpoint)` in 32 bits, to be computed with only."""
    return kind.from_pretrained(checkpoint, dtype=torch.float32).eval()

"""What heads add to a product of query and key for how far two tokens are apart.

Owns the buckets of distances: near ones have one each, far ones share one by the logarithm of the
distance. Reference: Raffel et al., T5 (2020), section 2.1; MPNet has one such table for all layers.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from installer.checkpoint.graph.builder import GraphBuilder

BUCKETS = 32
"""Half of them for tokens behind the one that looks."""
_FARTHEST = 128
"""From here on all distances share a bucket."""
_PRODUCT_BYTES = 4
"""Of a product and of its weight in 16 bits: kernels that add something to products keep both."""


def token_bytes(heads: int, longest: int) -> int:
    """Bytes that a token's products with all others take, at most."""
    return heads * longest * _PRODUCT_BYTES


def bias(graph: GraphBuilder, table: str, ids: ir.Value, heads: int, longest: int) -> ir.Value:
    """What is added to the products of a batch of `ids` [B, S], [1, heads, S, S].

    `table`: the checkpoint's, [BUCKETS, heads].
    """
    graph.tensors.expect(table, (BUCKETS, heads))
    of_buckets = np.concatenate(list(graph.tensors.rows(table)))
    # One column for each distance, from the farthest before a token to the farthest behind it.
    distances = np.arange(1 - longest, longest)
    columns = np.ascontiguousarray(of_buckets[buckets(distances)].T)
    spread = graph.floats(f"{table}.spread", columns.shape, [columns])
    places = graph.array(f"const.places-{longest}", np.arange(longest, dtype=np.int64))
    tokens, none = graph.op("Shape", ids, start=1, end=2), graph.constant([0])
    own = graph.op("Slice", places, none, tokens)
    behind = graph.op("Add", own, graph.constant([longest - 1]))
    apart = graph.op("Sub", behind, graph.op("Unsqueeze", own, graph.constant([1])))
    found = graph.op("Unsqueeze", graph.op("Gather", spread, apart, axis=1), none)
    return graph.op("Cast", found, to=graph.dtype)


def buckets(distances: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The bucket of each distance: the other token's position less the own."""
    half = BUCKETS // 2
    exact = half // 2
    far = np.abs(distances)
    share = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact))
    share = share / np.float32(math.log(_FARTHEST / exact)) * np.float32(half - exact)
    shared = np.minimum(exact + share.astype(np.int64), half - 1)
    return np.where(distances > 0, half, 0) + np.where(far < exact, far, shared)

"""The choice of the likeliest token inside a graph.

A GPU that hands every logit back spends more time on the copy than on the model.
"""

from __future__ import annotations

import onnx_ir as ir

from installer.checkpoint.graph.builder import GraphBuilder

_MOST_RUNS = 512


def greedy(graph: GraphBuilder, logits: ir.Value, vocab: int) -> ir.Value:
    """logits [rows, vocab] -> the index of each row's highest, int64 [rows]; the first of equals.

    In two steps, each over short runs: one run of 150,000 numbers is read by one block of threads.
    """
    runs = _runs(vocab)
    width = vocab // runs
    parts = graph.op("Reshape", logits, graph.constant([-1, runs, width]))
    highest = graph.op("ReduceMax", parts, graph.constant([2]), keepdims=0)
    inside = graph.op("ArgMax", parts, axis=2, keepdims=0)
    run = graph.op("ArgMax", highest, axis=1, keepdims=1)
    offset = graph.op("GatherElements", inside, run, axis=1)
    first = graph.op("Mul", run, graph.constant([width]))
    return graph.op("Reshape", graph.op("Add", first, offset), graph.constant([-1]))


def _runs(vocab: int) -> int:
    """The largest number of equal runs that is not too many."""
    return max(count for count in range(1, _MOST_RUNS + 1) if vocab % count == 0)

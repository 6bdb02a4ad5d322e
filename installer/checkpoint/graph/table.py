"""An embedding table: looked up by token on the way in, and multiplied with on the way out.

Owns its storage. A model that ties both ends stores the table once. A table too large for one
file is split by columns: lookups of the parts are concatenated, products with them added.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import onnx_ir as ir

from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.storage import IntegerMatrix, Matrix
from installer.checkpoint.quantize import FLOAT_BITS, block_size

_SMALLEST_BLOCK = 16


class Table:
    """The checkpoint's table `name`, [entries, width], stored when this object is made.

    `looked_up`: nothing is multiplied with it, so that grades of integers may store blocks of a row
    with a scale each. `pieces`: the matrices that its rows lie in, if it is no tensor of its own.
    """

    def __init__(
        self,
        graph: GraphBuilder,
        name: str,
        entries: int,
        width: int,
        *,
        looked_up: bool = False,
        pieces: Sequence[str] = (),
    ) -> None:
        self._pieces = pieces or (name,)
        graph.tensors.expect_rows(self._pieces, entries, width)
        self._graph = graph
        self._entries = entries
        self._in_blocks = looked_up and width % _SMALLEST_BLOCK == 0
        fits = graph.scheme.integer_products or width % _SMALLEST_BLOCK == 0
        self._bits = graph.scheme.table_bits if fits else max(FLOAT_BITS)
        self._block = table_block(width)
        self._ranges = list(_ranges(width, self._widest()))
        self._parts = [self._store(name, width, start, stop) for start, stop in self._ranges]

    def lookup(self, ids: ir.Value) -> ir.Value:
        """ids [...] -> rows [..., width]."""
        found = [self._lookup(part, ids) for part in self._parts]
        return found[0] if len(found) == 1 else self._graph.op("Concat", *found, axis=-1)

    def scores(self, x: ir.Value) -> ir.Value:
        """x [n, width] -> products with every row, [n, entries]."""
        graph, total = self._graph, None
        for piece, part in zip(self._split(x), self._parts, strict=True):
            if isinstance(part, ir.Value):
                total = graph.op("Gemm", piece, graph.parameter(part), total, transB=1)
                continue
            product = graph.multiply(piece, part)
            total = product if total is None else graph.op("Add", total, product)
        assert total is not None
        return total

    def _widest(self) -> int:
        """Columns that one file has room for."""
        unit = 1 if self._bits in FLOAT_BITS else self._block
        fit = self._graph.files.limit // (self._entries * self._bits // 8)
        return max(unit, fit // unit * unit)

    def _store(self, name: str, width: int, start: int, stop: int) -> ir.Value | Matrix:
        graph, shape = self._graph, (self._entries, stop - start)
        part = name if stop - start == width else f"{name}.{start}"
        rows = chain.from_iterable(graph.tensors.rows(one, start, stop) for one in self._pieces)
        if self._bits in FLOAT_BITS:
            return graph.stored(part, shape, rows)
        if graph.scheme.integer_products and not self._in_blocks:
            return graph.integers(part, shape, rows)
        return graph.quantized(part, shape, rows, self._bits, self._block)

    def _lookup(self, part: ir.Value | Matrix, ids: ir.Value) -> ir.Value:
        graph = self._graph
        if isinstance(part, ir.Value):
            return graph.op("Gather", graph.parameter(part), ids)
        if isinstance(part, IntegerMatrix):
            return graph.gather(part, ids)
        return graph.gather_blocks(part, ids)

    def _split(self, x: ir.Value) -> Sequence[ir.Value]:
        graph, widths = self._graph, [stop - start for start, stop in self._ranges]
        if len(widths) == 1:
            return [x]
        return graph.ops("Split", x, graph.constant(widths), outputs=len(widths), axis=-1)


def table_block(width: int) -> int:
    """Block size that divides the row, so that lookup and product can share the integers."""
    block = block_size(width)
    while width % block:
        block //= 2
    return block


def _ranges(width: int, widest: int) -> Iterator[tuple[int, int]]:
    """Column ranges of at most `widest` each."""
    for start in range(0, width, widest):
        yield start, min(start + widest, width)

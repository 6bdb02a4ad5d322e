"""Where the weights of a layer's experts lie in a checkpoint, and how they are read.

Owns the layouts that publishers use: matrices for each expert, or one tensor for all. Whatever the
layout, weights come out as runs of whole rows of one expert, with gates and ups interleaved, as the
runtime's kernels want them: as floats, or as the integers that the checkpoint has. Holds one expert
at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from appliance.errors import CheckpointError
from installer.checkpoint.packed.packing import Kept
from installer.checkpoint.quantize import Blocks, pack_bits, unpack_bits
from installer.checkpoint.tensors import Float32, Tensors

End = Literal["gate_up", "down"]
"""Gate and up of position 0, then of position 1, ... [2 * inner, hidden]; or [hidden, inner]."""
_PIECE_ROWS = 256


@dataclass(frozen=True, slots=True)
class Grid:
    """The integers that a checkpoint has for all experts of a layer.

    Attributes:
        block: neighbours in a row that share a scale.
        centred: whether no zero points are stored.
    """

    block: int
    centred: bool


class ExpertWeights:
    """Experts whose matrices are read one by one.

    `gate_up` and `down` are the names of their matrices, with {} for the expert's number. Gates and
    ups have one name each, or one for both where they are interleaved already. `biases` are the
    names of what all experts' biases are in, interleaved alike, where there are biases.
    """

    def __init__(
        self,
        tensors: Tensors,
        gate_up: Sequence[str],
        down: str,
        biases: tuple[str, str] | None = None,
    ) -> None:
        self._tensors = tensors
        self._names: dict[End, Sequence[str]] = {"gate_up": gate_up, "down": (down,)}
        self._biases = biases

    def expect(self, expert: int, hidden: int, inner: int) -> None:
        """Raise CheckpointError unless the expert's matrices have their shapes."""
        rows = 2 * inner // len(self._names["gate_up"])
        for name in self._of("gate_up", expert):
            self._tensors.expect(name, (rows, hidden))
        self._tensors.expect(self._of("down", expert)[0], (hidden, inner))

    def rows(self, end: End, expert: int, first: int, last: int) -> Iterator[Float32]:
        """Of one expert, the inner positions from `first` to `last`."""
        if end == "down":
            yield from self._tensors.rows(self._of(end, expert)[0], first, last)
            return
        at = 0
        for runs in zip(*(self._tensors.rows(name) for name in self._of(end, expert)), strict=True):
            yield _interleaved(runs, first - at, last - at)
            at += len(runs[0]) * len(runs) // 2

    def grid(self, bits: int) -> Grid | None:
        """The integers there are, if they have as many bits and the kernels can take them."""
        names = [*self._of("gate_up", 0), *self._of("down", 0)]
        grids = {_grid(self._tensors.kept(name, bits)) for name in names}
        return grids.pop() if len(grids) == 1 else None

    def integers(
        self, end: End, expert: int, first: int, last: int, bits: int, grid: Grid
    ) -> Iterator[Blocks]:
        """As `rows`, the integers that the checkpoint has. Raises CheckpointError."""
        kept = [self._kept(name, bits, grid) for name in self._of(end, expert)]
        if end == "down":
            for blocks in kept[0].runs():
                yield _columns(blocks, first // grid.block, last // grid.block, bits)
            return
        at = 0
        for runs in zip(*(one.runs() for one in kept), strict=True):
            span = first - at, last - at
            zeros = [blocks.zero_points for blocks in runs if blocks.zero_points is not None]
            yield Blocks(
                _interleaved([blocks.packed for blocks in runs], *span),
                _interleaved([blocks.scales for blocks in runs], *span),
                _interleaved(zeros, *span) if zeros else None,
            )
            at += len(runs[0].packed) * len(runs) // 2

    def bias(self, end: End, first: int, last: int) -> Iterator[Float32]:
        """Of all experts: [experts, 2 * (last - first)], or [experts, hidden]."""
        assert self._biases is not None
        if end == "down":
            return self._tensors.rows(self._biases[1])
        return self._tensors.rows(self._biases[0], 2 * first, 2 * last)

    def _of(self, end: End, expert: int) -> list[str]:
        return [name.format(expert) for name in self._names[end]]

    def _kept(self, name: str, bits: int, grid: Grid) -> Kept:
        kept = self._tensors.kept(name, bits)
        if kept is None or _grid(kept) != grid:
            raise CheckpointError(
                f"{name} is not quantized as the layer's first expert is",
                hint="choose a grade that holds what they mean: --precision fp16",
            )
        return kept


def matrices(tensors: Tensors, at: str) -> ExpertWeights:
    """Three matrices for each expert of the module `at`, as most publishers name them."""
    gate, up, down = (f"{at}.{{}}.{name}_proj.weight" for name in ("gate", "up", "down"))
    return ExpertWeights(tensors, (gate, up), down)


def rows_or_matrices(tensors: Tensors, at: str) -> ExpertWeights:
    """Stacked as Qwen3.5's are published, or apart as those who quantize them lay them out."""
    gate_up, down = f"{at}.gate_up_proj", f"{at}.down_proj"
    if tensors.holds(gate_up):
        return HalvedRows(tensors, (gate_up,), down)
    return matrices(tensors, at)


class TransposedStacks(ExpertWeights):
    """Floats of all experts in two tensors, [experts, hidden, 2 * inner] and [experts, inner,
    hidden], as gpt-oss is published without its own quantization."""

    def expect(self, expert: int, hidden: int, inner: int) -> None:
        """Raise CheckpointError unless both stacks have the expert, and it its shape."""
        shapes = self._shapes(hidden, inner)
        for end, (name,) in self._names.items():
            count = max(expert + 1, self._tensors.shape(name)[0])
            self._tensors.expect(name, (count, *shapes[end]))

    def rows(self, end: End, expert: int, first: int, last: int) -> Iterator[Float32]:
        (name,) = self._names[end]
        wanted = self._wanted(self._tensors.slab(name, expert), end, first, last)
        for row in range(0, len(wanted), _PIECE_ROWS):
            yield wanted[row : row + _PIECE_ROWS]

    def _shapes(self, hidden: int, inner: int) -> dict[End, tuple[int, int]]:
        """Of one expert's matrices."""
        return {"gate_up": (hidden, 2 * inner), "down": (inner, hidden)}

    def _wanted(self, matrix: Float32, end: End, first: int, last: int) -> Float32:
        """Of one expert's matrix, what `rows` gives."""
        wanted = matrix[first:last] if end == "down" else self._both(matrix, first, last)
        return np.ascontiguousarray(wanted.T)

    def _both(self, matrix: Float32, first: int, last: int) -> Float32:
        """Of [hidden, 2 * inner], gates and ups of the positions first..last, interleaved."""
        return matrix[:, 2 * first : 2 * last]

    def grid(self, bits: int) -> Grid | None:
        """None: these are floats."""
        return None


class HalvedStacks(TransposedStacks):
    """The same with all gates in front of all ups, as Qwen3-VL's mixtures are published."""

    def _both(self, matrix: Float32, first: int, last: int) -> Float32:
        hidden, both = matrix.shape
        pairs = matrix.reshape(hidden, 2, both // 2)[:, :, first:last]
        return pairs.transpose(0, 2, 1).reshape(hidden, -1)


class HalvedRows(TransposedStacks):
    """The same as it is multiplied with, [experts, 2 * inner, hidden] and [experts, hidden, inner],
    with all gates in front of all ups, as Qwen3.5's mixtures are published."""

    def _shapes(self, hidden: int, inner: int) -> dict[End, tuple[int, int]]:
        return {"gate_up": (2 * inner, hidden), "down": (hidden, inner)}

    def _wanted(self, matrix: Float32, end: End, first: int, last: int) -> Float32:
        if end == "down":
            return np.ascontiguousarray(matrix[:, first:last])
        both, hidden = matrix.shape
        pairs = matrix.reshape(2, both // 2, hidden)[:, first:last]
        return np.ascontiguousarray(pairs.transpose(1, 0, 2)).reshape(-1, hidden)


def _grid(kept: Kept | None) -> Grid | None:
    """What the stacked kernels take; columns in another order they do not."""
    if kept is None or kept.order is not None:
        return None
    return Grid(kept.block, kept.centred)


def _interleaved(runs: Sequence[npt.NDArray[Any]], first: int, last: int) -> npt.NDArray[Any]:
    """Rows of the positions first..last of one run; gates and ups in one array, or in one each."""
    both = 2 // len(runs)
    wanted = slice(max(first, 0) * both, max(last, 0) * both)
    pair = np.stack([run[wanted] for run in runs], axis=1)
    return pair.reshape(-1, *pair.shape[2:])


def _columns(blocks: Blocks, first: int, last: int, bits: int) -> Blocks:
    """Blocks first..last of each row."""
    zeros = blocks.zero_points
    return Blocks(
        blocks.packed[:, first:last],
        blocks.scales[:, first:last],
        None if zeros is None else pack_bits(unpack_bits(zeros, bits)[:, first:last], bits),
    )

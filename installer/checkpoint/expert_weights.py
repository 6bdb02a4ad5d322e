"""Where the weights of a layer's experts lie in a checkpoint, and how they are read.

Owns the layouts that publishers use: a tensor for each expert, or one for all. Whatever the
layout, weights come out as runs of whole rows of one expert, with gates and ups interleaved, as the
runtime's kernels want them. Holds one expert at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from installer.checkpoint.tensors import Float32, Tensors


class ExpertWeights(Protocol):
    """The experts of one layer. `first` and `last` bound the inner positions that are wanted.

    Attributes:
        block: how many weights in a row share one scale, a power of two by which 8-bit integers
            stand for them exactly; None for weights that are floats.
    """

    block: int | None

    def gate_up(self, expert: int, first: int, last: int) -> Iterator[Float32]:
        """Gate and up of position `first`, then of the next: [2 * (last - first), hidden]."""
        ...

    def down(self, expert: int, first: int, last: int) -> Iterator[Float32]:
        """[hidden, last - first]."""
        ...

    def gate_up_bias(self, first: int, last: int) -> Iterator[Float32]:
        """Of all experts, interleaved: [experts, 2 * (last - first)]."""
        ...

    def down_bias(self) -> Iterator[Float32]:
        """Of all experts: [experts, hidden]."""
        ...


class SeparateExperts:
    """Three matrices for each expert, without biases: `at`.{expert}.{gate, up, down}.weight.

    `gate`, `up` and `down` are what the family calls them.
    """

    block: int | None = None

    def __init__(
        self, tensors: Tensors, at: str, names: tuple[str, str, str], hidden: int, inner: int
    ) -> None:
        self._tensors = tensors
        self._at = at
        self._gate, self._up, self._down = names
        self._hidden = hidden
        self._inner = inner

    def gate_up(self, expert: int, first: int, last: int) -> Iterator[Float32]:
        pair = [
            self._tensors.rows(self._tensor(expert, name, self._inner, self._hidden))
            for name in (self._gate, self._up)
        ]
        at = 0
        for gate, up in zip(*pair, strict=True):
            wanted = slice(max(first - at, 0), max(last - at, 0))
            at += len(gate)
            both = np.stack([gate[wanted], up[wanted]], axis=1)
            yield both.reshape(-1, self._hidden)

    def down(self, expert: int, first: int, last: int) -> Iterator[Float32]:
        return self._tensors.rows(
            self._tensor(expert, self._down, self._hidden, self._inner), first, last
        )

    def gate_up_bias(self, first: int, last: int) -> Iterator[Float32]:
        raise AssertionError("these experts have no biases")

    def down_bias(self) -> Iterator[Float32]:
        raise AssertionError("these experts have no biases")

    def _tensor(self, expert: int, name: str, outer: int, inner: int) -> str:
        full = f"{self._at}.{expert}.{name}.weight"
        self._tensors.expect(full, (outer, inner))
        return full

"""AWQ: integers packed along the output, in an order of their own within each word.

qweight [inner, outer / 8], qzeros [groups, outer / 8] of 4-bit integers, scales [groups, outer];
Lin et al., AWQ (2023), in the layout `gemm` that AutoAWQ publishes. What the method scaled lies in
the weights and norms already.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from installer.checkpoint.packed.gptq import WHOLE_ROWS, described, fits, group_size, two
from installer.checkpoint.packed.groups import (
    WORD_BITS,
    GroupedMatrix,
    Groups,
    unpack,
)
from installer.checkpoint.packed.packing import Packed, Stored
from installer.checkpoint.quantize import UInt8
from installer.checkpoint.settings import Settings

_BITS = 4
_PER_WORD = WORD_BITS // _BITS
_PLACE = np.array([0, 4, 1, 5, 2, 6, 3, 7])
"""Where in its word each of eight neighbouring columns lies."""


def read(settings: Settings) -> Awq:
    """Read quantization_config. Raises CheckpointError."""
    settings.ignore("backend", "do_fuse", "exllama_config", "fuse_max_seq_len", "modules_to_fuse")
    # Which matrices stayed plain shows in the tensors themselves.
    settings.ignore("modules_to_not_convert")
    settings.expect("bits", _BITS)
    settings.expect("version", "gemm", "GEMM")
    settings.expect("zero_point", True)
    return Awq(settings.integer("bits"), group_size(settings))


@dataclass(frozen=True, slots=True)
class Awq:
    """The method."""

    bits: int
    group: int

    @property
    def label(self) -> str:
        return f"awq, {self.bits} bits in {described(self.group)}"

    def matrix(self, stored: Stored, weight: str) -> Packed | None:
        """The matrix `weight`, if it is packed."""
        stem = weight.removesuffix(".weight")
        if not stored.holds(f"{stem}.qweight"):
            return None
        inner, words = two(stored, f"{stem}.qweight")
        outer = words * _PER_WORD
        size = inner if self.group == WHOLE_ROWS else self.group
        groups = -(-inner // size)
        fits(stored, f"{stem}.scales", (groups, outer))
        fits(stored, f"{stem}.qzeros", (groups, words))
        load = partial(_load, stored, stem)
        return GroupedMatrix(weight, (outer, inner), self.bits, size, load)


def _load(stored: Stored, stem: str) -> Groups:
    words = stored.stored(f"{stem}.qweight", "I32")
    scales = np.ascontiguousarray(stored.stored_floats(f"{stem}.scales").T)

    def integers(rows: slice, columns: slice) -> UInt8:
        first, last = rows.start // _PER_WORD, -(-rows.stop // _PER_WORD)
        found = _in_order(unpack(words[columns, first:last], _BITS))
        start = rows.start - first * _PER_WORD
        return np.ascontiguousarray(found[:, start : start + rows.stop - rows.start].T)

    zeros = _in_order(unpack(stored.stored(f"{stem}.qzeros", "I32"), _BITS))
    return Groups(integers, scales, np.ascontiguousarray(zeros.T))


def _in_order(found: UInt8) -> UInt8:
    """Integers as they lie in words -> in the order of columns."""
    words: UInt8 = found.reshape(len(found), -1, _PER_WORD)[:, :, _PLACE]
    return words.reshape(found.shape)

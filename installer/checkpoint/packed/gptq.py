"""GPTQ: integers packed along the input, with zero points one less than they mean.

qweight [inner / n, outer], qzeros [groups, outer / n] in words of n integers, scales [groups,
outer], g_idx [inner]; Frantar et al., GPTQ (2022), in the layout that AutoGPTQ publishes. Its
format 1 stores zero points minus one, `gptq_v2` as they are. A zero point of 0 spoils its
neighbours in format 1, so that a word with one is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from appliance.errors import CheckpointError
from installer.checkpoint.packed.groups import (
    WORD_BITS,
    GroupedMatrix,
    Groups,
    unpack,
    unpack_columns,
)
from installer.checkpoint.packed.packing import Indices, Packed, Stored
from installer.checkpoint.quantize import UInt8
from installer.checkpoint.settings import Settings

_HOW_IT_WAS_MADE = (
    *("damp_percent", "damp_auto_increment", "true_sequential", "static_groups", "dataset"),
    *("batch_size", "block_name_to_quantize", "cache_block_outputs", "max_input_length", "mse"),
    *("model_seqlen", "module_name_preceding_first_block", "modules_in_block_to_quantize"),
    *("pad_token_id", "tokenizer", "model_name_or_path", "model_file_base_name", "meta"),
)
_HOW_OTHERS_RUN_IT = ("exllama_config", "use_cuda_fp16", "use_exllama", "disable_exllama")
WHOLE_ROWS = -1


def read(settings: Settings) -> Gptq:
    """Read quantization_config. Raises CheckpointError."""
    settings.ignore(*_HOW_IT_WAS_MADE, *_HOW_OTHERS_RUN_IT)
    settings.expect("bits", 4, 8)
    settings.expect("pack_dtype", "int32")
    settings.expect("is_marlin_format", False)
    settings.expect("lm_head", False)
    # These two show in the tensors themselves.
    settings.ignore("sym", "desc_act")
    key = "format" if "format" in settings else "checkpoint_format"
    settings.expect(key, "gptq", "gptq_v2")
    settings.expect("checkpoint_format", "gptq", "gptq_v2")
    return Gptq(
        settings.integer("bits"), group_size(settings), settings.text(key, "gptq") == "gptq_v2"
    )


def group_size(settings: Settings) -> int:
    """Columns that share a scale; -1 for all of a row."""
    if settings.number("group_size") == WHOLE_ROWS:
        return WHOLE_ROWS
    return settings.integer("group_size")


@dataclass(frozen=True, slots=True)
class Gptq:
    """The method; `exact_zeros` where zero points are stored as they are."""

    bits: int
    group: int
    exact_zeros: bool

    @property
    def label(self) -> str:
        return f"gptq, {self.bits} bits in {described(self.group)}"

    def matrix(self, stored: Stored, weight: str) -> Packed | None:
        """The matrix `weight`, if it is packed."""
        stem = weight.removesuffix(".weight")
        if not stored.holds(f"{stem}.qweight"):
            return None
        per_word = WORD_BITS // self.bits
        words, outer = two(stored, f"{stem}.qweight")
        inner = words * per_word
        size = inner if self.group == WHOLE_ROWS else self.group
        groups = -(-inner // size)
        fits(stored, f"{stem}.scales", (groups, outer))
        fits(stored, f"{stem}.qzeros", (groups, -(-outer // per_word)))
        load, of = partial(self._load, stored, stem), indices(stored, f"{stem}.g_idx", inner)
        return GroupedMatrix(weight, (outer, inner), self.bits, size, load, of)

    def _load(self, stored: Stored, stem: str) -> Groups:
        words = stored.stored(f"{stem}.qweight", "I32")
        scales = np.ascontiguousarray(stored.stored_floats(f"{stem}.scales").T)
        # Packed along the input, so the words of neighbouring columns lie below each other.
        integers = partial(unpack_columns, words.T, self.bits)
        zeros = np.ascontiguousarray(self._zeros(stored, stem)[:, : scales.shape[0]].T)
        return Groups(integers, scales, zeros)

    def _zeros(self, stored: Stored, stem: str) -> UInt8:
        zeros = unpack(stored.stored(f"{stem}.qzeros", "I32"), self.bits)
        if self.exact_zeros:
            return zeros
        if (zeros == (1 << self.bits) - 1).any():
            raise CheckpointError(
                f"{stem}.qzeros has zero points that checkpoint_format gptq cannot store: "
                "they spoilt others",
                hint="use a checkpoint in the format gptq_v2, or quantized symmetrically",
            )
        return zeros + np.uint8(1)


def described(group: int) -> str:
    """Groups in words."""
    return "whole rows" if group == WHOLE_ROWS else f"groups of {group}"


def indices(stored: Stored, name: str, inner: int) -> Callable[[], Indices] | None:
    """Reads the group of each of `inner` columns; None if no tensor `name` says them."""
    if not stored.holds(name):
        return None
    fits(stored, name, (inner,))
    return lambda: stored.stored(name, "I32", "I64").astype(np.int64)


def two(stored: Stored, name: str) -> tuple[int, int]:
    """The two dimensions of the stored matrix `name`."""
    shape = stored.stored_shape(name)
    if len(shape) != 2:
        raise CheckpointError(f"{name} has the shape {list(shape)}, not a matrix")
    return shape[0], shape[1]


def fits(stored: Stored, name: str, shape: tuple[int, ...]) -> None:
    """Raise CheckpointError unless the stored tensor `name` has `shape`."""
    if stored.stored_shape(name) != shape:
        raise CheckpointError(
            f"{name} has the shape {list(stored.stored_shape(name))}, "
            f"quantization_config means {list(shape)}",
            hint="the checkpoint's config.json belongs to another model",
        )

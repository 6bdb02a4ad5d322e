"""The first layers of a checkpoint, laid out for the reference to load.

Owns who makes floats of weights that are quantized already. 4-bit floats the reference unpacks
itself; the other methods' matrices it reads only with libraries that need a GPU, or in 16 bits, so
that they are written out here as what they mean. Holds a few rows at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt

from installer.checkpoint.packed.modelopt import CACHE_SCALES
from installer.checkpoint.packed.mxfp4 import Mxfp4
from installer.checkpoint.reader import CONFIG, Checkpoint, unquantized
from installer.checkpoint.shallow import Shallow, float_bytes
from installer.checkpoint.tensors import INDEX, NUMBERS, WEIGHTS, Tensors

Unpacker = Literal["reference", "builder"]
_PLAIN = frozenset({"F32", "F16", "BF16", *NUMBERS})
_LENGTH_BYTES = 8
_PER_BYTE = 2
"""Numbers in a byte of 4-bit floats."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What the reference will load.

    Attributes:
        names: of the tensors, as the checkpoint has them, or of what was made of them.
        size: bytes of them as 32-bit floats.
        unpacked_by: who makes floats of quantized matrices; None if there are none.
    """

    names: tuple[str, ...]
    size: int
    unpacked_by: Unpacker | None


def plan_layout(checkpoint: Checkpoint, shallow: Shallow) -> Layout:
    """What is to be laid out of the first layers."""
    tensors = checkpoint.tensors
    kept = [name for name in shallow.keeps(tensors.names()) if not tensors.is_beside(name)]
    by: Unpacker | None = None
    if checkpoint.packing is not None:
        by = "reference" if isinstance(checkpoint.packing, Mxfp4) else "builder"
    if by != "builder":
        factor = 1 if by is None else _PER_BYTE
        return Layout(tuple(kept), factor * float_bytes(tensors.shape(n) for n in kept), by)
    names = tuple(dict.fromkeys(_meant(tensors, name) for name in kept))
    names = tuple(n for n in names if _is_packed(tensors, n) or _is_plain(tensors, n))
    return Layout(names, float_bytes(tensors.shape(name) for name in names), by)


def lay_out(checkpoint: Checkpoint, config: dict[str, object], plan: Layout, to: Path) -> None:
    """Make the directory `to`, with links to the files of `checkpoint` or a file of floats."""
    to.mkdir()
    if plan.unpacked_by == "builder":
        config = unquantized(config)
        # Tensors of their own: what is read here is not read for the bundle.
        _write(Checkpoint(checkpoint.directory).tensors, plan.names, to / WEIGHTS)
    else:
        _link(checkpoint, plan.names, to)
    (to / CONFIG).write_text(json.dumps(config), "utf-8")


def _meant(tensors: Tensors, name: str) -> str:
    """The matrix that the stored tensor is a part of, or itself."""
    stem, _, end = name.rpartition(".")
    weight = f"{stem}.weight"
    return weight if end != "bias" and tensors.is_packed(weight) else name


def _is_plain(tensors: Tensors, name: str) -> bool:
    """Whether the reference knows it: not what was fixed for a cache."""
    return tensors.stored_type(name) in _PLAIN and not name.endswith(CACHE_SCALES)


def _is_packed(tensors: Tensors, name: str) -> bool:
    """Whether a method stores a matrix, or the matrices of all experts in one tensor."""
    return tensors.is_packed(name) or tensors.is_packed(f"{name}.0")


def _link(checkpoint: Checkpoint, names: Sequence[str], to: Path) -> None:
    """The shards, and an index of what is wanted of them."""
    where = {name: checkpoint.tensors.file_of(name) for name in names}
    for file in sorted(set(where.values())):
        (to / file).symlink_to((checkpoint.directory / file).resolve())
    if set(where.values()) != {WEIGHTS}:
        index = {"metadata": {}, "weight_map": where}
        (to / INDEX).write_text(json.dumps(index), "utf-8")


def _write(tensors: Tensors, names: Sequence[str], path: Path) -> None:
    """One safetensors file of 32-bit floats, and of whole numbers in as many bytes as they are."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in names:
        shape = tensors.shape(name)
        whole = _is_whole(tensors, name)
        begin, at = at, at + float_bytes([shape]) * (1 + whole)
        kind = "I64" if whole else "F32"
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, at]}
    text = json.dumps(header).encode("utf-8")
    with path.open("xb") as file:
        file.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
        for name in names:
            for piece in _pieces(tensors, name):
                file.write(piece.tobytes())


def _is_whole(tensors: Tensors, name: str) -> bool:
    return not _is_packed(tensors, name) and tensors.stored_type(name) in NUMBERS


def _pieces(tensors: Tensors, name: str) -> Iterator[npt.NDArray[Any]]:
    shape = tensors.shape(name)
    if _is_whole(tensors, name):
        yield tensors.numbers(name, shape)
    elif len(shape) == 2:
        yield from tensors.rows(name)
    elif len(shape) == 3:
        yield from (tensors.slab(name, index) for index in range(shape[0]))
    else:
        yield tensors.stored_floats(name)

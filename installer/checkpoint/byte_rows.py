"""Rows of bytes of a safetensors file, for element types that NumPy has no word for.

Owns finding a tensor's place by the file's header (a length in 8 bytes, then JSON with offsets;
the safetensors format). Trusts that header no further than the library, which has opened the file
before, checked it: what lies elsewhere is a short read and refused.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np

from appliance.errors import CheckpointError
from installer.checkpoint.quantize import UInt8

_LENGTH_BYTES = 8


class ByteRows:
    """The tensors of one-byte elements in one file."""

    def __init__(self, path: Path) -> None:
        """Read the header. Raises CheckpointError."""
        self._path = path
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            header = json.loads(file.read(length))
        data = _LENGTH_BYTES + length
        self._start = {
            name: data + entry["data_offsets"][0]
            for name, entry in header.items()
            if name != "__metadata__"
        }

    def read(self, name: str, shape: tuple[int, ...], first: int, last: int) -> UInt8:
        """Rows first..last of the tensor `name`, [last - first, what a row has]."""
        width = math.prod(shape[1:])
        wanted = (last - first) * width
        with self._path.open("rb") as file:
            data = os.pread(file.fileno(), wanted, self._start[name] + first * width)
        if len(data) != wanted:
            raise CheckpointError(f"{self._path.name} ends within {name}")
        return np.frombuffer(data, np.uint8).reshape(last - first, width)

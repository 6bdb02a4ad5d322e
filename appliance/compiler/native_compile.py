"""A bundle's graphs of native operators become what the runtime maps: weights packed.

Owns the layout of the weights for VNNI, which nobody else needs: done once here, a start maps the
file and touches nothing. Both graphs, the plain one and the one for adapters, read one file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from appliance.native import contract
from appliance.pb import onnx_graph_pb2 as pb

_EXTERNAL = 1
_UINT8 = 2
_PAGE = 4096
_ROWS_AT_ONCE = 4096
_MATRICES: Mapping[str, tuple[int, ...]] = {
    "Linear": (1, 4, 7),
    "GatedLinear": (1, 3),
    "Lookup": (0,),
}
"""Which inputs of an operator are matrices."""


class NativeWeights:
    """Writes one weight file for all graphs over the weights in `folder`."""

    def __init__(self, folder: Path, file: BinaryIO, name: str) -> None:
        self._folder = folder
        self._file = file
        self._name = name
        self._written: dict[str, pb.Tensor] = {}

    def lay_out(self, graph: bytes) -> bytes:
        """The checked graph with every external weight in the file, matrices packed."""
        model = pb.Model.FromString(graph)
        matrices = _matrices(model)
        for tensor in model.graph.initializer:
            if tensor.data_location != _EXTERNAL:
                continue
            if tensor.name not in self._written:
                self._written[tensor.name] = self._write(tensor, packed=tensor.name in matrices)
            tensor.CopyFrom(self._written[tensor.name])
        return model.SerializeToString(deterministic=True)

    def _write(self, tensor: pb.Tensor, *, packed: bool) -> pb.Tensor:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        offset, length = int(entries["offset"]), int(entries["length"])
        self._file.write(bytes(-self._file.tell() % _PAGE))
        start = self._file.tell()
        with (self._folder / entries["location"]).open("rb") as source:
            source.seek(offset)
            pieces = _packed(source, *tensor.dims) if packed else _plain(source, length)
            for piece in pieces:
                self._file.write(piece)
        made = pb.Tensor(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        if packed:
            outer, inner = tensor.dims
            together = contract.LANES * contract.DEPTH
            made = pb.Tensor(name=tensor.name, data_type=_UINT8)
            made.dims.extend((_blocks(outer), inner // contract.DEPTH, together))
        made.data_location = _EXTERNAL
        for key, value in (
            ("location", self._name),
            ("offset", str(start)),
            ("length", str(self._file.tell() - start)),
        ):
            made.external_data.add(key=key, value=value)
        return made


def pack(rows: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """int8 [outer, inner] -> [ceil(outer / 16), inner / 4, 16 * 4], 128 added to each."""
    outer, inner = rows.shape
    raised = np.full((_blocks(outer) * contract.LANES, inner), 128, np.uint8)
    raised[:outer] = rows.view(np.uint8) ^ 0x80
    split = raised.reshape(-1, contract.LANES, inner // contract.DEPTH, contract.DEPTH)
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(
        -1, inner // contract.DEPTH, contract.LANES * contract.DEPTH
    )


def _matrices(model: pb.Model) -> set[str]:
    return {
        node.input[index]
        for node in model.graph.node
        if node.domain == contract.DOMAIN
        for index in _MATRICES.get(node.op_type, ())
        if index < len(node.input) and node.input[index]
    }


def _packed(source: BinaryIO, outer: int, inner: int) -> Iterator[bytes]:
    for first in range(0, outer, _ROWS_AT_ONCE):
        count = min(_ROWS_AT_ONCE, outer - first)
        rows = np.frombuffer(source.read(count * inner), np.int8).reshape(count, inner)
        yield pack(rows).tobytes()


def _plain(source: BinaryIO, length: int) -> Iterator[bytes]:
    while length:
        piece = source.read(min(length, 1 << 24))
        assert piece, "sizes were checked"
        length -= len(piece)
        yield piece


def _blocks(rows: int) -> int:
    return math.ceil(rows / contract.LANES)

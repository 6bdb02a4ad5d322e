"""Weights that lie in a file beside their graph: where they are, and how they are put there.

ONNX's external data (onnx.proto, TensorProto.external_data), of graphs that were checked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, NamedTuple

from appliance.pb import onnx_graph_pb2 as pb

EXTERNAL = 1
"""TensorProto.DataLocation."""
_PAGE = 4096
_PIECE = 1 << 24


class Place(NamedTuple):
    """File, first byte and number of bytes of a weight."""

    location: str
    offset: int
    length: int


def place_of(tensor: pb.Tensor) -> Place:
    """Where the weight lies."""
    said = {entry.key: entry.value for entry in tensor.external_data}
    return Place(said["location"], int(said.get("offset", "0")), int(said["length"]))


def put(tensor: pb.Tensor, place: Place) -> pb.Tensor:
    """`tensor`, which has no weight yet, with the one at `place`."""
    tensor.data_location = EXTERNAL
    for key, value in place._asdict().items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def begin(file: IO[bytes]) -> int:
    """Where the next weight begins: at a page, so that it can be mapped."""
    file.write(bytes(-file.tell() % _PAGE))
    return file.tell()


def pieces(source: IO[bytes], length: int) -> Iterator[bytes]:
    """The next `length` bytes, which are there."""
    while length:
        piece = source.read(min(length, _PIECE))
        assert piece, "sizes were checked"
        length -= len(piece)
        yield piece

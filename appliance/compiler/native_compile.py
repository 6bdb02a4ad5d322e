"""A bundle's graphs of native operators become what the runtime maps: weights packed.

Owns the file: what only the native operators need is laid out once here, so that a start maps the
file and touches nothing. Both graphs, the plain one and the one for adapters, read one file. How
weights lie: native_layout.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from appliance.compiler.beside import EXTERNAL, Place, begin, pieces, place_of, put
from appliance.compiler.native_layout import Layout, layouts
from appliance.pb import onnx_graph_pb2 as pb


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
        found = layouts(model)
        for tensor in model.graph.initializer:
            if tensor.data_location != EXTERNAL:
                continue
            if tensor.name not in self._written:
                self._written[tensor.name] = self._write(tensor, found.get(tensor.name))
            tensor.CopyFrom(self._written[tensor.name])
        return model.SerializeToString(deterministic=True)

    def _write(self, tensor: pb.Tensor, layout: Layout | None) -> pb.Tensor:
        there = place_of(tensor)
        start = begin(self._file)
        with (self._folder / there.location).open("rb") as source:
            source.seek(there.offset)
            self._file.writelines(
                layout.pieces(source, tensor.dims) if layout else pieces(source, there.length)
            )
        made = pb.Tensor(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        if layout is not None:
            made = pb.Tensor(name=tensor.name, data_type=layout.data_type)
            made.dims.extend(layout.shape(tensor.dims))
        return put(made, Place(self._name, start, self._file.tell() - start))

"""Two compiled graphs over one set of weights, and a graph whose weights get another name.

Owns pointing the second graph's weights at the first one's file, laid out ones included, so that
both are mapped from it and memory holds them once. What the second alone has, such as scales in
another shape, moves into its graph. Refuses a second graph with large weights of its own.
"""

from __future__ import annotations

from pathlib import Path

from appliance.compiler.beside import EXTERNAL, place_of
from appliance.errors import UnsupportedError
from appliance.pb import onnx_graph_pb2 as pb

_INLINE = 0
_LARGEST_OWN = 1 << 18
"""Bytes of one weight that only the second graph has."""


def share_weights(first: bytes, second: bytes, second_weights: Path) -> bytes:
    """`second` with every weight where `first` has the one of the same name.

    Both are compiled graphs (ONNX models whose larger weights are external, the second's in
    `second_weights`). Raises UnsupportedError for a large weight that `first` does not have.
    """
    there = {tensor.name: tensor for tensor in _external(pb.Model.FromString(first))}
    model = pb.Model.FromString(second)
    for tensor in _external(model):
        twin = there.get(tensor.name)
        if twin is None:
            tensor.raw_data = _own(tensor, second_weights)
            tensor.data_location = _INLINE
            del tensor.external_data[:]
            continue
        if (twin.data_type, twin.dims) != (tensor.data_type, tensor.dims):
            raise _refused(tensor)
        del tensor.external_data[:]
        tensor.external_data.extend(twin.external_data)
    # What the schema does not know, ONNX Runtime wrote; it is kept as it is.
    return model.SerializeToString(deterministic=True)


def rename_weights(graph: bytes, name: str) -> bytes:
    """The compiled `graph` with its external weights, laid out ones too, in the file `name`."""
    model = pb.Model.FromString(graph)
    for tensor in _external(model):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name
    return model.SerializeToString(deterministic=True)


def _external(model: pb.Model) -> list[pb.Tensor]:
    return [t for t in model.graph.initializer if t.data_location == EXTERNAL]


def _own(tensor: pb.Tensor, weights: Path) -> bytes:
    there = place_of(tensor)
    if there.length > _LARGEST_OWN:
        raise _refused(tensor)
    with weights.open("rb") as file:
        file.seek(there.offset)
        return file.read(there.length)


def _refused(tensor: pb.Tensor) -> UnsupportedError:
    return UnsupportedError(
        f"the bundle's graphs do not share the weight {tensor.name}",
        hint="the bundle was not made by `appliance bundle build`; do not use it",
    )

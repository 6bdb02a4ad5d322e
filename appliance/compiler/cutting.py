"""A decoder's graph for a GPU is cut into stages, each for a GPU of its own.

Owns where a graph may be cut, and the cut. It may be where next to nothing has to be handed on:
between two layers, or between a layer's attention and its feed-forward, where the states of the
tokens are one tensor, or two that the next norm adds up. What a graph works out from lengths and
stored numbers alone each stage works out for itself; inputs are given to each that reads them.
Refuses a graph whose later layers read what earlier ones made beside those states. Pure: graph in,
graphs out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import pairwise

from appliance.compiler.beside import place_of
from appliance.errors import UnsupportedError
from appliance.pb import onnx_graph_pb2 as pb

MOST_STAGES = 16
_IDS, _ROWS = "input_ids", "rows"
_KNOWN_EVERYWHERE = frozenset(
    {_IDS, _ROWS, "seqlens_k", "total_sequence_length", "starts", "positions"}
)
"""Inputs that say which tokens there are, and where: every stage is given those it reads."""
_LOOKS_UP = frozenset({"Gather", "GatherBlockQuantized"})
_ADDS_UP = frozenset({"SkipSimplifiedLayerNormalization", "SkipLayerNormalization"})
"""Norms of a sum of two."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One part of a graph.

    Attributes:
        graph: its bytes. What it is handed has no type there yet: see `typed`.
        handed: names of what it hands on to the next stage, which are inputs there.
        weights: bytes of the stored numbers that it reads.
    """

    graph: bytes
    handed: tuple[str, ...]
    weights: int


def cut(graph: bytes, stages: int) -> list[Stage]:
    """`graph` in so many parts of about the same weights, in the order in which they compute.

    Raises UnsupportedError if it has not as many places where it may be cut.
    """
    assert 1 <= stages <= MOST_STAGES
    model = pb.Model.FromString(graph)
    flow = _Flow(model.graph)
    ends = _balanced(flow, stages)
    bounds = [0, *(end for end, _ in ends), len(flow.nodes)]
    handed = [handed for _, handed in ends]
    return [
        _stage(model, flow, range(*bound), given, taken)
        for bound, given, taken in zip(pairwise(bounds), [(), *handed], [*handed, ()], strict=True)
    ]


def typed(graph: bytes, handed: Mapping[str, tuple[int, int]]) -> bytes:
    """`graph` with the types of what it is handed: name -> TensorProto.DataType, and the size of
    the last dimension behind "batch" and "tokens".
    """
    model = pb.Model.FromString(graph)
    for entry in model.graph.input:
        if entry.name in handed:
            kind, width = handed[entry.name]
            entry.type.tensor_type.elem_type = kind
            for axis in ("batch", "tokens"):
                entry.type.tensor_type.shape.dim.add(dim_param=axis)
            entry.type.tensor_type.shape.dim.add(dim_value=width)
    return model.SerializeToString(deterministic=True)


class _Flow:
    """What of a graph computes tokens, in order, and what each of these nodes reads.

    Attributes:
        nodes: those that depend on tokens.
        makers: output -> node, of all the others, in order.
        sizes: stored number -> its bytes.
    """

    def __init__(self, graph: pb.Graph) -> None:
        self.sizes = {tensor.name: _bytes(tensor) for tensor in graph.initializer}
        plain = {"", *self.sizes, *_KNOWN_EVERYWHERE}
        self.nodes: list[pb.Node] = []
        self.makers: dict[str, pb.Node] = {}
        for node in graph.node:
            looked_up = node.op_type in _LOOKS_UP and _IDS in node.input
            if node.op_type == "Shape" or (plain.issuperset(node.input) and not looked_up):
                plain.update(node.output)
                self.makers.update(dict.fromkeys(node.output, node))
            else:
                self.nodes.append(node)

    def places(self) -> Iterator[tuple[int, tuple[str, ...]]]:
        """Before which nodes the graph may be cut, and what is handed on there."""
        reads = [self.read_by([node]) for node in self.nodes]
        last = {name: number for number, names in enumerate(reads) for name in names}
        alive: set[str] = set()
        for number, node in enumerate(self.nodes):
            if _ROWS in reads[number]:
                return  # from here on there are rows, not tokens
            alive = {name for name in alive if last[name] >= number}
            if 0 < len(alive) <= 1 + (node.op_type in _ADDS_UP):
                yield number, tuple(sorted(alive))
            alive.update(name for name in node.output if last.get(name, -1) > number)

    def read_by(self, nodes: Sequence[pb.Node]) -> set[str]:
        """All that `nodes` read, and what that is worked out from if not from tokens."""
        found: set[str] = set()
        ahead = [name for node in nodes for name in node.input]
        while ahead:
            name = ahead.pop()
            if name in found:
                continue
            found.add(name)
            if name in self.makers:
                ahead.extend(self.makers[name].input)
        return found

    def weights(self, read: AbstractSet[str]) -> int:
        """Bytes of the stored numbers among what is read."""
        return sum(self.sizes[name] for name in read if name in self.sizes)


def _balanced(flow: _Flow, stages: int) -> list[tuple[int, tuple[str, ...]]]:
    """Where to cut, so that the heaviest stage is as light as it can be; the places in order.

    Raises UnsupportedError.
    """
    places = list(flow.places())
    parts = _parts(flow, [number for number, _ in places])
    if len(parts) < stages:
        raise UnsupportedError(
            f"the graph can be cut in {len(places)} places, which is too few for {stages} GPUs",
            hint="its layers read what earlier ones made: it runs on one GPU, or on the processor",
            code="not_divisible",
        )
    low, high = 0, flow.weights(set().union(*parts))
    while low < high:
        middle = (low + high) // 2
        if len(_filled(flow, parts, middle)) < stages:
            high = middle
        else:
            low = middle + 1
    cuts = _filled(flow, parts, low)
    # Fewer would do where one part outweighs all: the rest is divided all the same.
    spare = [n for n in range(1, len(parts)) if n not in cuts]
    while len(cuts) < stages - 1:
        cuts.append(spare.pop())
    return [places[n - 1] for n in sorted(cuts)]


def _parts(flow: _Flow, numbers: Sequence[int]) -> list[set[str]]:
    """What is read between each two places."""
    bounds = pairwise([0, *numbers, len(flow.nodes)])
    return [flow.read_by(flow.nodes[first:end]) for first, end in bounds]


def _filled(flow: _Flow, parts: Sequence[AbstractSet[str]], most: int) -> list[int]:
    """Before which parts a new stage begins if each takes what is within `most` bytes."""
    cuts: list[int] = []
    read: set[str] = set()
    for number, part in enumerate(parts):
        if number and flow.weights(read | part) > most:
            cuts.append(number)
            read = set()
        read |= part
    return cuts


def _stage(
    model: pb.Model,
    flow: _Flow,
    nodes: range,
    given: Sequence[str],
    handed: tuple[str, ...],
) -> Stage:
    own = [flow.nodes[number] for number in nodes]
    read = flow.read_by(own)
    kept = {id(flow.makers[name]) for name in read if name in flow.makers} | {*map(id, own)}
    made = {name for node in own for name in node.output}
    whole = model.graph
    part = pb.Model(ir_version=model.ir_version, opset_import=model.opset_import)
    part.producer_name, part.graph.name = model.producer_name, whole.name
    # In the order they had: each is made before it is read.
    part.graph.node.extend(node for node in whole.node if id(node) in kept)
    part.graph.initializer.extend(t for t in whole.initializer if t.name in read)
    part.graph.input.extend(entry for entry in whole.input if entry.name in read)
    part.graph.output.extend(entry for entry in whole.output if entry.name in made)
    part.graph.input.extend(pb.ValueInfo(name=name) for name in given)
    part.graph.output.extend(pb.ValueInfo(name=name) for name in handed)
    return Stage(part.SerializeToString(deterministic=True), handed, flow.weights(read))


def _bytes(tensor: pb.Tensor) -> int:
    if tensor.external_data:
        return place_of(tensor).length
    return len(tensor.raw_data) or math.prod(tensor.dims)

"""What products cost by what weights are: 16-bit floats, integers in runs, 8-bit floats.

One feed-forward's products, up and down again and again, each by weights of its own, for several
numbers of rows. It decides which of a bundle's precisions a GPU is best given (docs/decisions/0168
and 0266). All forms read the same bytes, which are small numbers in each of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from appliance.pb import onnx_graph_pb2 as pb

FORMS = ("fp16", "int8", "fp8")
ROWS = (1, 8, 32, 128, 512)
_FILE = "weights.bin"
_FLOAT, _UINT8, _HALF, _BYTE_FLOAT = 1, 2, 10, 17
"""TensorProto.DataType."""
_SIZES: Mapping[int, int] = {_FLOAT: 4, _UINT8: 1, _HALF: 2, _BYTE_FLOAT: 1}
_SHORT_RUN, _LONG_RUN = 32, 128
"""Weights that share a scale, of integers and of 8-bit floats: as bundles have them."""
_ALIGNMENT = 256
_MOST = 64
"""Bytes below it are positive, finite and less than 2 as either kind of float."""


@dataclass(frozen=True, slots=True)
class Shape:
    """So many times from `hidden` numbers to `inner` and back; Qwen3-8B's by default."""

    hidden: int = 4096
    inner: int = 12288
    times: int = 8


Open = Callable[[Path], ort.InferenceSession]
Steps = dict[str, tuple[float, float]]
Timed = Callable[[Callable[[], object]], tuple[float, float]]
"""Milliseconds of a step, the first time and further ones."""


def measure_products(
    folder: Path, open_graph: Open, device: str, timed: Timed, shape: Shape | None = None
) -> Steps:
    """Milliseconds for all products of `shape`; `folder` is there only while they are measured.

    `device`: where the session's memory is.
    """
    shape = shape or Shape()
    found: Steps = {}
    folder.mkdir()
    try:
        write_bytes(folder / _FILE, shape)
        for form in FORMS:
            (folder / "model.onnx").write_bytes(graph_of(form, shape))
            session = open_graph(folder)
            for rows in ROWS:
                # It waits for the device.
                run = partial(
                    session.run_with_iobinding, _bound(session, device, rows, shape.hidden)
                )
                found[f"products in {form}, {rows} rows"] = timed(run)
            del session
    finally:
        shutil.rmtree(folder)
    return found


def write_bytes(path: Path, shape: Shape) -> None:
    """As many as the largest form takes."""
    random = np.random.default_rng(266)
    left = max(_Graph(form, shape).size for form in FORMS)
    with path.open("wb") as file:
        while left > 0:
            piece = random.integers(0, _MOST, min(left, 1 << 26), np.uint8)
            left -= file.write(piece.tobytes())


def graph_of(form: str, shape: Shape) -> bytes:
    """x [rows, hidden] -> y [rows, hidden] in 16-bit floats."""
    return _Graph(form, shape).encoded()


def _bound(session: ort.InferenceSession, device: str, rows: int, width: int) -> ort.IOBinding:
    x: npt.NDArray[np.float16] = np.ones((rows, width), np.float16)
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(x, device, 0))
    binding.bind_output("y", device)
    return binding


@dataclass(slots=True)
class _Graph:
    form: str
    shape: Shape
    size: int = 0
    """Bytes of its weights so far."""
    _graph: pb.Graph = field(default_factory=lambda: pb.Graph(name="products"))

    def __post_init__(self) -> None:
        hidden, inner = self.shape.hidden, self.shape.inner
        at = "x"
        sides = [(hidden, inner), (inner, hidden)] * self.shape.times
        for number, (wide, high) in enumerate(sides, 1):
            made = "y" if number == len(sides) else f"y_{number}"
            self._graph.node.append(self._product(at, made, wide, high))
            at = made
        self._graph.input.append(_value("x", hidden))
        self._graph.output.append(_value("y", hidden))

    def encoded(self) -> bytes:
        sets = [pb.OperatorSet(version=21), pb.OperatorSet(domain="com.microsoft", version=1)]
        return pb.Model(ir_version=10, graph=self._graph, opset_import=sets).SerializeToString()

    def _product(self, x: str, y: str, inner: int, outer: int) -> pb.Node:
        """As bundles say it in each form."""
        if self.form == "fp16":
            weights = self._weights(f"{y}.weights", _HALF, (inner, outer))
            return pb.Node(op_type="MatMul", input=[x, weights], output=[y], name=y)
        if self.form == "int8":
            runs, name = inner // _SHORT_RUN, "MatMulNBits"
            weights = self._weights(f"{y}.weights", _UINT8, (outer, runs, _SHORT_RUN))
            scales = self._weights(f"{y}.scales", _HALF, (outer, runs))
            numbers = {"K": inner, "N": outer, "bits": 8, "block_size": _SHORT_RUN}
        else:
            runs, name = inner // _LONG_RUN, "MatMulBlockQuantizedFp8Weight"
            weights = self._weights(f"{y}.weights", _BYTE_FLOAT, (outer, inner))
            scales = self._weights(f"{y}.scales", _FLOAT, (outer, runs))
            numbers = {"block_size": _LONG_RUN}
        attributes = [pb.Attribute(name=n, i=i, type=2) for n, i in numbers.items()]
        return pb.Node(
            op_type=name, domain="com.microsoft", input=[x, weights, scales], output=[y], name=y,
            attribute=attributes,
        )  # fmt: skip

    def _weights(self, name: str, kind: int, dims: Sequence[int]) -> str:
        """The next bytes of the file."""
        length = _SIZES[kind] * int(np.prod(dims))
        where = {"location": _FILE, "offset": str(self.size), "length": str(length)}
        entries = [pb.Entry(key=key, value=value) for key, value in where.items()]
        self._graph.initializer.append(
            pb.Tensor(name=name, dims=dims, data_type=kind, external_data=entries, data_location=1)
        )
        self.size += -(-length // _ALIGNMENT) * _ALIGNMENT
        return name


def _value(name: str, width: int) -> pb.ValueInfo:
    rows, columns = pb.Dimension(dim_param="rows"), pb.Dimension(dim_value=width)
    tensor = pb.TensorType(elem_type=_HALF, shape=pb.Shape(dim=[rows, columns]))
    return pb.ValueInfo(name=name, type=pb.Type(tensor_type=tensor))


def names() -> Iterator[str]:
    """Of the steps that are measured."""
    for form in FORMS:
        yield from (f"products in {form}, {rows} rows" for rows in ROWS)

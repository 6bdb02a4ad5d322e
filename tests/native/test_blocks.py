"""BlockLinear, BlockGatedLinear and BlockLookup against their definitions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from tests.native.graphs import Array, session

X = {"x": TensorProto.FLOAT}
NAMES = ("w", "s", "z")


@dataclass(frozen=True)
class Blocks:
    """A random matrix: its integers and zero points one by one, and what an operator reads."""

    integers: Array
    """[outer, runs, block]"""
    scales: Array
    zeros: Array
    """[outer, runs]"""
    bits: int

    @property
    def weights(self) -> Array:
        """[outer, inner], exact."""
        whole = self.integers.astype(np.float64) - self.zeros[..., None]
        return (whole * self.scales[..., None]).reshape(len(whole), -1)

    def plain(self) -> tuple[Array, Array, Array]:
        """As bundles have it."""
        if self.bits == 8:
            return self.integers, self.scales, self.zeros
        zeros = np.pad(self.zeros, ((0, 0), (0, self.zeros.shape[1] % 2)))
        return _halves(self.integers), self.scales, _halves(zeros)

    def packed(self) -> tuple[Array, Array, Array]:
        """Sixteen rows side by side."""
        outer, runs, block = self.integers.shape
        panels = outer // 16
        if self.bits == 8:
            split = self.integers.reshape(panels, 16, runs, block // 4, 4)
        else:
            pairs = self.integers.reshape(panels, 16, runs, block // 8, 2, 4)
            split = pairs[..., 0, :] | pairs[..., 1, :] << 4
        integers = split.transpose(0, 2, 3, 1, 4).reshape(panels, runs, -1, 64)
        beside = (array.reshape(panels, 16, runs) for array in (self.scales, self.zeros))
        scales, zeros = (array.transpose(0, 2, 1).copy() for array in beside)
        return integers.copy(), scales, zeros


def _halves(values: Array) -> Array:
    pairs: Array = values[..., 0::2] | values[..., 1::2] << 4
    return pairs


def _blocks(rng: np.random.Generator, outer: int, runs: int, block: int, bits: int = 4) -> Blocks:
    integers = rng.integers(0, 1 << bits, (outer, runs, block)).astype(np.uint8)
    scales = rng.uniform(0.001, 0.01, (outer, runs)).astype(np.float32)
    return Blocks(
        integers, scales, rng.integers(0, 1 << bits, (outer, runs)).astype(np.uint8), bits
    )


def _named(*matrices: tuple[Array, Array, Array]) -> dict[str, Array]:
    return {
        f"{name}{i}": array
        for i, matrix in enumerate(matrices)
        for name, array in zip(NAMES, matrix, strict=True)
    }


def _product(x: Array, blocks: Blocks) -> Array:
    """Rows rounded by their own peak, exact sums of a block's integers, then the scales."""
    factor = np.float32(127) / np.abs(x).max(-1, keepdims=True)
    rounded = np.rint(x * factor).astype(np.float64)
    step: Array = np.abs(x).max(-1, keepdims=True) / np.float32(127)
    scaled: Array = rounded @ blocks.weights.T * step
    return scaled


@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(1, 30),
    runs=st.integers(1, 5),
    block=st.sampled_from([16, 32, 128]),
    panels=st.integers(1, 5),
    bits=st.sampled_from([4, 8]),
    seed=st.integers(0),
)
@example(rows=13, runs=3, block=128, panels=3, bits=4, seed=0)
@example(rows=110, runs=3, block=128, panels=3, bits=4, seed=2)
@example(rows=26, runs=10, block=128, panels=3, bits=4, seed=3)
@example(rows=26, runs=2, block=1040, panels=2, bits=4, seed=4)
@example(rows=25, runs=3, block=32, panels=2, bits=8, seed=1)
def test_linear_is_the_scaled_product_of_integers_whatever_rows_there_are(
    rows: int, runs: int, block: int, panels: int, bits: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    matrix = _blocks(rng, panels * 16, runs, block, bits)
    bias = rng.normal(size=panels * 16).astype(np.float32)
    x = rng.normal(size=(1, rows, runs * block)).astype(np.float32)
    plain, ready = (
        session("BlockLinear", ["x", *c, "b"], X, {**c, "b": bias}, bits=bits)
        for c in (_named(matrix.plain()), _named(matrix.packed()))
    )
    y = ready.run(None, {"x": x})[0]
    assert np.array_equal(y, plain.run(None, {"x": x})[0])
    assert np.allclose(y, _product(x, matrix) + bias, rtol=1e-4, atol=1e-4)
    alone = np.concatenate([ready.run(None, {"x": x[:, i : i + 1]})[0] for i in range(rows)], 1)
    assert np.array_equal(y, alone), "to the bit"


@pytest.mark.parametrize("bits", [4, 8])
def test_without_zero_points_half_of_the_range_is_zero(bits: int) -> None:
    rng = np.random.default_rng(5)
    found = _blocks(rng, 32, 2, 32, bits)
    matrix = Blocks(found.integers, found.scales, np.full_like(found.zeros, 1 << bits - 1), bits)
    x = rng.normal(size=(3, 64)).astype(np.float32)
    results = []
    for stored in (matrix.plain(), matrix.packed()):
        constants = _named(stored)
        results.append(session("BlockLinear", ["x", *constants], X, constants, bits=bits))
        del constants["z0"]
        results.append(session("BlockLinear", ["x", "w0", "s0"], X, constants, bits=bits))
    first, *others = (one.run(None, {"x": x})[0] for one in results)
    assert all(np.array_equal(first, other) for other in others)


def test_several_matrices_give_what_each_gives_alone() -> None:
    rng = np.random.default_rng(0)
    matrices = [_blocks(rng, outer, 2, 32).plain() for outer in (48, 16, 32)]
    constants = _named(*matrices)
    names = ["x"]
    for i in range(3):
        names += [f"w{i}", f"s{i}", f"z{i}", ""]
    outputs = [(f"y{i}", TensorProto.FLOAT) for i in range(3)]
    x = rng.normal(size=(5, 64)).astype(np.float32)
    together = session("BlockLinear", names, X, constants, outputs, bits=4).run(None, {"x": x})
    for matrix, found in zip(matrices, together, strict=True):
        own = _named(matrix)
        alone = session("BlockLinear", ["x", *own], X, own, bits=4).run(None, {"x": x})[0]
        assert np.array_equal(found, alone)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("rows", [1, 14])
def test_gated_is_the_activated_gate_times_the_other(activation: str, rows: int) -> None:
    rng = np.random.default_rng(1)
    matrices = [_blocks(rng, 48, 2, 32).packed() for _ in range(2)]
    x = rng.normal(size=(rows, 64)).astype(np.float32)
    opened, raised = (
        session("BlockLinear", ["x", *own], X, own, bits=4)
        .run(None, {"x": x})[0]
        .astype(np.float64)
        for own in map(_named, matrices)
    )
    inner = opened
    if activation == "gelu_tanh":
        inner = 2 * np.sqrt(2 / np.pi) * (opened + 0.044715 * opened**3)
    wanted = opened / (1 + np.exp(-inner)) * raised
    constants = _named(*matrices)
    gated = session(
        "BlockGatedLinear", ["x", *constants], X, constants, activation=activation, bits=4
    )
    assert np.allclose(gated.run(None, {"x": x})[0], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
def test_lookup_gives_the_scaled_rows_and_refuses_others(bits: int) -> None:
    matrix = _blocks(np.random.default_rng(2), 32, 3, 16, bits)
    fed = {"ids": TensorProto.INT64}
    for stored in (matrix.plain(), matrix.packed()):
        constants = _named(stored)
        found = session("BlockLookup", ["ids", *constants], fed, constants, bits=bits)
        ids = np.array([[0, 31], [7, 7]])
        rows = found.run(None, {"ids": ids})[0]
        assert np.allclose(rows, matrix.weights[ids], rtol=1e-6, atol=0)
        for bad in (-1, 32):
            with pytest.raises(InvalidArgument, match=f"id {bad} is not below 32"):
                found.run(None, {"ids": np.array([bad])})


def _refused(matrix: tuple[Array, Array, Array], width: int, bits: int = 4) -> str:
    constants = _named(matrix)
    x = np.zeros((1, width), np.float32)
    with pytest.raises(Exception, match=r".") as caught:
        session("BlockLinear", ["x", *constants], X, constants, bits=bits).run(None, {"x": x})
    return str(caught.value)


def test_matrices_that_do_not_fit_are_refused() -> None:
    rng = np.random.default_rng(4)
    integers, scales, zeros = _blocks(rng, 32, 2, 32).plain()
    assert "x has rows of 4 numbers and a matrix of 64" in _refused((integers, scales, zeros), 4)
    for wrong in ((scales[:, :1], zeros), (scales, zeros[:, :0]), (scales[:31], zeros)):
        narrow, short = (array.copy() for array in wrong)
        assert "not of one shape" in _refused((integers, narrow, short), 64)
    odd = (integers[:31], scales[:31], zeros[:31])
    assert "has 31 rows; a multiple of 16" in _refused(odd, 64)
    assert "have 24 numbers; a multiple of 16" in _refused(
        (integers[..., :12].copy(), scales, zeros), 48
    )
    assert "4 or 8 bits, not 3" in _refused((integers, scales, zeros), 64, bits=3)
    packed = _blocks(rng, 32, 2, 32).packed()
    assert "not of one shape" in _refused((packed[0], packed[1][:1], packed[2]), 64)
    one, other = _blocks(rng, 16, 2, 32).plain(), _blocks(rng, 16, 4, 16).plain()
    constants = _named(one, other)
    x = np.zeros((1, 64), np.float32)
    gated = session("BlockGatedLinear", ["x", *constants], X, constants, activation="silu", bits=4)
    with pytest.raises(InvalidArgument, match="in blocks of 32 and the other matrix 16 of 16"):
        gated.run(None, {"x": x})

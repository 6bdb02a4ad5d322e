"""Linear, GatedLinear and Lookup against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from tests.native.graphs import Array, packed, session

X = {"x": TensorProto.FLOAT}


def _matrix(rng: np.random.Generator, outer: int, inner: int) -> tuple[Array, Array]:
    weight = rng.integers(-127, 128, (outer, inner)).astype(np.int8)
    return weight, rng.uniform(0.001, 0.01, outer).astype(np.float32)


def _product(x: Array, weight: Array, scale: Array) -> Array:
    """Rows rounded by their own peak, exact sums of integers, then the scales."""
    peak = np.abs(x).max(-1, keepdims=True)
    step = peak / np.float32(127)
    # As the operator reckons it: otherwise a number between two integers may become the other.
    rounded: Array = np.rint(x * (np.float32(127) / peak))
    exact: Array = rounded.astype(np.int64) @ weight.T.astype(np.int64)
    scaled: Array = exact * step.astype(np.float64) * scale
    return scaled


@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 30), inner=st.integers(1, 24), outer=st.integers(1, 70), seed=st.integers(0)
)
def test_linear_is_the_scaled_product_of_integers(
    rows: int, inner: int, outer: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weight, scale = _matrix(rng, outer, inner * 4)
    bias = rng.normal(size=outer).astype(np.float32)
    x = rng.normal(size=(1, rows, inner * 4)).astype(np.float32)
    names = ["x", "w", "s", "b"]
    plain = session("Linear", names, X, {"w": weight, "s": scale[:, None], "b": bias})
    ready = session("Linear", names, X, {"w": packed(weight), "s": scale, "b": bias})
    y = plain.run(None, {"x": x})[0]
    assert np.array_equal(y, ready.run(None, {"x": x})[0])
    assert np.allclose(y, _product(x, weight, scale) + bias, rtol=1e-5, atol=1e-4)
    alone = np.concatenate([plain.run(None, {"x": x[:, i : i + 1]})[0] for i in range(rows)], 1)
    assert np.array_equal(y, alone)


def test_several_matrices_give_what_each_gives_alone() -> None:
    rng = np.random.default_rng(0)
    sizes = (33, 16, 1)
    constants: dict[str, Array] = {}
    names = ["x"]
    for i, outer in enumerate(sizes):
        constants[f"w{i}"], constants[f"s{i}"] = _matrix(rng, outer, 64)
        names += [f"w{i}", f"s{i}", ""]
    outputs = [(f"y{i}", TensorProto.FLOAT) for i in range(3)]
    x = rng.normal(size=(5, 64)).astype(np.float32)
    together = session("Linear", names, X, constants, outputs).run(None, {"x": x})
    for i in range(3):
        own = {name: constants[name] for name in (f"w{i}", f"s{i}")}
        alone = session("Linear", ["x", *own], X, own).run(None, {"x": x})[0]
        assert np.array_equal(together[i], alone)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gated_is_the_activated_gate_times_the_other(activation: str) -> None:
    rng = np.random.default_rng(1)
    gate, up = _matrix(rng, 37, 64), _matrix(rng, 37, 64)
    x = rng.normal(size=(14, 64)).astype(np.float32)
    opened, raised = (
        session("Linear", ["x", "w", "s"], X, {"w": w, "s": s})
        .run(None, {"x": x})[0]
        .astype(np.float64)
        for w, s in (gate, up)
    )
    inner = opened
    if activation == "gelu_tanh":
        inner = 2 * np.sqrt(2 / np.pi) * (opened + 0.044715 * opened**3)
    wanted = opened / (1 + np.exp(-inner)) * raised
    constants = {"a": gate[0], "b": gate[1], "c": up[0], "d": up[1]}
    gated = session("GatedLinear", ["x", *constants], X, constants, activation=activation)
    assert np.allclose(gated.run(None, {"x": x})[0], wanted, rtol=1e-5, atol=1e-5)


def test_lookup_gives_the_scaled_rows_and_refuses_others() -> None:
    rng = np.random.default_rng(2)
    weight, scale = _matrix(rng, 21, 12)
    fed = {"ids": TensorProto.INT64}
    for stored in (weight, packed(weight)):
        found = session("Lookup", ["w", "s", "ids"], fed, {"w": stored, "s": scale})
        ids = np.array([[0, 20], [7, 7]])
        wanted = weight[ids].astype(np.float32) * scale[ids][..., None]
        assert np.array_equal(found.run(None, {"ids": ids})[0], wanted)
        for bad in (-1, 21):
            with pytest.raises(InvalidArgument, match=f"id {bad} is not below 21"):
                found.run(None, {"ids": np.array([bad])})


def test_rows_of_another_size_are_refused() -> None:
    weight, scale = _matrix(np.random.default_rng(3), 16, 8)
    linear = session("Linear", ["x", "w", "s"], X, {"w": weight, "s": scale})
    with pytest.raises(InvalidArgument, match="x has rows of 4 numbers and a matrix of 8"):
        linear.run(None, {"x": np.zeros((1, 4), np.float32)})
    assert linear.run(None, {"x": np.zeros((0, 8), np.float32)})[0].shape == (0, 16)


def test_matrices_that_do_not_fit_are_refused() -> None:
    weight, scale = _matrix(np.random.default_rng(4), 16, 8)
    x = np.zeros((1, 8), np.float32)
    with pytest.raises(InvalidArgument, match="a matrix has 16 rows and 15 scales"):
        session("Linear", ["x", "w", "s"], X, {"w": weight, "s": scale[:15]}).run(None, {"x": x})
    floats = session("Linear", ["x", "w", "s"], X, {"w": weight.astype(np.float32), "s": scale})
    with pytest.raises(InvalidArgument, match="neither packed nor of int8"):
        floats.run(None, {"x": x})
    narrow = session("Linear", ["x", "w", "s"], X, {"w": weight[:, :6].copy(), "s": scale})
    with pytest.raises(InvalidArgument, match="a multiple of 4"):
        narrow.run(None, {"x": x[:, :6]})
    constants = {"a": weight, "b": scale, "c": weight, "d": scale}
    with pytest.raises(Exception, match="none of silu, gelu_tanh"):
        session("GatedLinear", ["x", *constants], X, constants, activation="relu")

"""Attention against its definition, over the keys and values as they are stored."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from tests.native.graphs import Array, session

SLOTS, CAPACITY, HEAD = 3, 96, 32
OUTPUTS = (
    ("attended", TensorProto.FLOAT),
    ("present_key", TensorProto.UINT8),
    ("present_value", TensorProto.INT8),
)


@dataclass
class Case:
    """One layer: its constants, and the tokens of a sequence."""

    heads: int = 4
    kv_heads: int = 2
    window: int = 0
    softcap: float = 0.0
    interleaved: int = 0
    turned: int = HEAD
    norms: bool = False
    sinks: bool = False
    constants: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(7)
        angles = np.arange(CAPACITY)[:, None] / 10.0 ** np.linspace(0, 3, self.turned // 2)
        width = self.kv_heads * HEAD
        made = {
            "key_scale": rng.uniform(0.02, 0.04, width),
            "value_scale": rng.uniform(0.02, 0.04, width),
            "cosines": np.cos(angles),
            "sines": np.sin(angles),
        }
        if self.norms:
            made |= {name: rng.uniform(0.5, 1.5, HEAD) for name in ("query_norm", "key_norm")}
        if self.sinks:
            made["sinks"] = rng.normal(size=self.heads)
        self.constants = {name: value.astype(np.float32) for name, value in made.items()}

    def session(self) -> ort.InferenceSession:
        fed = {
            **dict.fromkeys(("query", "key", "value"), TensorProto.FLOAT),
            "spans": TensorProto.INT32,
            "past_key": TensorProto.UINT8,
            "past_value": TensorProto.INT8,
        }
        optional = [
            name if name in self.constants else "" for name in ("query_norm", "key_norm", "sinks")
        ]
        names = [*fed, "key_scale", "value_scale", "cosines", "sines", *optional]
        return session(
            *("Attention", names, fed, self.constants, OUTPUTS),
            heads=self.heads,
            kv_heads=self.kv_heads,
            scale=0.3,
            softcap=self.softcap,
            epsilon=1e-6,
            window=self.window,
            interleaved=self.interleaved,
        )

    def tokens(self, count: int, seed: int = 0) -> dict[str, Array]:
        rng = np.random.default_rng(seed)
        sizes = {"query": self.heads, "key": self.kv_heads, "value": self.kv_heads}
        return {
            name: rng.normal(size=(count, heads * HEAD)).astype(np.float32)
            for name, heads in sizes.items()
        }

    def empty(self) -> dict[str, Array]:
        keys = (SLOTS, self.kv_heads, CAPACITY // 16, HEAD // 4, 64)
        values = (SLOTS, self.kv_heads, CAPACITY, HEAD)
        return {"past_key": np.full(keys, 128, np.uint8), "past_value": np.zeros(values, np.int8)}

    def wanted(self, tokens: dict[str, Array]) -> Array:
        """[tokens, heads * HEAD] in float64, over rounded keys and values."""
        count = len(tokens["query"])
        query = self._turned(tokens["query"].reshape(count, self.heads, HEAD), "query_norm")
        key = self._turned(tokens["key"].reshape(count, self.kv_heads, HEAD), "key_norm")
        value = tokens["value"].astype(np.float64).reshape(count, self.kv_heads, HEAD)
        group = self.heads // self.kv_heads
        key, value = (
            np.clip(np.rint(x / s), -128, 127) * s
            for x, s in (
                (key, self.constants["key_scale"].reshape(self.kv_heads, HEAD)),
                (value, self.constants["value_scale"].reshape(self.kv_heads, HEAD)),
            )
        )
        key, value = (np.repeat(x, group, 1) for x in (key, value))
        scores = np.einsum("qhd,khd->hqk", query, key) * np.float32(0.3)
        if self.softcap:
            scores = self.softcap * np.tanh(scores / self.softcap)
        apart = np.arange(count)[:, None] - np.arange(count)
        hidden = (apart < 0) | ((apart >= self.window) if self.window else False)
        weights = np.exp(np.where(hidden, -np.inf, scores))
        total = weights.sum(-1, keepdims=True)
        if self.sinks:
            total = total + np.exp(self.constants["sinks"].astype(np.float64))[:, None, None]
        read: Array = np.einsum("hqk,khd->qhd", weights / total, value).reshape(count, -1)
        return read

    def _turned(self, x: Array, norm: str) -> Array:
        x = x.astype(np.float64)
        if self.norms:
            x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * self.constants[norm]
        half = self.turned // 2
        cos, sin = (
            self.constants[n][: len(x), None].astype(np.float64) for n in ("cosines", "sines")
        )
        one = slice(0, self.turned, 2) if self.interleaved else slice(0, half)
        other = slice(1, self.turned, 2) if self.interleaved else slice(half, self.turned)
        y = x.copy()
        y[..., one] = x[..., one] * cos - x[..., other] * sin
        y[..., other] = x[..., one] * sin + x[..., other] * cos
        return y


CASES = {
    "groups of two": Case(),
    "heads of their own": Case(heads=3, kv_heads=3),
    "groups of eight": Case(heads=8, kv_heads=1),
    "groups of five": Case(heads=5, kv_heads=1),
    "a window": Case(window=20),
    "a soft cap": Case(softcap=2.0),
    "neighbours turn": Case(interleaved=1),
    "a part turns": Case(turned=16),
    "neighbours of a part turn": Case(turned=16, interleaved=1),
    "nothing turns": Case(turned=0),
    "norms": Case(norms=True),
    "sinks and a window": Case(sinks=True, window=7),
}


def _run(
    layer: ort.InferenceSession,
    past: dict[str, Array],
    tokens: dict[str, Array],
    spans: list[tuple[int, int, int]],
) -> tuple[Array, dict[str, Array]]:
    fed = {**tokens, **past, "spans": np.array(spans, np.int32).reshape(-1, 3)}
    attended, key, value = layer.run(None, fed)
    return attended, {"past_key": key, "past_value": value}


@pytest.mark.parametrize("name", CASES)
def test_attention_is_what_its_definition_says_however_it_is_cut(name: str) -> None:
    case = CASES[name]
    layer, tokens, count = case.session(), case.tokens(75), 75
    whole, slots = _run(layer, case.empty(), tokens, [(1, 0, count)])
    wanted = case.wanted(tokens)
    assert np.abs(whole - wanted).max() <= 2e-3 * np.abs(wanted).max()

    past, pieces = case.empty(), []
    for begin, end in ((0, 1), (1, 30), (30, 31), (31, 66), (66, 75)):
        piece = {key: value[begin:end] for key, value in tokens.items()}
        attended, past = _run(layer, past, piece, [(1, begin, end - begin)])
        pieces.append(attended)
    assert np.array_equal(np.concatenate(pieces), whole)
    assert all(np.array_equal(past[key], slots[key]) for key in slots)

    other = case.tokens(9, seed=5)
    both = {key: np.concatenate([other[key], tokens[key]]) for key in tokens}
    beside, _ = _run(layer, case.empty(), both, [(2, 0, 9), (0, 0, count)])
    assert np.array_equal(beside[9:], whole)


def test_slots_given_as_outputs_too_are_extended_in_place() -> None:
    case = Case()
    layer, tokens = case.session(), case.tokens(5)
    wanted, slots = _run(layer, case.empty(), tokens, [(0, 0, 5)])
    held = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in case.empty().items()}
    binding = layer.io_binding()
    for name, value in {**tokens, "spans": np.array([[0, 0, 5]], np.int32)}.items():
        binding.bind_cpu_input(name, value)
    for name, value in held.items():
        binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output(name.replace("past", "present"), value)
    binding.bind_output("attended")
    layer.run_with_iobinding(binding)
    assert all(np.array_equal(held[name].numpy(), slots[name]) for name in slots)
    assert np.array_equal(binding.copy_outputs_to_cpu()[-1], wanted)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([(3, 0, 2)], "sequence 0 is in slot 3 of 3"),
        ([(-1, 0, 2)], "sequence 0 is in slot -1 of 3"),
        ([(1, 0, 1), (1, 1, 1)], "two sequences are in slot 1"),
        ([(0, 95, 2)], "has 2 tokens behind 95"),
        ([(0, -1, 2)], "has 2 tokens behind -1"),
        ([(0, 2147483647, 2)], "has 2 tokens behind 2147483647"),
        ([(0, 0, 2), (1, 0, 0)], "has 0 tokens"),
        ([(0, 0, 1)], "spans have 1 tokens of 2"),
        ([], "spans have 0 tokens of 2"),
    ],
)
def test_spans_that_do_not_fit_are_refused(spans: list[tuple[int, int, int]], message: str) -> None:
    case = Case()
    with pytest.raises(InvalidArgument, match=message):
        _run(case.session(), case.empty(), case.tokens(2), spans)


@pytest.mark.parametrize("name", ["query", "key", "value", "past_key", "past_value"])
def test_tensors_of_another_shape_are_refused(name: str) -> None:
    case = Case()
    fed = {**case.tokens(2), **case.empty()}
    fed[name] = np.ascontiguousarray(fed[name][..., :-4])
    with pytest.raises(InvalidArgument):
        case.session().run(None, {**fed, "spans": np.array([[0, 0, 2]], np.int32)})

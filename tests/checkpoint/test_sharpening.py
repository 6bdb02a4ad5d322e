"""Queries grow with the position that their token has, however a step is put together.

So do marks of chunks, and layers that read others' keys find those of the same step.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
import pytest

from appliance.engine.cache_budget import CacheShape, token_bytes
from appliance.engine.native_pool import NativePool
from appliance.engine.native_runner import Graph, Step
from appliance.native import library
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.sharpening import (
    Sharpening,
    count,
    positions_from,
    positions_of_spans,
)
from installer.checkpoint.probe import open_graph
from installer.checkpoint.quantize import SCHEMES
from tests.checkpoint.byte_runner import OTHER_WAY, Bytes, distance
from tests.checkpoint.conftest import BuildBundle, Built
from tests.checkpoint.reference import ReferenceDecoder, RoundingReference, with_rounded_rows
from tests.checkpoint.runner import Floats, SlotRunner, relative_error

TOKENS = np.random.default_rng(31).integers(0, 480, 200).tolist()
Make = Callable[[GraphBuilder, ir.Value, ir.Value], ir.Value]


def computed(
    folder: Path, make: Make, ids: npt.NDArray[np.int64], other: npt.NDArray[Any]
) -> list[Any]:
    """The positions that `make` gives of the tokens and what says where they begin."""
    nothing: Any = None  # no weights are stored
    graph, axes = GraphBuilder(nothing, nothing, SCHEMES["fp32"]), ("a", "b")
    kind = ir.DataType.INT32 if other.dtype == np.int32 else ir.DataType.INT64
    tokens = graph.input("ids", ir.DataType.INT64, axes[: ids.ndim])
    positions = make(graph, tokens, graph.input("other", kind, ("c", "d")))
    graph.output(positions, "positions", axes[: ids.ndim], ir.DataType.INT64)
    graph.save(folder / "it.onnx", name="it")
    session = ort.InferenceSession(folder / "it.onnx", providers=["CPUExecutionProvider"])
    found: list[Any] = session.run(None, {"ids": ids, "other": other})[0].tolist()
    return found


def test_tokens_of_several_spans_have_the_positions_of_their_own(tmp_path: Path) -> None:
    spans = np.array([[3, 40, 2], [0, 0, 3], [1, 7, 1], [2, 5, 0], [4, 9, 2]], np.int32)
    found = computed(tmp_path, positions_of_spans, np.zeros(8, np.int64), spans)
    assert found == [40, 41, 0, 1, 2, 7, 9, 10]


def test_what_fills_a_row_up_has_a_position_that_there_is(tmp_path: Path) -> None:
    def make(graph: GraphBuilder, ids: ir.Value, starts: ir.Value) -> ir.Value:
        return positions_from(graph, count(graph, ids, 1), starts, 12)

    starts: npt.NDArray[np.int64] = np.array([[0], [10]])
    ids = np.full((2, 3), 7, np.int64)
    found = computed(tmp_path, make, ids, starts)
    assert found == [[0, 1, 2], [10, 11, 11]]


def test_factors_are_those_of_the_reference() -> None:
    (factors,) = Sharpening(16_384, 0.1).factors(3 * 16_384 + 1)
    at = factors[[0, 16_383, 16_384, 32_768, 49_152], 0]
    assert at.tolist() == pytest.approx([1, 1, 1.0693147, 1.1098612, 1.1386294])


@pytest.mark.parametrize("name", ["ministral3", "llama4"])
def test_prompts_of_different_lengths_may_be_filled_up_in_one_batch(
    built: BuildBundle, name: str
) -> None:
    model = built(name, "fp32")
    reference = ReferenceDecoder(model.checkpoint)
    prompts = [TOKENS[:90], TOKENS[90:130]]
    runner = SlotRunner(model.graph, model.spec, slots=2, capacity=128)
    runner.lengths = [90, 40]
    logits = runner.run(0, [prompts[0], [*prompts[1], *[0] * 50]], last_index=[89, 39])
    for got, prompt in zip(logits, prompts, strict=True):
        assert relative_error(got, reference.logits(prompt)[-1]) <= 1e-4


@pytest.mark.parametrize("name", ["ministral3", "llama4", "gemma4-small"])
def test_rows_of_several_tokens_from_different_places_are_the_references(
    built: BuildBundle, tmp_path: Path, name: str
) -> None:
    model = built(name, "w8a8")
    weights = with_rounded_rows(model.checkpoint, tmp_path / "rounded")
    reference = RoundingReference(weights, model.graph)
    runner = Bytes(model)
    prompts = [TOKENS[:95], TOKENS[95:130]]
    for slot, prompt in enumerate(prompts):
        runner.prefill(prompt, slot=slot)
    drafts = [TOKENS[140:143], TOKENS[150:151]]
    logits = runner.decode([95, 35], drafts)
    wanted = [
        reference.logits([*prompt, *draft])[len(prompt) :]
        for prompt, draft in zip(prompts, drafts, strict=True)
    ]
    assert distance(logits, np.concatenate(wanted)) <= OTHER_WAY


@pytest.mark.skipif(not library.supported(), reason="this processor lacks the operators")
def test_sequences_of_one_native_step_are_to_the_bit_what_they_are_alone(
    built: BuildBundle,
) -> None:
    model = built("ministral3", "w8a8")
    # Of sequence `span % 2`, from a token to another.
    spans = {0: (0, 70), 1: (0, 40), 2: (70, 75), 3: (40, 41)}
    texts = [TOKENS[:75], TOKENS[75:116]]

    def run(*steps: list[int]) -> dict[int, Floats]:
        graph = _native(model)
        found: dict[int, Floats] = {}
        for step in steps:
            made = Step()
            for span in step:
                start, end = spans[span]
                made.tokens += texts[span % 2][start:end]
                made.spans.append((span % 2, start, end - start))
                made.rows.append(len(made.tokens) - 1)
            logits: Floats = np.full((len(step), model.spec.vocab_size), np.nan, np.float32)
            graph.run(made, logits, ort.RunOptions())
            found |= dict(zip(step, logits, strict=True))
        return found

    alone, together = run([0], [1], [2], [3]), run([1, 0], [2, 3])
    for span, logits in alone.items():
        assert (together[span] == logits).all(), span


def _native(model: Built) -> Graph:
    variant = model.manifest.variant("native")
    assert variant is not None
    pool = NativePool(model.spec, CacheShape(2, 128, token_bytes(model.spec)))
    session = open_graph(model.bundle / variant.path, model.bundle / variant.weights_folder)
    return Graph(session, pool)

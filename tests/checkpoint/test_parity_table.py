"""Every family in every way it is run computes what the reference computes: the parity table.

The run prints it (table.py). Each cell is the largest relative error that was measured, of decoders
here, of models that see in tests/vision/test_parity.py, of embedders and rerankers in
test_encoder_parity.py and test_reranker_parity.py:

- prefill, chunked, ragged, prefix: the float32 graph against the reference, a prompt in one go, in
  pieces, decoding of rows of different lengths, and going on from a cached prefix in another slot.
- int8, int4: the quantized graph with plain activations against the reference on the same rounded
  weights, so that layout, zero points, blocks and shared tables are what is measured. What the
  8-bit activations of bundles change: test_quantized_parity.py.
- fp8: the same of 8-bit floats, and of tables in 16 bits.
- tower: the features of images of odd sizes.
- w8a8: the two graphs with an 8-bit cache against the reference with the same roundings of weights,
  activations, keys and values; in the Euclidean norm, since roundings may fall the other way.
- w4a8: the same of the graph of native operators over blocks of 4 bits.

To add a family: a module in tests/checkpoint/families whose `MODELS` give it a name and a function
that writes a tiny checkpoint; with `main=True` it has the cells of the rounded grades, and tests
of the graphs for CUDA and TensorRT and of the list of operators take it, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from appliance.native import library
from installer.checkpoint.graph import builder
from installer.checkpoint.quantize import Precision
from tests.checkpoint.byte_runner import OTHER_WAY, Bytes, Natively, distance
from tests.checkpoint.conftest import (
    BLIND,
    BYTES,
    DECODERS,
    NATIVE,
    RECURRENT,
    ROUNDED,
    BuildBundle,
    Built,
    build_unsigned,
)
from tests.checkpoint.reference import (
    ReferenceDecoder,
    RoundingReference,
    with_rounded_weights,
)
from tests.checkpoint.runner import Floats, SlotRunner, relative_error
from tests.checkpoint.table import PROPERTY, Cell
from tests.checkpoint.table import draw as draw_table

TOLERANCE = 1e-4
NATIVELY = 2 * OTHER_WAY
"""Native operators round queries, too, so more falls the other way: 0.021 was seen, and 0.017 in
w8a8. Tokens of which nothing does agree to the last bits of a float."""
TOKENS = np.random.default_rng(7).integers(0, 480, 200).tolist()


@dataclass(frozen=True, slots=True)
class Case:
    """A model, how its bundles are built, and room for what a measurement needs."""

    name: str
    built: BuildBundle
    folder: Path

    @property
    def floats(self) -> Built:
        return self.built(self.name, "fp32")

    def reference(self) -> ReferenceDecoder:
        return _reference(self.floats.checkpoint)


@lru_cache(1)
def _reference(checkpoint: Path) -> ReferenceDecoder:
    """Loaded once for the cells of a model that follow each other."""
    return ReferenceDecoder(checkpoint)


def prefill(case: Case) -> float:
    runner = SlotRunner(case.floats.graph, case.floats.spec, capacity=256)
    return relative_error(runner.prefill(0, TOKENS), case.reference().logits(TOKENS)[-1])


def chunked(case: Case) -> float:
    reference = case.reference()
    runner = SlotRunner(case.floats.graph, case.floats.spec, capacity=256)
    errors, end = [], 0
    for size in (1, 64, 7, 100, 28):
        logits = runner.prefill(0, TOKENS[end : end + size])
        end += size
        errors.append(relative_error(logits, reference.logits(TOKENS[:end])[-1]))
    assert end == len(TOKENS)
    return max(errors)


def ragged(case: Case) -> float:
    reference = case.reference()
    runner = SlotRunner(case.floats.graph, case.floats.spec, slots=4, capacity=128)
    prompts = [TOKENS[:5], TOKENS[5:70], TOKENS[70:71], TOKENS[80:110]]
    errors = []
    for slot, prompt in enumerate(prompts):
        runner.prefill(slot, prompt)
    for step in range(3):
        appended = [TOKENS[150 + 10 * step + slot] for slot in range(4)]
        prompts = [[*prompt, token] for prompt, token in zip(prompts, appended, strict=True)]
        errors += _errors(reference, prompts, runner.decode(appended))
    return max(errors)


def prefix(case: Case) -> float:
    runner = SlotRunner(case.floats.graph, case.floats.spec, slots=2, capacity=128)
    shared, tails = TOKENS[:70], (TOKENS[100:104], TOKENS[110:130])
    runner.prefill(0, shared)
    if case.name in RECURRENT:  # which cannot go back
        runner.copy(0, 1, len(shared))
    runner.prefill(0, tails[0])
    if case.name not in RECURRENT:
        runner.copy(0, 1, len(shared))
    logits = [runner.prefill(1, tails[1]), runner.decode([9, 8])[1]]
    prompt = [*shared, *tails[1]]
    return max(_errors(case.reference(), [prompt, [*prompt, 8]], logits))


def rounded(precision: Precision) -> Callable[[Case], float]:
    """Blocks of integers, with plain activations."""

    def measure(case: Case) -> float:
        weights = with_rounded_weights(case.floats.checkpoint, case.folder / "rounded", precision)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(builder, "INT8_ACTIVATIONS", 0)
            build_unsigned(case.floats.checkpoint, case.folder / "plain", precision=precision)
        plain = Built(case.floats.checkpoint, case.folder / "plain")
        # Experts in 8 bits have plain activations only where nothing is laid out for them.
        runner = SlotRunner(plain.graph, plain.spec, capacity=128, prepack=False)
        logits = runner.prefill(0, TOKENS[:120])
        return relative_error(logits, ReferenceDecoder(weights).logits(TOKENS[:120])[-1])

    return measure


def w8a8(case: Case) -> float:
    model = case.built(case.name, "w8a8")
    weights = with_rounded_weights(model.checkpoint, case.folder / "rounded", "w8a8")
    wanted = RoundingReference(weights, model.graph).logits(TOKENS[:120])
    runner = Bytes(model)
    got = runner.prefill(TOKENS[:100], rows=100)
    steps = [runner.decode([at], [[TOKENS[at]]]) for at in range(100, 120)]
    return distance(np.concatenate([got, *steps]), wanted)


def w4a8(case: Case) -> float:
    model = case.built(case.name, "w4a8")
    weights = with_rounded_weights(model.checkpoint, case.folder / "rounded", "w4a8")
    wanted = RoundingReference(weights, model.graph).logits(TOKENS[:120])
    runner = Natively(model)
    pieces = [range(100), *(range(at, at + 1) for at in range(100, 120))]
    got = [runner.run([TOKENS[at] for at in piece], start=piece.start) for piece in pieces]
    return distance(np.concatenate(got), wanted)


def _errors(
    reference: ReferenceDecoder, prompts: Sequence[Sequence[int]], logits: Sequence[Floats] | Floats
) -> list[float]:
    return [
        relative_error(got, reference.logits(prompt)[-1])
        for got, prompt in zip(logits, prompts, strict=True)
    ]


FLOAT_RUNS = {"prefill": prefill, "chunked": chunked, "ragged": ragged, "prefix": prefix}
BLOCK_RUNS = {"int8": rounded("int8"), "int4": rounded("int4")}
BYTE_RUNS = {"w8a8": w8a8}
NATIVE_RUNS = {"w4a8": w4a8}
DENSE_RUNS = {"fp8": rounded("fp8")}
CELLS = [(name, run) for name in DECODERS for run in FLOAT_RUNS]
CELLS += [(name, run) for name in ROUNDED for run in BLOCK_RUNS]
CELLS += [(name, run) for name in BYTES for run in BYTE_RUNS]
CELLS += [(name, run) for name in (*NATIVE, "qwen3-odd-widths") for run in DENSE_RUNS]
CELLS += [(name, run) for name in BLIND for run in BYTE_RUNS]
CELLS += [(name, run) for name in (*NATIVE, *BLIND) for run in NATIVE_RUNS if library.supported()]


@pytest.mark.parametrize(("name", "run"), CELLS)
def test_errors_stay_within_the_bound_of_the_run(
    built: BuildBundle,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
    name: str,
    run: str,
) -> None:
    measure = (FLOAT_RUNS | BLOCK_RUNS | BYTE_RUNS | DENSE_RUNS | NATIVE_RUNS)[run]
    bound = {**dict.fromkeys(BYTE_RUNS, _by_bytes(name)), "w4a8": NATIVELY}.get(run, TOLERANCE)
    error = measure(Case(name, built, tmp_path))
    record_property(PROPERTY, Cell(name, run, error, bound).as_property())
    assert error <= bound


def _by_bytes(name: str) -> float:
    """Muse Spark norms what an expert gives: one that is chosen the other way weighs as much as
    any, and some choices are so near that a sum in another order turns them. By the same weights
    0.029 was seen, and 0.0007."""
    return 2 * OTHER_WAY if name == "muse-spark" else OTHER_WAY


def test_the_table_has_a_row_for_each_model_and_a_mark_for_what_is_out_of_bounds() -> None:
    cells = [
        Cell("one", "prefill", 1e-6, 1e-4),
        Cell("another", "prefill", 3e-3, 1e-4),
        Cell("one", "w8a8", 4e-3, 2e-2),
        Cell("one", "prefill", 1e-7, 1e-4),
        Cell("tiny", "ragged", 1e-6, 1e-4, "rerankers"),
    ]
    recorded: list[tuple[str, object]] = [(PROPERTY, cell.as_property()) for cell in cells]
    lines = [line.split() for line in draw_table([("measured", "something else"), *recorded])]
    assert lines[:4] == [
        ["decoders", "prefill", "int8", "int4", "fp8", "w8a8", "w4a8"],
        ["at", "most", "1e-04", "-", "-", "-", "2e-02", "-"],
        ["another", "3.0e-03!", "-", "-", "-", "-", "-"],
        ["one", "1.0e-06", "-", "-", "-", "4.0e-03", "-"],
    ]
    assert lines[4][:2] == ["-", "int8:"], "a dash has its reason"
    assert ["tiny", "-", "1.0e-06", "-", "-", "-", "-", "-", "-"] in lines
    assert list(draw_table([("measured", "something else")])) == []

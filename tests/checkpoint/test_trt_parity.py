"""Graphs for TensorRT compute what the reference computes, run here on the CPU provider.

Two errors are kept apart. In 32 bits throughout, which is the same builder told another type, the
graph must equal the reference and the graph for the CPU but for the order of sums: positions,
mask, cache and weights are right. As shipped, in 16 bits, it must stay near.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from installer.checkpoint.graph.half import HalfBuilder
from installer.checkpoint.quantize import Precision
from tests.checkpoint.conftest import BLIND, EXPERTS, MAIN, WRITERS, Built, build_unsigned
from tests.checkpoint.reference import ReferenceDecoder, with_rounded_rows
from tests.checkpoint.runner import SlotRunner, relative_error
from tests.conftest import BuildOnce
from tests.fakes.checkpoints import write_llama, write_qwen2, write_qwen3

FULL, HALF = 1e-4, 2e-2
TOKENS = np.random.default_rng(9).integers(0, 480, 200).tolist()
PROMPTS = [TOKENS[:5], TOKENS[5:70], TOKENS[70:71], TOKENS[80:110]]
PIECES = (1, 64, 7, 100, 28)

SHAPES: dict[str, Callable[[Path], Path]] = {
    "one key head of 128, untied": lambda d: write_qwen3(
        d, seed=21, head_dim=128, kv_heads=1, tied=False
    ),
    "heads of 80": lambda d: write_qwen3(d, seed=22, head_dim=80, kv_heads=4, layers=1),
    "one key head of 96, tied": lambda d: write_llama(
        d, seed=23, hidden=96, head_dim=96, heads=3, kv_heads=1, tied=True
    ),
    "heads of 64": lambda d: write_qwen2(d, seed=24, hidden=128, heads=2, kv_heads=1),
}
EXACT = {**{name: WRITERS[name] for name in MAIN if name not in EXPERTS}, **SHAPES}
MODELS = EXACT | {name: WRITERS[name] for name in BLIND}
FAMILIES = ["qwen3", "qwen2", "llama"]
SOME = [*FAMILIES, "qwen3-odd-widths", *SHAPES]
ROUNDED = [*FAMILIES, "heads of 80", *BLIND]

Build = Callable[[str, Precision], Built]


@pytest.fixture
def half(build_once: BuildOnce) -> Build:
    """`half(name, precision)`: one of MODELS as it is shipped."""
    return _builds(build_once, "half")


@pytest.fixture
def full(build_once: BuildOnce, monkeypatch: pytest.MonkeyPatch) -> Build:
    """As `half`, but graphs that have 16 bits have 32."""
    monkeypatch.setattr(HalfBuilder, "dtype", ir.DataType.FLOAT)
    return _builds(build_once, "full")


def _builds(build_once: BuildOnce, width: str) -> Build:
    def build(name: str, precision: Precision) -> Built:
        def write(directory: Path) -> None:
            MODELS[name](directory / "checkpoint")
            build_unsigned(directory / "checkpoint", directory / "bundle", precision=precision)

        made = build_once(f"trt-{width}-{name}-{precision}", write)
        return Built(made / "checkpoint", made / "bundle")

    return build


def runner(model: Built, variant: str = "trt", *, slots: int = 1, capacity: int) -> SlotRunner:
    graph = model.manifest.variant(variant)
    assert graph is not None
    weights = model.bundle / graph.weights_folder
    return SlotRunner(
        model.bundle / graph.path, model.spec, slots=slots, capacity=capacity, weights=weights
    )


def check_prefill(model: Built, checkpoint: Path, tolerance: float) -> None:
    reference = ReferenceDecoder(checkpoint).logits(TOKENS)
    whole, chunked = runner(model, capacity=200), runner(model, capacity=256)
    assert relative_error(whole.prefill(0, TOKENS), reference[-1]) <= tolerance
    start = 0
    for size in PIECES:
        logits = chunked.prefill(0, TOKENS[start : start + size])
        start += size
        assert relative_error(logits, reference[start - 1]) <= tolerance
        assert chunked.greedy.tolist() == [logits.argmax()]


def check_decode(model: Built, checkpoint: Path, tolerance: float) -> None:
    reference = ReferenceDecoder(checkpoint)
    running = runner(model, slots=len(PROMPTS), capacity=128)
    prompts = PROMPTS
    for slot, prompt in enumerate(prompts):
        running.prefill(slot, prompt)
    for step in range(3):
        appended = [TOKENS[150 + 10 * step + slot] for slot in range(len(prompts))]
        prompts = [[*prompt, token] for prompt, token in zip(prompts, appended, strict=True)]
        logits = running.decode(appended)
        assert running.greedy.tolist() == logits.argmax(-1).tolist()
        for got, prompt in zip(logits, prompts, strict=True):
            assert relative_error(got, reference.logits(prompt)[-1]) <= tolerance


def check(model: Built, checkpoint: Path, tolerance: float) -> None:
    check_prefill(model, checkpoint, tolerance)
    check_decode(model, checkpoint, tolerance)


@pytest.mark.parametrize("name", EXACT)
def test_in_32_bits_it_equals_the_reference(full: Build, name: str) -> None:
    model = full(name, "fp32")
    check(model, model.checkpoint, FULL)


@pytest.mark.parametrize("name", ROUNDED)
def test_in_32_bits_it_equals_the_reference_on_rounded_weights(
    full: Build, tmp_path: Path, name: str
) -> None:
    model = full(name, "w8a8")
    rounded = with_rounded_rows(model.checkpoint, tmp_path / "rounded")
    check(model, rounded, FULL)


@pytest.mark.parametrize("name", SOME)
def test_as_shipped_it_stays_near_the_reference(half: Build, name: str) -> None:
    model = half(name, "fp32")
    check(model, model.checkpoint, HALF)


def test_a_grade_of_16_bits_stays_near_the_reference(half: Build) -> None:
    model = half("qwen2-fp16", "fp16")
    check(model, model.checkpoint, HALF)


@pytest.mark.parametrize("name", ROUNDED)
def test_as_shipped_it_stays_near_the_reference_on_rounded_weights(
    half: Build, tmp_path: Path, name: str
) -> None:
    model = half(name, "w8a8")
    rounded = with_rounded_rows(model.checkpoint, tmp_path / "rounded")
    check(model, rounded, HALF)


@pytest.mark.parametrize("name", FAMILIES)
def test_it_equals_the_graph_for_the_cpu(full: Build, name: str) -> None:
    model = full(name, "fp32")
    both = [runner(model, variant, slots=2, capacity=64) for variant in ("trt", "cpu")]
    for slot, pieces in enumerate(((TOKENS[:9], TOKENS[9:40]), (TOKENS[40:43],))):
        for piece in pieces:
            one, other = (running.prefill(slot, piece) for running in both)
            assert relative_error(one, other) <= FULL
    for step in range(5):
        together, apart = (running.decode(TOKENS[50 + step : 52 + step]) for running in both)
        assert relative_error(together, apart) <= FULL


@pytest.mark.parametrize("name", ["qwen3", "qwen2", "llama-3.1-rope"])
def test_in_32_bits_greedy_tokens_equal_the_reference(full: Build, name: str) -> None:
    model = full(name, "fp32")
    wanted = ReferenceDecoder(model.checkpoint).greedy(TOKENS[:20], 48)
    running = runner(model, capacity=96)
    running.prefill(0, TOKENS[:20])
    got: list[int] = []
    for _ in wanted:
        got += running.greedy.tolist()
        running.decode(got[-1:])
    assert got == wanted


@pytest.mark.parametrize("name", FAMILIES)
def test_as_shipped_nearly_all_choices_are_the_references(half: Build, name: str) -> None:
    model = half(name, "fp32")
    wanted = ReferenceDecoder(model.checkpoint).logits(TOKENS[:100]).argmax(-1).tolist()
    running = runner(model, capacity=128)
    got: list[int] = []
    for token in TOKENS[:100]:
        running.decode([token])
        got += running.greedy.tolist()
    assert sum(one == other for one, other in zip(got, wanted, strict=True)) >= 95


def test_any_rows_may_have_several_tokens(full: Build) -> None:
    model = full("qwen3", "fp32")
    reference = ReferenceDecoder(model.checkpoint)
    running = runner(model, slots=2, capacity=64)
    running.prefill(0, TOKENS[:30])
    running.prefill(1, TOKENS[30:37])
    running.lengths = [33, 10]
    drafts = [TOKENS[50:53], TOKENS[60:63]]
    logits = running.run(0, drafts, last_index=[1, 2])
    for row, prompt in zip(
        logits, ([*TOKENS[:30], *drafts[0][:2]], [*TOKENS[30:37], *drafts[1]]), strict=True
    ):
        assert relative_error(row, reference.logits(prompt)[-1]) <= FULL


def test_what_lies_beyond_a_sequence_does_not_matter(full: Build) -> None:
    # A slot is handed on as it is, and a piece of a prompt may be padded to its bucket.
    model = full("qwen3", "fp32")
    reference = ReferenceDecoder(model.checkpoint)
    clean, used = (runner(model, slots=2, capacity=c) for c in (48, 128))
    for slot in range(2):
        used.prefill(slot, TOKENS[:100])
    used.lengths = [0, 0]
    for running in (clean, used):
        running.lengths[1] = 32
        padded = [*TOKENS[100:120], *([7] * 12)]
        logits = running.run(1, [padded], last_index=[19])
        assert relative_error(logits[0], reference.logits(TOKENS[100:120])[-1]) <= FULL
        running.lengths = [0, 20]
        running.prefill(0, TOKENS[:3])
        got = running.decode([5, 6])
        for row, prompt in zip(got, ([*TOKENS[:3], 5], [*TOKENS[100:120], 6]), strict=True):
            assert relative_error(row, reference.logits(prompt)[-1]) <= FULL


def test_rows_that_idle_change_nothing_in_the_others(full: Build) -> None:
    # A batch is filled up to its bucket with rows that start at 0.
    model = full("qwen3", "fp32")
    reference = ReferenceDecoder(model.checkpoint)
    running = runner(model, slots=4, capacity=64)
    running.prefill(0, TOKENS[:30])
    running.prefill(2, TOKENS[30:37])
    running.lengths = [31, 1, 8, 1]
    logits = running.run(0, [[9], [0], [8], [0]], last_index=[0] * 4)
    for slot, prompt in ((0, [*TOKENS[:30], 9]), (2, [*TOKENS[30:37], 8])):
        assert relative_error(logits[slot], reference.logits(prompt)[-1]) <= FULL


def test_no_rows_may_be_asked_for(half: Build) -> None:
    model = half("qwen3", "w8a8")
    running, other = (runner(model, capacity=64) for _ in range(2))
    running.lengths = [20]
    assert running.run(0, [TOKENS[:20]], last_index=[]).shape == (0, model.spec.vocab_size)
    other.prefill(0, TOKENS[:20])
    assert (running.decode([3]) == other.decode([3])).all()

"""The golden prompt passes what computes as the processor does, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from appliance.bundle.files import MANIFEST_NAME
from appliance.bundle.manifest import decode
from appliance.bundle.specs import DecoderSpec
from appliance.compiler import golden
from appliance.errors import LayoutError, UnsupportedError
from installer.checkpoint import build_bundle
from installer.checkpoint.probe import open_graph
from installer.checkpoint.quantize import Precision
from tests.conftest import BuildOnce
from tests.fakes.checkpoints import write_qwen3

SPEC = DecoderSpec(layers=1, kv_heads=1, head_dim=8, vocab_size=300, context_length=4096)
GRADES: list[Precision] = ["fp32", "fp16", "fp8", "w8a8", "w4a8", "int8", "int4"]


@pytest.mark.parametrize("context", [2, 5, 8, 30, 4096])
def test_the_pieces_are_one_prompt_without_gaps(context: int) -> None:
    spec = DecoderSpec(layers=1, kv_heads=1, head_dim=8, vocab_size=300, context_length=context)
    pieces = golden.pieces(spec)
    assert pieces == golden.pieces(spec)
    ends = [piece.start + len(piece.ids) for piece in pieces]
    assert [piece.start for piece in pieces] == [0, *ends[:-1]]
    assert ends[-1] == min(context, 36)
    assert all(0 <= token < 300 for piece in pieces for token in piece.ids)
    assert all(1 <= piece.rows <= len(piece.ids) for piece in pieces)


def test_a_usual_prompt_is_cut_once_and_then_decoded_with_a_draft_at_the_end() -> None:
    pieces = golden.pieces(SPEC)
    assert [len(piece.ids) for piece in pieces] == [16, 16, 1, 1, 2]
    assert [piece.bound for piece in pieces] == [16, 32, *3 * [golden.CAPACITY]]


@pytest.mark.parametrize("width", [1, 2])
def test_steps_are_what_comes_behind_the_prompt(width: int) -> None:
    said = [token for piece in golden.pieces(SPEC)[2:] for token in piece.ids]
    steps = golden.steps(SPEC, width)
    assert [token for piece in steps for token in piece.ids] == said
    assert [piece.start for piece in steps] == list(range(32, 36, width))


@pytest.fixture(scope="module", params=GRADES)
def bundle(request: pytest.FixtureRequest, build_once: BuildOnce) -> Path:
    grade: Precision = request.param

    def build(directory: Path) -> None:
        source = write_qwen3(directory / "checkpoint")
        build_bundle(source, directory / "it", name="m", version="1", signer=None, precision=grade)

    return build_once(f"golden-{grade}", build) / "it"


def sessions(bundle: Path) -> tuple[ort.InferenceSession, ort.InferenceSession, DecoderSpec]:
    """For prompts and for decoding on the processor."""
    manifest = decode((bundle / MANIFEST_NAME).read_bytes())
    assert manifest.decoder is not None
    decoder = open_graph(bundle / manifest.graph.path)
    prompts = manifest.graph.prefill
    first = open_graph(bundle / prompts) if isinstance(prompts, str) else decoder
    return first, decoder, manifest.decoder


def half(bundle: Path) -> ort.InferenceSession:
    graph = decode((bundle / MANIFEST_NAME).read_bytes()).variant("cuda")
    assert graph is not None
    return open_graph(bundle / graph.path, bundle / graph.weights_folder)


def test_each_grade_is_within_its_bound(
    bundle: Path, record_property: Callable[[str, object], None]
) -> None:
    prompts, decoder, spec = sessions(bundle)
    grade = decode((bundle / MANIFEST_NAME).read_bytes()).graph.precision
    expected = golden.on_processor(prompts, decoder, spec)
    graph = half(bundle)
    measured = golden.on_device([graph], [graph], spec, [("cpu", 0)])
    compared = golden.compare(measured, expected, grade)
    record_property("measured", f"golden error, tiny qwen3 {grade}: {compared.error:.4f}")
    assert 0 < compared.error <= golden.BOUNDS[grade] / 2


def test_logits_of_other_positions_are_far_outside_every_bound(bundle: Path) -> None:
    prompts, decoder, spec = sessions(bundle)
    expected = golden.on_processor(prompts, decoder, spec)
    for bound in golden.BOUNDS:
        with pytest.raises(UnsupportedError, match="golden results differ") as caught:
            golden.compare(np.roll(expected, 1, axis=0), expected, bound)
        assert caught.value.code == "golden_differs"


def test_numbers_that_are_none_or_of_another_shape_are_refused() -> None:
    good = np.ones((3, 5), np.float32)
    with pytest.raises(UnsupportedError, match="finite"):
        golden.compare(np.full_like(good, np.nan), good, "fp32")
    with pytest.raises(UnsupportedError, match="shape"):
        golden.compare(good[:2], good, "fp32")


def test_logits_travel_as_a_file_that_holds_nothing_else(tmp_path: Path) -> None:
    logits = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
    golden.write(logits, tmp_path)
    assert np.array_equal(golden.read(tmp_path), logits)
    np.save(tmp_path / golden.NAME, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UnsupportedError, match="cannot be read"):
        golden.read(tmp_path)
    (tmp_path / golden.NAME).unlink()
    with pytest.raises(LayoutError):
        golden.read(tmp_path)

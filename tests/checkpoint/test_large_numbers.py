"""Graphs of 16-bit floats compute what outgrows 16 bits in the model itself.

They run here on the CPU provider, of checkpoints that are enlarged (enlarged.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from appliance.bundle.specs import Graph
from appliance.compiler.probe import empty_cache
from appliance.errors import CheckpointError
from installer.checkpoint.graph.half import HalfBuilder
from installer.checkpoint.quantize import Precision
from installer.checkpoint.widening import spell_out
from tests.checkpoint.conftest import EXPERTS, WRITERS, Built, build_unsigned
from tests.checkpoint.enlarged import (
    BEHIND_NORMS,
    BETWEEN_NORMS,
    FACTORS,
    LARGEST,
    SQUARES,
    UNNORMED,
    Peaks,
    enlarge,
)
from tests.checkpoint.reference import ReferenceDecoder, ReferenceEncoder
from tests.checkpoint.runner import SlotRunner, relative_error
from tests.checkpoint.test_encoder_parity import random_batch
from tests.checkpoint.test_experts import OF_A_KIND, middle, rows
from tests.checkpoint.test_half_parity import TOLERANCES
from tests.checkpoint.test_half_reader_parity import outputs
from tests.sweeps import rarely, sampled

MOST: Mapping[Precision, float] = {**TOLERANCES, "fp8": 0.2}
"""As of ordinary checkpoints; of all tokens' errors the middle one."""
TOKENS = np.random.default_rng(8).integers(0, 480, 60).tolist()
PLAIN = "qwen3-untied-bf16-sharded"
DENSE = ["llama", "qwen2", PLAIN, "mistral", "phi3", "phi4-mini", "mimo", "granite", "ministral3"]
DENSE += ["cohere2", "smollm3", "seed-oss", "qwen3.5", "falcon-h1", "gemma4", "gemma4-small"]
OTHERWISE = {"falcon-h1": UNNORMED, "afmoe": BETWEEN_NORMS}
OTHERWISE |= {
    "gemma4": BEHIND_NORMS,
    "gemma4-small": BEHIND_NORMS,
    "muse-glimmer": BEHIND_NORMS,
} | {name: SQUARES for name in EXPERTS if name.startswith("nemotron")}
"""Decoders whose numbers are made large by other factors."""
BOUNDED = "muse-spark"
"""Its stream keeps its size, whatever the weights are: what is let in is faded before."""
GRADES: list[tuple[str, Precision]] = [
    (name, "fp16") for name in [*DENSE, *EXPERTS] if name != BOUNDED
]
SOME = {*DENSE, *OF_A_KIND, "muse-glimmer"}
"""Of mixtures, whose feed-forwards differ little in this, one of each kind in every run."""
GRADES += [
    ("muse-glimmer", "w8a8"),
    (PLAIN, "w8a8"),
    (PLAIN, "int8"),
    (PLAIN, "int4"),
    (PLAIN, "fp8"),
    ("gpt-oss", "int8"),
]


@pytest.fixture
def enlarged(tmp_path: Path) -> Callable[[str], Path]:
    """`enlarged(name)`: one of WRITERS' checkpoints."""

    def write(name: str) -> Path:
        checkpoint = WRITERS[name](tmp_path / "checkpoint")
        return enlarge(checkpoint, OTHERWISE.get(name, FACTORS))

    return write


@pytest.mark.parametrize(("name", "precision"), sampled(GRADES, SOME))
def test_numbers_of_a_decoder_may_outgrow_16_bits(
    enlarged: Callable[[str], Path], tmp_path: Path, name: str, precision: Precision
) -> None:
    checkpoint = enlarged(name)
    build_unsigned(checkpoint, tmp_path / "bundle", precision=precision)
    model = Built(checkpoint, tmp_path / "bundle")
    reference = ReferenceDecoder(checkpoint)
    peaks = Peaks(reference.model)
    wanted = reference.logits(TOKENS)
    assert peaks.stream > 2 * LARGEST
    assert name in EXPERTS or peaks.product > 2 * LARGEST
    for graph in model.manifest.graphs:
        if graph.variant not in ("cuda", "trt"):
            continue
        weights = model.bundle / graph.weights_folder
        path, spec = model.bundle / graph.path, model.spec
        got = rows(SlotRunner(path, spec, capacity=64, weights=weights), TOKENS)
        assert middle(got, wanted) <= MOST[precision], graph.path
        assert infinite(model, graph) == []


def infinite(model: Built, graph: Graph) -> list[str]:
    """The operators that give numbers that are none. Each one's result is rounded to what it is
    said to be, which the runtime would leave out where the next widens it again."""
    made = onnx.load_model_from_string(spell_out((model.bundle / graph.path).read_bytes()))
    known = {output.name for output in made.graph.output}
    names = [name for node in made.graph.node for name in node.output if name not in known]
    made.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path",
        str(model.bundle / graph.weights_folder),
    )
    session = ort.InferenceSession(
        made.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    count, spec = len(TOKENS), model.spec
    feed = {
        "input_ids": np.array([TOKENS]),
        "seqlens_k": np.array([count - 1], np.int32),
        "total_sequence_length": np.array(count, np.int32),
        "starts": np.zeros(1, np.int64),
        "rows": np.arange(count),
    }
    taken = {one.name for one in session.get_inputs()}
    inputs = {name: array for name, array in feed.items() if name in taken}
    inputs |= empty_cache(session, spec, count)
    results = zip(session.get_outputs(), session.run(None, inputs), strict=True)
    return [one.name for one, value in results if not np.isfinite(value).all()]


@pytest.mark.parametrize(
    "name", ["qwen3-embedding", "qwen3-embedding-window", "mistral-embedding", "eurobert"]
)
def test_numbers_of_a_decoder_that_reads_may_outgrow_16_bits(
    enlarged: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    expect_outgrown(enlarged(name), tmp_path)


@pytest.mark.parametrize("name", ["embedding-gemma", "embedding-gemma2"])
def test_so_may_those_of_one_that_norms_what_it_adds(tmp_path: Path, name: str) -> None:
    checkpoint = WRITERS[name](tmp_path / "checkpoint")
    expect_outgrown(enlarge(checkpoint, BEHIND_NORMS), tmp_path)


def expect_outgrown(checkpoint: Path, tmp_path: Path) -> None:
    """The GPU's graphs of a checkpoint with large numbers give the reference's vectors."""
    build_unsigned(checkpoint, tmp_path / "bundle", precision="int8")
    model = Built(checkpoint, tmp_path / "bundle")
    encoder = model.manifest.encoder
    assert encoder is not None
    pooling, unit = encoder.pooling, encoder.normalize
    reference = ReferenceEncoder(checkpoint, pooling=pooling, normalize=unit)
    peaks = Peaks(reference.model)
    ids, mask = random_batch()
    wanted = reference.embed(ids, mask)
    assert min(peaks.stream, peaks.product) > 2 * LARGEST
    for graph in model.manifest.variants("cuda"):
        assert relative_error(outputs(model, graph, ids, mask), wanted) <= MOST["int8"]


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        *((name, "fp16") for name in ["llama", PLAIN, "cohere2", "qwen3-moe", "gpt-oss"]),
        ("qwen3-embedding", "int8"),
        *rarely(
            (name, "fp16")
            for name in [*DENSE, *EXPERTS]
            if name not in {"llama", PLAIN, "cohere2", "qwen3-moe", "gpt-oss"}
        ),
    ],
)
def test_as_they_are_they_do_not_fit_which_the_build_finds_out(
    enlarged: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    precision: Precision,
) -> None:
    monkeypatch.setattr(HalfBuilder, "shrink", 1.0)
    with pytest.raises(CheckpointError, match="not finite"):
        build_unsigned(enlarged(name), tmp_path / "bundle", precision=precision)

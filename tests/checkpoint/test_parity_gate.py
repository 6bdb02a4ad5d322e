"""A build is compared with the reference where it is installed, and says so; none that differs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from appliance.bundle.manifest import Manifest
from appliance.bundle.specs import Parity
from appliance.errors import CheckpointError
from installer.checkpoint import build_bundle, parity, parity_child
from installer.checkpoint.families import known, which_family
from installer.checkpoint.parity import BOUNDS, Mode
from installer.checkpoint.parity_weights import lay_out, plan_layout
from installer.checkpoint.quantize import Precision
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.shallow import cut
from installer.progress import Advance, NoProgress
from tests.checkpoint.families.gpt_oss import write_published
from tests.fakes.checkpoints import write_bert, write_qwen3
from tests.fakes.encoder_checkpoints import write_cross_encoder, write_qwen3_reranker
from tests.fakes.packers import Awq, Fp8, Gptq, ModeloptFourBits, Packer, write_packed
from tests.fakes.seeing_states import write_qwen3_5, write_qwen3_5_moe
from tests.fakes.vision_checkpoints import (
    write_qwen2_5_vl,
    write_qwen3_vl,
    write_qwen3_vl_moe,
)
from tests.sweeps import rarely

Writer = Callable[[Path], Path]
GPTQ = Gptq(bits=4, group=32, symmetric=True, shuffled=True)


def write_three_layers(directory: Path) -> Path:
    """Wide enough for groups, and with a layer that is not compared."""
    return write_qwen3(directory, hidden=128, intermediate=192, head_dim=32, layers=3, tied=False)


class Noted(NoProgress):
    """Progress that keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def step(self, title: str) -> None:
        self.said.append(title)

    def note(self, text: str) -> None:
        self.said.append(text)

    @contextmanager
    def bytes(self, title: str, total: int) -> Iterator[Advance]:
        yield lambda _count: None


def build(
    checkpoint: Path, out: Path, mode: Mode, precision: Precision | None = None
) -> tuple[Manifest, list[str]]:
    progress = Noted()
    manifest = build_bundle(
        checkpoint,
        out,
        name="tiny",
        version="1.0",
        precision=precision,
        signer=None,
        created=0,
        progress=progress,
        parity=mode,
    )
    return manifest, progress.said


def compared(manifest: Manifest) -> Parity:
    assert isinstance(manifest.parity, Parity)
    return manifest.parity


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More layers than are compared, over several shards."""
    directory = tmp_path_factory.mktemp("checkpoint") / "it"
    return write_qwen3(
        directory, seed=1, layers=4, tied=False, dtype="bfloat16", max_shard_bytes=60_000
    )


def test_the_first_layers_are_compared_in_floats_and_as_built(
    sharded: Path, tmp_path: Path
) -> None:
    manifest, said = build(sharded, tmp_path / "it", "required")
    result = compared(manifest)
    assert str(result.reference).startswith("transformers ")
    assert (result.layers, result.tokens) == (2, 160)
    assert (result.bound, result.grade_bound) == (BOUNDS["fp32"] * 1e9, BOUNDS["w8a8"] * 1e9)
    assert isinstance(result.error, int)
    assert isinstance(result.grade_error, int)
    assert 0 < result.error < 10_000 < result.grade_error < 150_000_000
    assert "comparing the first 2 layers with the reference" in said
    assert "first 2 layers: relative error" in str(result)
    weights = {entry.path: entry.sha256 for entry in manifest.files if "weights" in entry.path}
    without, _ = build(sharded, tmp_path / "that", "off")
    assert weights.items() <= {e.path: e.sha256 for e in without.files}.items()
    assert str(without.parity) == "not compared: switched off"


@pytest.mark.slow
def test_an_encoder_is_compared_by_its_embedding(tmp_path: Path) -> None:
    result = compared(build(write_bert(tmp_path / "c"), tmp_path / "it", "required", "fp32")[0])
    assert isinstance(result.error, int)
    assert result.error == result.grade_error
    assert result.error < 10_000


@pytest.mark.parametrize(
    "write",
    [
        write_cross_encoder,
        pytest.param(
            lambda d: write_cross_encoder(d, seed=9, family="xlm-roberta", sigmoid=False),
            marks=pytest.mark.slow,
        ),
        *rarely([write_qwen3_reranker]),
    ],
)
def test_a_reranker_is_compared_by_its_logits_also_at_a_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Writer
) -> None:
    monkeypatch.chdir(tmp_path)
    within_bounds(build(write(Path("checkpoint")), Path("bundles/it"), "required")[0])


@pytest.mark.parametrize(
    "write",
    [
        write_qwen3_vl,
        *rarely([write_qwen2_5_vl, write_qwen3_vl_moe, write_qwen3_5, write_qwen3_5_moe]),
    ],
)
def test_a_model_that_sees_is_compared_behind_an_image(tmp_path: Path, write: Writer) -> None:
    manifest, said = build(write(tmp_path / "c"), tmp_path / "it", "required")
    within_bounds(manifest)
    assert "comparing the first 2 layers with the reference" in said


def test_quantized_weights_are_laid_out_as_what_they_mean(tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    twin = write_packed(write_three_layers(tmp_path / "c"), packed, GPTQ)
    checkpoint = Checkpoint(packed)
    shallow = cut(checkpoint.config)
    assert shallow is not None
    layout = plan_layout(checkpoint.with_config(shallow.config), shallow)
    lay_out(checkpoint, shallow.config, layout, tmp_path / "out")
    got, wanted = (load_file(d / "model.safetensors") for d in (tmp_path / "out", twin))
    assert got.keys() == set(shallow.keeps(wanted))
    assert all(np.array_equal(values, wanted[name]) for name, values in got.items())
    assert layout.size == sum(values.nbytes for values in got.values())
    assert "quantization_config" not in Checkpoint(tmp_path / "out").config


@pytest.mark.slow
@pytest.mark.parametrize(
    "packer",
    [GPTQ, Awq(group=32), Fp8(), ModeloptFourBits()],
    ids=["gptq", "awq", "fp8", "nvfp4"],
)
def test_a_quantized_checkpoint_is_compared_with_what_it_means(
    tmp_path: Path, packer: Packer
) -> None:
    write_packed(write_three_layers(tmp_path / "c"), tmp_path / "packed", packer)
    manifest, _ = build(tmp_path / "packed", tmp_path / "it", "required", "int4")
    within_bounds(manifest)
    assert compared(manifest).unpacked_by == "builder"
    assert "weights unpacked by the builder" in str(manifest.parity)


@pytest.mark.slow
def test_the_reference_unpacks_4_bit_floats_itself(tmp_path: Path) -> None:
    manifest, _ = build(write_published(tmp_path / "c"), tmp_path / "it", "required", "int4")
    within_bounds(manifest)
    assert compared(manifest).unpacked_by == "reference"


def within_bounds(manifest: Manifest) -> None:
    """Sums in 32 bits differ by their order, and the grade by its rounding."""
    result = compared(manifest)
    assert isinstance(result.error, int)
    assert isinstance(result.grade_error, int)
    assert 0 < result.error < 20_000 < result.grade_error < 800_000_000


def test_a_graph_that_computes_something_else_is_never_built(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = known.FAMILIES["qwen3"]

    def misread(checkpoint: Any) -> Any:
        shape = family.read(checkpoint)
        return replace(shape, epsilon=shape.epsilon * 1000)

    misreading = {**known.FAMILIES, "qwen3": replace(family, read=misread)}
    monkeypatch.setattr(which_family, "FAMILIES", misreading)
    with pytest.raises(CheckpointError, match="differ from the reference in 32-bit") as caught:
        build(sharded, tmp_path / "it", "auto")
    assert caught.value.code == "parity_failed"
    assert not any(tmp_path.iterdir())


def test_weights_that_a_comparison_refused_are_there_for_a_better_one(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference may be at fault, too: it is found out after the weights were written."""
    with monkeypatch.context() as patch:
        patch.setitem(BOUNDS, "int8", 1e-9)
        with pytest.raises(CheckpointError, match="differ from the reference in int8") as caught:
            build(sharded, tmp_path / "it", "auto", "int8")
    assert "what is done is kept" in caught.value.hint
    _, said = build(sharded, tmp_path / "it", "off", "int8")
    assert "going on with the build that was stopped" in said


@pytest.mark.slow
def test_a_better_comparison_of_weights_that_were_kept_is_within_its_bounds(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(BOUNDS, "int8", 1e-9)
        with pytest.raises(CheckpointError):
            build(sharded, tmp_path / "it", "auto", "int8")
    within_bounds(build(sharded, tmp_path / "it", "auto", "int8")[0])


def test_without_the_reference_the_manifest_says_why_nothing_was_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity_child, "LIBRARIES", ("torch", "no_such_library"))
    checkpoint = write_bert(tmp_path / "checkpoint")
    manifest, said = build(checkpoint, tmp_path / "it", "auto")
    assert compared(manifest) == Parity(not_run="no_such_library is not installed")
    assert "not compared: no_such_library is not installed" in said
    with pytest.raises(CheckpointError, match="no_such_library") as caught:
        build(checkpoint, tmp_path / "that", "required")
    assert caught.value.code == "parity_not_run"
    assert not (tmp_path / "that").exists()


@pytest.mark.parametrize(
    ("constant", "value", "reason"),
    [
        ("_MEMORY_BASE", 50_000_000, "the reference (was not able to|ended)"),
        ("_MEMORY_SHARE", 0.0, "too little memory"),
        ("_SECONDS_BASE", -1, "took too long"),
    ],
)
def test_a_reference_beyond_its_limits_is_stopped_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, constant: str, value: float, reason: str
) -> None:
    monkeypatch.setattr(parity_child, constant, value)
    with pytest.raises(CheckpointError, match=reason):
        build(write_bert(tmp_path / "checkpoint"), tmp_path / "it", "required")


def test_the_reference_runs_no_code_of_the_checkpoint(tmp_path: Path) -> None:
    # It is told the architecture's class, from the library; a name that is not there is nothing.
    asked = {"architecture": "no_such_class", "memory": 4_000_000_000}
    with pytest.raises(parity_child.NotAskedError, match="has no no_such_class"):
        parity_child.answer(asked, tmp_path, 600.0)


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (0.0, 0),
        (1e-12, 1),
        (8.16e-7, 820),
        (1.2e-6, 1200),
        (0.4, 400_000_000),
        (0.0512, 52_000_000),
    ],
)
def test_an_error_is_rounded_upwards_to_two_digits(error: float, parts: int) -> None:
    assert parity._parts(error) == parts


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        ({"num_hidden_layers": 1}, 1),
        ({"num_hidden_layers": 40}, 2),
        ({"num_hidden_layers": 61, "first_k_dense_replace": 3}, 4),
        ({"num_hidden_layers": 54, "moe_layer_start_index": 3}, 4),
        ({"num_hidden_layers": 28, "moe_layer_interval": 4}, 4),
        ({"num_hidden_layers": 4, "layer_types": ["a", "a", "a", "b"]}, 4),
        ({"num_hidden_layers": 6, "layer_types": ["a", "b"] * 3}, 2),
        ({"num_hidden_layers": 26, "sliding_window_pattern": 6}, 6),
        ({"text_config": {"num_hidden_layers": 9}, "vision": {"depth": 3}}, 2),
        (
            {
                "text_config": {"num_hidden_layers": 9},
                "vision_config": {"deepstack_visual_indexes": [8, 16, 24]},
            },
            3,
        ),
        ({}, None),
        ({"num_hidden_layers": True}, None),
    ],
)
def test_every_kind_of_layer_is_among_the_first(
    config: dict[str, object], layers: int | None
) -> None:
    shallow = cut(config)
    assert (shallow and shallow.layers) == layers


def test_tensors_of_later_layers_are_left_out_and_others_kept() -> None:
    shallow = cut({"num_hidden_layers": 12, "layer_types": ["a"] * 12})
    assert shallow is not None
    assert shallow.config == {"num_hidden_layers": 2, "layer_types": ["a", "a"]}
    names = [
        *("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "lm_head.weight"),
        *("encoder.layer.1.output.dense.bias", "model.visual.layers.7.norm.weight"),
        *("model.vision_tower.layers.7.norm1.weight", "model.audio_tower.layers.3.norm.weight"),
    ]
    later = ["model.layers.2.mlp.up_proj.weight", "encoder.layer.11.output.dense.bias"]
    assert shallow.keeps([*names, *later]) == names

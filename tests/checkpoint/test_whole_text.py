"""Attention in both directions: windows in blocks, distances in buckets, dense layers behind it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

from appliance.bundle.specs import Parity
from installer.checkpoint import build_bundle
from installer.checkpoint.families.which_family import family_of
from installer.checkpoint.graph import relative
from installer.checkpoint.quantize import Precision
from installer.checkpoint.reader import Checkpoint
from tests.checkpoint.conftest import BuildBundle, Built, build_unsigned
from tests.checkpoint.opened import plain_session_of
from tests.checkpoint.reference import ReferenceEncoder
from tests.checkpoint.runner import relative_error
from tests.checkpoint.test_encoder_parity import TOLERANCE
from tests.conftest import FULL_VARIABLE
from tests.fakes.checkpoints import write_bert
from tests.fakes.newer_encoders import (
    add_dense,
    write_modernbert,
    write_modernbert_reranker,
    write_mpnet_reranker,
)
from tests.fakes.pooled_decoders import write_embedding_gemma, write_embedding_gemma2
from tests.fakes.rotary_encoders import write_nomic

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Record = Callable[[str, object], None]
TORCH = "torch.nn.modules"


def embed(model: Built, ids: Ints, mask: Ints) -> Floats:
    session = plain_session_of(model.graph)
    made: Floats = session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
    return made


def reference(model: Built) -> ReferenceEncoder:
    encoder = model.manifest.encoder
    assert encoder is not None
    return ReferenceEncoder(model.checkpoint, pooling=encoder.pooling, normalize=encoder.normalize)


@pytest.mark.parametrize(
    "name", ["modernbert", "modernbert-newer-words", "embedding-gemma", "embedding-gemma2"]
)
def test_windows_are_right_at_every_length(built: BuildBundle, name: str) -> None:
    # Below one block, at its edges, with two blocks and more, and where the last is not full.
    model = built(name, "fp32")
    wanted = reference(model)
    for length in [*range(1, 31), 127, 128]:
        ids = np.random.default_rng(length).integers(5, 200, (1, length))
        whole = np.ones_like(ids)
        assert relative_error(embed(model, ids, whole), wanted.embed(ids, whole)) <= TOLERANCE


@pytest.mark.parametrize("name", ["modernbert", "embedding-gemma", "embedding-gemma2"])
def test_padding_is_seen_by_no_window(built: BuildBundle, name: str) -> None:
    model, random = built(name, "fp32"), np.random.default_rng(2)
    ids = random.integers(5, 200, (16, 37))
    mask = (np.arange(37)[None] < np.arange(1, 38, 37 / 16)[:, None]).astype(np.int64)
    other = np.where(mask == 1, ids, random.integers(5, 200, ids.shape))
    assert relative_error(embed(model, ids, mask), embed(model, other, mask)) <= 1e-6
    assert relative_error(embed(model, ids, mask), reference(model).embed(ids, mask)) <= TOLERANCE


def test_a_window_that_no_text_fills_leaves_no_blocks(tmp_path: Path) -> None:
    checkpoint = write_modernbert(tmp_path / "checkpoint", window=1024)
    build_unsigned(checkpoint, tmp_path / "it", precision="fp32")
    model = Built(checkpoint, tmp_path / "it")
    ids = np.random.default_rng(1).integers(5, 200, (1, 128))
    whole = np.ones_like(ids)
    assert relative_error(embed(model, ids, whole), reference(model).embed(ids, whole)) <= TOLERANCE
    assert b"const.places" not in model.graph.read_bytes()


def test_what_a_token_takes_on_a_gpu_does_not_grow_with_the_text(tmp_path: Path) -> None:
    sizes = set()
    for context in (128, 8192):
        checkpoint = write_modernbert(tmp_path / str(context))
        config = json.loads((checkpoint / "config.json").read_text())
        config["max_position_embeddings"] = context
        (checkpoint / "config.json").write_text(json.dumps(config))
        spec = family_of(Checkpoint(checkpoint)).read(Checkpoint(checkpoint)).spec()
        sizes.add(spec.token_bytes)
    assert len(sizes) == 1


def test_distances_are_in_the_buckets_of_the_reference() -> None:
    distances = np.arange(-1000, 1001)
    wanted = MPNetEncoder.relative_position_bucket(torch.tensor(distances)).numpy()
    assert (relative.buckets(distances) == wanted).all()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "activation",
    [f"{TORCH}.linear.Identity"]
    + [f"{TORCH}.activation.{name}" for name in ("Tanh", "Sigmoid", "ReLU", "GELU")],
)
def test_dense_layers_are_those_of_the_publisher(
    tmp_path: Path, activation: str, bias: bool
) -> None:
    checkpoint = write_bert(tmp_path / "checkpoint")
    add_dense(checkpoint, [(96, activation), (40, activation)], bias=bias)
    manifest = build_unsigned(checkpoint, tmp_path / "it", precision="fp32")
    assert manifest.encoder is not None
    assert manifest.encoder.dimensions == 40
    model = Built(checkpoint, tmp_path / "it")
    ids = np.random.default_rng(1).integers(5, 200, (4, 12))
    mask = (np.arange(12)[None] < np.array([[12], [3], [7], [1]])).astype(np.int64)
    assert relative_error(embed(model, ids, mask), reference(model).embed(ids, mask)) <= TOLERANCE


def test_dense_layers_count_for_the_checkpoint_s_digest(tmp_path: Path) -> None:
    digests = set()
    for seed in (1, 2):
        checkpoint = write_bert(tmp_path / str(seed))
        add_dense(checkpoint, [(32, f"{TORCH}.activation.Tanh")], seed=seed)
        digests.add(build_unsigned(checkpoint, tmp_path / f"it-{seed}").checkpoint_sha256)
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("write", "layers"),
    [
        (write_embedding_gemma, 3),
        pytest.param(write_embedding_gemma2, 3, marks=pytest.mark.slow),
        pytest.param(write_modernbert_reranker, 2, marks=pytest.mark.slow),
        pytest.param(write_mpnet_reranker, 2, marks=pytest.mark.slow),
        pytest.param(partial(write_nomic, own_words=True), 2, marks=pytest.mark.slow),
    ],
)
def test_the_gate_compares_them_with_all_that_is_behind(
    tmp_path: Path, write: Callable[[Path], Path], layers: int
) -> None:
    checkpoint = write(tmp_path / "checkpoint")
    # A grade is compared beside the floats that it rounds.
    every: tuple[Precision, ...] = ("fp32", "int8")
    precisions = every if os.environ.get(FULL_VARIABLE) else every[1:]
    for precision in precisions:
        manifest = build_bundle(
            *(checkpoint, tmp_path / precision),
            name="m",
            version="1",
            signer=None,
            precision=precision,
            parity="required",
        )
        assert isinstance(manifest.parity, Parity)
        assert isinstance(manifest.parity.error, int)
        assert manifest.parity.layers == layers


def test_vectors_of_embeddinggemma_may_be_cut(tmp_path: Path) -> None:
    checkpoint = write_embedding_gemma(tmp_path / "checkpoint")
    identity = f"{TORCH}.linear.Identity"
    for folder in checkpoint.glob("?_Dense"):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    add_dense(checkpoint, [(256, identity)])
    encoder = build_unsigned(checkpoint, tmp_path / "it", precision="fp32").encoder
    assert encoder is not None
    assert (encoder.dimensions, encoder.min_dimensions) == (256, 128)


@pytest.mark.parametrize(("tokens", "window"), [(512, 128), (1000, 128)])
def test_published_windows_are_right_in_long_texts(
    tmp_path: Path, record_property: Record, tokens: int, window: int
) -> None:
    checkpoint = write_modernbert(tmp_path / "checkpoint", window=window)
    config = json.loads((checkpoint / "config.json").read_text())
    config["max_position_embeddings"] = 1024
    (checkpoint / "config.json").write_text(json.dumps(config))
    build_unsigned(checkpoint, tmp_path / "it", precision="fp32")
    model = Built(checkpoint, tmp_path / "it")
    ids = np.random.default_rng(tokens).integers(5, 200, (1, tokens))
    whole = np.ones_like(ids)
    error = relative_error(embed(model, ids, whole), reference(model).embed(ids, whole))
    record_property("measured", f"ModernBERT, {tokens} tokens, window {window}: {error:.1e}")
    assert error <= TOLERANCE

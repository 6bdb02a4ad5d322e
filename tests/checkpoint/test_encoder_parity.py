"""Encoder graphs give the reference implementation's embeddings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tokenizers import Tokenizer

from installer.checkpoint.graph import builder
from installer.checkpoint.quantize import Precision
from tests.checkpoint.conftest import NEWER_EMBEDDERS, BuildBundle, Built, build_unsigned
from tests.checkpoint.opened import plain_session_of
from tests.checkpoint.reference import ReferenceEncoder, with_rounded_weights
from tests.checkpoint.runner import relative_error
from tests.checkpoint.table import PROPERTY, Cell
from tests.conftest import BuildOnce

SENTENCES = [
    "Which model is active?",
    "How do I go back to the version that ran before?",
    "appliance keys revoke",
    "The quick brown fox jumps over the lazy dog, again and again, until the operator stops it.",
    "naïve café — 你好",
    "x",
    "Every request is written to the audit log before its first word is sent. " * 12,
    "SELECT name FROM keys WHERE revoked IS NULL ORDER BY created",
]
Ints = npt.NDArray[np.int64]
Record = Callable[[str, object], None]
TOLERANCE = 1e-4


@pytest.mark.parametrize(
    "name",
    [
        *("bert", "bert-cls-raw", "xlm-roberta", "roberta-cls"),
        *("qwen3-embedding", "qwen3-embedding-window", *NEWER_EMBEDDERS),
    ],
)
@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.999_99), ("int8", 0.99)])
def test_a_small_encoder_equals_the_reference(
    built: BuildBundle,
    name: str,
    precision: Precision,
    least: float,
    record_property: Record,
) -> None:
    model = built(name, precision)
    encoder = model.manifest.encoder
    assert encoder is not None
    reference = ReferenceEncoder(
        model.checkpoint, pooling=encoder.pooling, normalize=encoder.normalize
    )
    ids, mask = random_batch()
    ids = with_padding(name, ids, mask)
    got, wanted = _embed(model, ids, mask), reference.embed(ids, mask)
    if precision == "fp32":
        first = slice(0, int(mask[0].sum()))
        alone = relative_error(_embed(model, ids[:1, first], mask[:1, first]), wanted[:1])
        for run, error in (("prefill", alone), ("ragged", relative_error(got, wanted))):
            _record(record_property, name, run, error)
            assert error <= TOLERANCE
    assert _cosines(got, wanted).min() >= least
    lengths = np.linalg.norm(got, axis=1)
    assert np.allclose(lengths, np.linalg.norm(wanted, axis=1), rtol=0.02)


@pytest.mark.parametrize(
    "name",
    [
        *("xlm-roberta", "roberta-cls", "qwen3-embedding", "qwen3-embedding-window"),
        *NEWER_EMBEDDERS,
    ],
)
@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.999_99), ("int8", 0.999)])
def test_a_text_s_embedding_is_the_same_alone_and_in_a_mixed_batch(
    built: BuildBundle, name: str, precision: Precision, least: float
) -> None:
    model = built(name, precision)
    ids, mask = random_batch()
    together = _embed(model, ids, mask)
    for row, count in enumerate(mask.sum(1)):
        alone = _embed(model, ids[row : row + 1, :count], mask[row : row + 1, :count])
        assert _cosines(alone, together[row : row + 1]).min() >= least


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("xlm-roberta", ("position_emb", "token_type")),
        ("qwen3-embedding", ()),
        ("modernbert", ()),
        ("mpnet", ("position_emb", "relative")),
        ("embedding-gemma", ()),
        ("embedding-gemma2", ("embedding_projection",)),
        ("eurobert", ()),
        ("nomic", ("token_type",)),
        ("mistral-embedding", ()),
    ],
)
def test_rounded_weights_give_the_reference_embeddings(
    built: BuildBundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    kept: tuple[str, ...],
    record_property: Record,
) -> None:
    checkpoint = built(name, "fp32").checkpoint
    rounded = with_rounded_weights(checkpoint, tmp_path / "rounded", "int8", kept=kept)
    monkeypatch.setattr(builder, "INT8_ACTIVATIONS", 0)
    build_unsigned(checkpoint, tmp_path / "plain", precision="int8")
    plain = Built(checkpoint, tmp_path / "plain")
    encoder = plain.manifest.encoder
    assert encoder is not None
    ids, mask = random_batch()
    ids = with_padding(name, ids, mask)
    wanted = ReferenceEncoder(rounded, pooling=encoder.pooling).embed(ids, mask)
    error = relative_error(_embed(plain, ids, mask), wanted)
    _record(record_property, name, "int8", error)
    assert error <= TOLERANCE


@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.999_99), ("int8", 0.995)])
def test_minilm_equals_the_reference(
    minilm: Path,
    build_once: BuildOnce,
    precision: Precision,
    least: float,
    record_property: Record,
) -> None:
    model = built_minilm(minilm, build_once, precision)
    ids, mask = _tokenize(model)
    got, wanted = _embed(model, ids, mask), ReferenceEncoder(minilm).embed(ids, mask)
    assert _cosines(got, wanted).min() >= least
    if precision == "fp32":
        error = relative_error(got, wanted)
        _record(record_property, "all-MiniLM-L6-v2", "ragged", error)
        assert error <= TOLERANCE


def test_minilm_does_not_care_who_shares_its_batch(minilm: Path, build_once: BuildOnce) -> None:
    model = built_minilm(minilm, build_once, "int8")
    ids, mask = _tokenize(model)
    together = _embed(model, ids, mask)
    for row, (tokens, keep) in enumerate(zip(ids, mask, strict=True)):
        count = int(keep.sum())
        alone = _embed(model, tokens[None, :count], keep[None, :count])
        assert _cosines(alone, together[row : row + 1]).min() >= 0.999


def test_minilm_bundles_an_unpadded_tokenizer(minilm: Path, build_once: BuildOnce) -> None:
    model = built_minilm(minilm, build_once, "int8")
    published = Tokenizer.from_file(str(minilm / "tokenizer.json"))
    bundled = Tokenizer.from_file(str(model.bundle / model.manifest.tokenizer))
    assert published.padding is not None
    assert bundled.padding is None
    assert bundled.truncation is None
    assert (
        bundled.encode(SENTENCES[0]).ids
        == published.encode(SENTENCES[0]).ids[: len(bundled.encode(SENTENCES[0]).ids)]
    )


def _record(record: Record, name: str, run: str, error: float) -> None:
    record(PROPERTY, Cell(name, run, error, TOLERANCE, "embedders").as_property())


def built_minilm(minilm: Path, build_once: BuildOnce, precision: Precision) -> Built:
    def pack(directory: Path) -> None:
        build_unsigned(minilm, directory / "it", precision=precision)

    return Built(minilm, build_once(f"bundle-minilm-{precision}", pack) / "it")


def _embed(model: Built, ids: Ints, mask: Ints) -> npt.NDArray[np.float32]:
    session = plain_session_of(model.graph)
    embeddings: npt.NDArray[np.float32] = session.run(
        ["embeddings"], {"input_ids": ids, "attention_mask": mask}
    )[0]
    return embeddings


def _tokenize(model: Built) -> tuple[Ints, Ints]:
    encoder = model.manifest.encoder
    assert encoder is not None
    tokenizer: Any = Tokenizer.from_file(str(model.bundle / model.manifest.tokenizer))
    tokenizer.enable_truncation(encoder.max_length)
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(SENTENCES)
    return np.array([e.ids for e in encoded]), np.array([e.attention_mask for e in encoded])


def random_batch() -> tuple[Ints, Ints]:
    """Token ids and mask of eight texts of 3 to 40 tokens, padded at their right."""
    random = np.random.default_rng(3)
    ids = random.integers(5, 200, (8, 40))
    lengths = random.integers(3, 41, (8, 1))
    mask = (np.arange(40)[None] < lengths).astype(np.int64)
    return ids * mask, mask


def with_padding(name: str, ids: Ints, mask: Ints) -> Ints:
    """The same ids, with the padding by which the reference of some models tells it."""
    return ids + (1 - mask) if "roberta" in name or "mpnet" in name else ids


def _cosines(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines: npt.NDArray[np.float32] = (a * b).sum(1) / lengths
    return cosines

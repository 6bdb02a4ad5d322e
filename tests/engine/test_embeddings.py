"""Embeddings: equal to the reference, in any batch, in the order asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModel, AutoTokenizer

from appliance.config import EngineSettings
from appliance.engine.embedding_engine import (
    MOST_PADDING,
    Embedded,
    EmbeddingEngine,
    EmbeddingFailed,
    EmbeddingOutput,
    batches,
)
from appliance.engine.embedding_model import EmbeddingModel
from appliance.errors import CapacityError, RequestError
from tests.checkpoint.reference import ReferenceEncoder
from tests.engine.conftest import open_model_of

TEXTS = ["The appliance", "Which model is active?", "go " * 20, "Müller", "[SEP] typed", "a b c d"]


def embed(model: EmbeddingModel, texts: Sequence[str | Sequence[int]]) -> Any:
    model.engine.add(1, model.encode(texts))
    outputs: list[EmbeddingOutput] = []
    while model.engine.has_work:
        outputs += model.engine.step()
    (output,) = outputs
    assert isinstance(output.event, Embedded)
    return output.event.vectors


def last_states(checkpoint: Path, texts: Sequence[str]) -> Any:
    """The end token's state of each text, unit length, one by one, by the transformers library."""
    model: Any = AutoModel.from_pretrained(checkpoint, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
    rows = []
    for text in texts:
        given = tokenizer(text, return_tensors="pt")
        assert given["input_ids"][0, -1] == tokenizer.convert_tokens_to_ids("<|endoftext|>")
        with torch.no_grad():
            last = model(**given).last_hidden_state[0, -1]
        rows.append((last / last.norm()).numpy())
    return np.stack(rows)


def reference(checkpoint: Path, texts: Sequence[str]) -> Any:
    """Mean-pooled, unit-length, one text at a time, by the transformers library."""
    model: Any = AutoModel.from_pretrained(checkpoint, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
    rows = []
    for text in texts:
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        mean = hidden.mean(0)
        rows.append((mean / mean.norm()).numpy())
    return np.stack(rows)


def test_embeddings_equal_the_reference(embedding_model: EmbeddingModel, node_root: Path) -> None:
    texts = [text for text in TEXTS if "[SEP]" not in text]
    ours = embed(embedding_model, texts)
    np.testing.assert_allclose(ours, reference(node_root / "words", texts), atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)


def test_a_text_is_the_same_alone_and_in_a_batch(embedding_model: EmbeddingModel) -> None:
    together = embed(embedding_model, TEXTS)
    for row, text in zip(together, TEXTS, strict=True):
        np.testing.assert_allclose(embed(embedding_model, [text])[0], row, atol=2e-6)


def test_token_ids_are_taken_as_they_are(embedding_model: EmbeddingModel) -> None:
    (ids,) = embedding_model.encode(["The appliance"])
    np.testing.assert_array_equal(
        embed(embedding_model, [ids]), embed(embedding_model, ["The appliance"])
    )


def test_a_typed_control_token_stays_text(embedding_model: EmbeddingModel) -> None:
    (ids,) = embedding_model.encode(["[SEP]"])
    assert len(ids) > 3


@pytest.mark.parametrize(
    ("texts", "param", "code"),
    [
        ([], "input", "invalid_request"),
        (["fine", []], "input[1]", "invalid_request"),
        ([[10**6]], "input[0]", "invalid_request"),
        (["fine", "word " * 100], "input[1]", "context_length_exceeded"),
    ],
)
def test_a_bad_input_is_named(
    embedding_model: EmbeddingModel, texts: list[Any], param: str, code: str
) -> None:
    with pytest.raises(RequestError) as refused:
        embedding_model.encode(texts)
    assert (refused.value.param, refused.value.code) == (param, code)


def test_the_last_token_s_embeddings_equal_the_reference_in_mixed_batches(
    last_token_model: EmbeddingModel, node_root: Path
) -> None:
    texts = ["The appliance", "x", "Which model is active? " * 4, "Müller", "go " * 20]
    ours = embed(last_token_model, texts)
    np.testing.assert_allclose(ours, last_states(node_root / "last", texts), atol=1e-5)
    for row, text in zip(ours, texts, strict=True):
        np.testing.assert_allclose(embed(last_token_model, [text])[0], row, atol=1e-5)


@pytest.mark.parametrize("name", ["windows", "dense"])
def test_windows_and_dense_layers_are_served_as_the_reference_has_them(
    node_root: Path, name: str
) -> None:
    model = open_model_of(node_root, name, EngineSettings(threads=1))
    assert isinstance(model, EmbeddingModel)
    texts = [*TEXTS, "The appliance runs open models. " * 3]
    ids = model.encode(texts)
    wanted = ReferenceEncoder(node_root / name)
    rows = [wanted.embed(np.array([row]), np.ones((1, len(row)), np.int64))[0] for row in ids]
    np.testing.assert_allclose(embed(model, texts), np.stack(rows), atol=1e-5)


def test_a_typed_end_token_does_not_end_a_text(last_token_model: EmbeddingModel) -> None:
    (ids,) = last_token_model.encode(["a<|endoftext|>b"])
    end = last_token_model.tokenizer.id_of("<|endoftext|>")
    assert (ids.count(end), ids[-1]) == (1, end)


def test_a_vector_can_be_cut_where_the_model_was_trained_for_it(
    last_token_model: EmbeddingModel, embedding_model: EmbeddingModel
) -> None:
    whole = embed(last_token_model, ["The appliance", "go"])
    short = last_token_model.shortened(whole, 32)
    expected = whole[:, :32] / np.linalg.norm(whole[:, :32], axis=1, keepdims=True)
    np.testing.assert_allclose(short, expected, rtol=1e-6)
    assert last_token_model.shortened(whole, 0) is whole
    last_token_model.check_dimensions(32)
    embedding_model.check_dimensions(64)
    for model, dimensions in (
        (last_token_model, 31),
        (last_token_model, 65),
        (embedding_model, 32),
    ):
        with pytest.raises(RequestError) as refused:
            model.check_dimensions(dimensions)
        assert refused.value.param == "dimensions"


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 200))
def test_batches_hold_every_text_once_within_the_budget(lengths: list[int], budget: int) -> None:
    texts = [[0] * length for length in lengths]
    groups = batches(texts, budget)
    assert sorted(index for group in groups for index in group) == list(range(len(texts)))
    for group in groups:
        padded = len(group) * max(lengths[index] for index in group)
        assert len(group) == 1 or padded <= budget
        assert padded - sum(lengths[index] for index in group) <= MOST_PADDING * padded


class _Length:
    """An encoder whose vector is the text's length."""

    def run(self, batch: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        return np.array([[len(ids)] for ids in batch], np.float32)


def test_a_large_request_does_not_keep_a_small_one_waiting() -> None:
    engine = EmbeddingEngine(_Length(), token_budget=4, max_waiting=8)
    engine.add(1, [[0] * 4] * 50)
    engine.step()
    engine.add(2, [[0, 0], [0, 0]])
    ended = [output.call for _ in range(2) for output in engine.step()]
    assert ended == [2]


def test_a_cancelled_request_is_dropped_before_its_next_batch() -> None:
    engine = EmbeddingEngine(_Length(), token_budget=1, max_waiting=8)
    engine.add(1, [[0]] * 50)
    engine.step()
    engine.cancel(1)
    engine.cancel(7)
    assert engine.step() == [EmbeddingOutput(1, EmbeddingFailed(cancelled=True, tokens=1))]
    assert not engine.has_work


def test_a_full_queue_refuses() -> None:
    engine = EmbeddingEngine(_Length(), token_budget=1, max_waiting=1)
    engine.add(1, [[0]])
    engine.add(2, [[0]])
    with pytest.raises(CapacityError):
        engine.add(3, [[0]])

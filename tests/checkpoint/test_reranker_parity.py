"""Reranker graphs give the reference implementation's scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from appliance.bundle.specs import RerankSpec
from installer.checkpoint.graph import builder
from installer.checkpoint.quantize import Precision
from tests.checkpoint.conftest import NEWER_CROSS_ENCODERS, BuildBundle, Built, build_unsigned
from tests.checkpoint.opened import loaded, plain_session_of
from tests.checkpoint.reference import with_rounded_weights
from tests.checkpoint.runner import relative_error
from tests.checkpoint.table import PROPERTY, Cell
from tests.checkpoint.test_encoder_parity import random_batch, with_padding

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Record = Callable[[str, object], None]
TOLERANCE = 1e-4
CROSS_ENCODERS = ["cross-encoder", "cross-encoder-roberta", "cross-encoder-xlm-roberta-logits"]
CROSS_ENCODERS += NEWER_CROSS_ENCODERS
JUDGES = ["qwen3-reranker", "qwen3-reranker-untied"]


@pytest.mark.parametrize("name", [*CROSS_ENCODERS, *JUDGES])
@pytest.mark.parametrize(("precision", "most"), [("fp32", TOLERANCE), ("int8", 0.08)])
def test_scores_equal_the_reference_in_a_mixed_batch_and_alone(
    built: BuildBundle,
    name: str,
    precision: Precision,
    most: float,
    record_property: Record,
) -> None:
    model = built(name, precision)
    ids, mask, types = _batch(name)
    wanted = reference(name, model.checkpoint, ids, mask, types)
    assert np.ptp(wanted) > 0.05, "random weights must tell the pairs apart"
    together = run(model.graph, ids, mask, types)
    errors = {"ragged": relative_error(together, wanted)}
    for row, keep in enumerate(mask.sum(1)):
        alone = run(model.graph, *(part[row : row + 1, :keep] for part in (ids, mask, types)))
        assert relative_error(alone, together[row : row + 1]) <= (1e-4 if most < 0.01 else 0.01)
        if precision == "fp32":
            error = relative_error(alone, wanted[row : row + 1])
            errors["prefill"] = max(error, errors.get("prefill", 0.0))
    assert max(errors.values()) <= most
    if precision == "fp32":
        for way, error in errors.items():
            _record(record_property, name, way, error)


@pytest.mark.parametrize("name", ["cross-encoder", "qwen3-reranker"])
def test_rounded_weights_give_the_reference_scores(
    built: BuildBundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    record_property: Record,
) -> None:
    checkpoint = built(name, "fp32").checkpoint
    rounded = with_rounded_weights(
        checkpoint,
        tmp_path / "rounded",
        "int8",
        kept=("classifier.weight", "position_emb", "token_type"),
    )
    monkeypatch.setattr(builder, "INT8_ACTIVATIONS", 0)
    build_unsigned(checkpoint, tmp_path / "plain", precision="int8")
    model = Built(checkpoint, tmp_path / "plain")
    batch = _batch(name)
    # The generative one's two output rows are not rounded: it is the input table that is.
    wanted = reference(name, rounded, *batch, head=checkpoint)
    error = relative_error(run(model.graph, *batch), wanted)
    _record(record_property, name, "int8", error)
    assert error <= TOLERANCE


@pytest.mark.parametrize("name", [*CROSS_ENCODERS, *JUDGES])
def test_the_manifest_says_how_pairs_are_put_together(built: BuildBundle, name: str) -> None:
    manifest = built(name, "int8").manifest
    assert manifest.kind == "rerank"
    assert (manifest.decoder, manifest.encoder, manifest.prompting) == (None, None, None)
    spec = manifest.reranker
    assert isinstance(spec, RerankSpec)
    assert spec.max_length == (512 if name in JUDGES else 128)
    assert hasattr(spec.prompt, "instruction") == (name in JUDGES)


def _record(record: Record, name: str, run: str, error: float) -> None:
    record(PROPERTY, Cell(name, run, error, TOLERANCE, "rerankers").as_property())


def run(graph: Path, ids: Ints, mask: Ints, types: Ints) -> Floats:
    session = plain_session_of(graph)
    feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    wanted = {entry.name for entry in session.get_inputs()}
    scores: Floats = session.run(["scores"], {n: v for n, v in feed.items() if n in wanted})[0]
    return scores


def reference(
    name: str, checkpoint: Path, ids: Ints, mask: Ints, types: Ints, head: Path | None = None
) -> Floats:
    """Scores by the transformers library; a decoder's output table is that of `head`, if given."""
    given: dict[str, Any] = {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(mask),
    }
    with torch.inference_mode():
        if name in JUDGES:
            return _judged(checkpoint, head or checkpoint, given, mask)
        model = loaded(AutoModelForSequenceClassification, checkpoint)
        if name == "cross-encoder":
            given["token_type_ids"] = torch.tensor(types)
        logits = model(**given).logits[:, 0]
        scores: Floats = (logits if name.endswith("logits") else logits.sigmoid()).numpy()
    return scores


def _judged(checkpoint: Path, head: Path, given: dict[str, Any], mask: Ints) -> Floats:
    model = loaded(AutoModelForCausalLM, checkpoint)
    table = loaded(AutoModelForCausalLM, head).lm_head.weight
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    states = model.model(**given).last_hidden_state
    last = states[torch.arange(len(mask)), torch.tensor(mask.sum(1) - 1)]
    choice = [tokenizer.token_to_id(word) for word in ("no", "yes")]
    scores: Floats = (last @ table[choice].T).log_softmax(1)[:, 1].exp().numpy()
    return scores


def _batch(name: str) -> tuple[Ints, Ints, Ints]:
    """Pairs of different lengths, whose second halves are of the second type."""
    ids, mask = random_batch()
    ids = with_padding(name, ids, mask)
    halves = np.arange(ids.shape[1])[None] >= mask.sum(1, keepdims=True) // 2
    return ids, mask, halves * mask

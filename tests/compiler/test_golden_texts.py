"""The golden texts pass what reads as the processor does, and nothing else."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnxruntime as ort
import pytest

from appliance.bundle.specs import EncoderSpec, Reading, RerankSpec
from appliance.compiler import golden_texts
from appliance.compiler.probe import encoder_feed
from appliance.errors import UnsupportedError
from installer.checkpoint.probe import open_graph
from tests.compiler.conftest import stored

SPEC = EncoderSpec(
    dimensions=8, max_length=512, pooling="mean", normalize=True, vocab_size=300, token_bytes=9
)


@pytest.mark.parametrize("longest", [1, 7, 64, 512, 32_768])
def test_the_texts_are_the_same_each_time_and_within_the_model(longest: int) -> None:
    spec = msgspec.structs.replace(SPEC, max_length=longest)
    texts = golden_texts.batches(spec)
    for (ids, mask), (again, _) in zip(texts, golden_texts.batches(spec), strict=True):
        assert np.array_equal(ids, again)
        assert ids.shape == mask.shape
        assert ids.shape[1] <= longest
        assert 0 <= ids.min() <= ids.max() < 300
        assert not ids[mask == 0].any()
    together, alone = (mask for _, mask in texts)
    assert len(alone) == 1
    assert longest == 1 or (together == 0).any()


@pytest.fixture
def graph(encoder_bundle: Path) -> tuple[ort.InferenceSession, Reading]:
    """The encoder's graph for CUDA, on the processor."""
    manifest = stored(encoder_bundle).manifest
    variant = manifest.variant("cuda")
    assert variant is not None
    assert manifest.encoder is not None
    path = encoder_bundle / variant.path
    return open_graph(path, encoder_bundle / variant.weights_folder), manifest.encoder


def test_a_graph_that_looks_at_padding_is_far_outside_every_bound(
    graph: tuple[ort.InferenceSession, Reading],
) -> None:
    session, spec = graph
    right = golden_texts.outputs(session, spec)
    wrong = np.concatenate(
        [
            session.run(None, encoder_feed(session, ids, np.ones_like(mask)))[0]
            for ids, mask in golden_texts.batches(spec)
        ]
    )
    for grade in golden_texts.BOUNDS:
        assert golden_texts.compare(right, right, grade).error == 0
        with pytest.raises(UnsupportedError, match="golden results differ") as caught:
            golden_texts.compare(wrong, right, grade)
        assert caught.value.code == "golden_differs"


def test_a_text_that_the_graph_cannot_take_is_named(
    graph: tuple[ort.InferenceSession, Reading],
) -> None:
    session, spec = graph
    golden_texts.read_longest(session, spec)
    longer = msgspec.structs.replace(spec, max_length=4000)
    with pytest.raises(UnsupportedError, match="the longest text, 4000 tokens"):
        golden_texts.read_longest(session, longer)


def test_scores_are_compared_as_what_the_model_says() -> None:
    spec = RerankSpec(max_length=9, sigmoid=True, vocab_size=300, token_bytes=9)
    said = np.array([-60.0, -9.0, 0.0, 3.0, 40.0])
    taken_back = golden_texts.said(1 / (1 + np.exp(-said)).astype(np.float32), spec)
    assert taken_back.shape == (1, 5)
    assert np.allclose(taken_back[0, :4], said[:4], rtol=1e-4)
    assert np.isfinite(taken_back).all()
    plain = golden_texts.said(said, msgspec.structs.replace(spec, sigmoid=False))
    assert np.array_equal(plain, said[None])

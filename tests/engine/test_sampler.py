"""Sampling against the reference computation, and drawn frequencies against probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from appliance.engine.choosing import logprob
from appliance.engine.drawing import candidates
from appliance.engine.sampler import Sampler
from appliance.engine.sampling import SamplingParams

VOCAB = 2000


def logits(seed: int, scale: float = 3.0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=VOCAB).astype(np.float32) * np.float32(scale)


def reference(row: npt.NDArray[np.float32], params: SamplingParams, seen: list[int]) -> Any:
    """Probabilities as the transformers library filters them."""
    warpers: list[Any] = []
    if params.repetition_penalty != 1:
        warpers.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    warpers.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        warpers.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        warpers.append(MinPLogitsWarper(params.min_p))
    scores = torch.tensor(row, dtype=torch.float64)[None]
    filtered = LogitsProcessorList(warpers)(torch.LongTensor([seen]), scores)
    return torch.softmax(filtered, -1)[0].numpy()


def probabilities(row: npt.NDArray[np.float32], params: SamplingParams) -> Any:
    ids, weights = candidates(row, params)
    ids = np.arange(VOCAB) if ids is None else ids
    assert (np.diff(ids) > 0).all()
    dense = np.zeros(VOCAB)
    dense[ids] = weights / weights.sum()
    return dense


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scale", [0.1, 3.0])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.3),
        SamplingParams(temperature=2.0, top_k=7),
        SamplingParams(top_k=1),
        SamplingParams(top_k=5000),
        SamplingParams(top_p=0.9),
        SamplingParams(top_p=0.001),
        SamplingParams(temperature=0.7, top_p=0.95, top_k=40),
        SamplingParams(min_p=0.1),
        SamplingParams(temperature=1.3, min_p=0.02, top_p=0.8, top_k=100),
    ],
    ids=str,
)
def test_filters_equal_the_reference(params: SamplingParams, seed: int, scale: float) -> None:
    row = logits(seed, scale)
    np.testing.assert_allclose(
        probabilities(row, params), reference(row, params, [0]), rtol=1e-5, atol=1e-9
    )


def test_the_repetition_penalty_equals_the_reference() -> None:
    row, prompt = logits(1), [3, 5, 5, 1999]
    params = SamplingParams(repetition_penalty=1.7)
    edits = Sampler(params, prompt).choice().edits
    assert edits is not None
    edited = row.copy()
    edited[edits.ids] = edits.of(row[edits.ids])
    expected = reference(row, params, prompt)
    np.testing.assert_allclose(probabilities(edited, SamplingParams()), expected, rtol=1e-4)


def test_draws_have_the_frequencies_of_the_distribution() -> None:
    row = np.log(np.array([0.5, 0.25, 0.125, 0.1, 0.025], np.float32))
    sampler = Sampler(SamplingParams(seed=1), [0])
    draws = 20_000
    counts = np.bincount([sampler.sample(row).token_id for _ in range(draws)], minlength=5)
    expected = np.exp(row) * draws
    chi_square = float((((counts - expected) ** 2) / expected).sum())
    assert chi_square < 18.5, "the 0.999 quantile for four degrees of freedom"


def test_rounding_noise_does_not_change_a_seeded_choice() -> None:
    row = logits(2, scale=0.5)
    noise = np.random.default_rng(0).normal(size=VOCAB).astype(np.float32) * np.float32(1e-6)
    params = SamplingParams(seed=9)
    one, other = Sampler(params, [0]), Sampler(params, [0])
    same = [one.sample(row).token_id == other.sample(row + noise).token_id for _ in range(500)]
    assert sum(same) >= 499


def test_sequences_of_one_request_draw_different_numbers() -> None:
    row = logits(3, scale=0.5)
    params = SamplingParams(seed=9)
    draws = [
        [sampler.sample(row).token_id for _ in range(10)]
        for sampler in (Sampler(params, [0], index=0), Sampler(params, [0], index=1))
    ]
    assert draws[0] != draws[1]


def test_without_a_seed_runs_differ() -> None:
    row = logits(3, scale=0.5)
    draws = {tuple(s.sample(row).token_id for _ in range(10)) for s in (_fresh(), _fresh())}
    assert len(draws) == 2


def _fresh() -> Sampler:
    return Sampler(SamplingParams(), [0])


def test_presence_and_frequency_count_only_what_was_generated() -> None:
    row = np.zeros(4, np.float32)
    row[1], row[2] = 3, 2.9
    params = SamplingParams(temperature=0, presence_penalty=0.5, frequency_penalty=1.0)
    sampler = Sampler(params, [1, 1, 1, 1])
    assert [sampler.sample(row).token_id for _ in range(4)] == [1, 2, 1, 2]


def test_bias_forces_and_forbids() -> None:
    row = logits(4)
    best = int(row.argmax())
    assert Sampler(SamplingParams(temperature=0), [0]).sample(row).token_id == best
    forbid = SamplingParams(temperature=0, logit_bias={best: -100})
    assert Sampler(forbid, [0]).sample(row).token_id != best
    force = SamplingParams(seed=0, logit_bias={17: 100})
    assert Sampler(force, [0]).sample(row).token_id == 17


def test_min_tokens_hides_end_tokens_just_so_long() -> None:
    row = np.zeros(4, np.float32)
    row[2] = 9
    params = SamplingParams(temperature=0, min_tokens=3, end_ids=frozenset({2}))
    sampler = Sampler(params, [0])
    assert [sampler.sample(row).token_id == 2 for _ in range(5)] == [False] * 3 + [True] * 2


def test_logprobs_are_the_models_own_whatever_the_sampling() -> None:
    row = logits(5)
    expected = torch.log_softmax(torch.tensor(row, dtype=torch.float64), -1)
    params = SamplingParams(seed=1, temperature=0.2, top_k=3, logprobs=5, logit_bias={7: -50})
    sampled = Sampler(params, [0]).sample(row)
    assert sampled.logprob is not None
    assert sampled.logprob.logprob == pytest.approx(float(expected[sampled.token_id]))
    best = torch.topk(expected, 5)
    assert [i for i, _ in sampled.logprob.top] == best.indices.tolist()
    assert [p for _, p in sampled.logprob.top] == pytest.approx(best.values.tolist())
    assert logprob(row, 3, 0).top == ()


def test_sampling_leaves_the_logits_alone() -> None:
    row = logits(6)
    before = row.copy()
    Sampler(SamplingParams(seed=0, repetition_penalty=2, logit_bias={1: 5}), [0, 1]).sample(row)
    assert (row == before).all()


def only(*ids: int) -> npt.NDArray[np.bool_]:
    mask = np.zeros(VOCAB, np.bool_)
    mask[list(ids)] = True
    return mask


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0),
        SamplingParams(seed=0),
        SamplingParams(seed=0, top_k=3),
        SamplingParams(seed=0, top_p=0.1),
        SamplingParams(seed=0, min_p=0.9),
        SamplingParams(seed=0, repetition_penalty=1.5, logit_bias={1: 100}),
    ],
    ids=str,
)
def test_nothing_but_what_is_allowed_is_chosen(params: SamplingParams) -> None:
    row = logits(7)
    unlikely = [int(i) for i in np.argsort(row)[:5]]
    sampler = Sampler(params, [0])
    assert {sampler.sample(row, only(*unlikely)).token_id for _ in range(200)} <= set(unlikely)


def test_filters_count_among_what_is_allowed() -> None:
    row = logits(8)
    allowed = [3, 5, 8, 13, 21, 34]
    best = sorted(allowed, key=lambda i: -row[i])
    sampler = Sampler(SamplingParams(seed=1, top_k=2, temperature=5), [0])
    drawn = {sampler.sample(row, only(*allowed)).token_id for _ in range(200)}
    assert drawn == set(best[:2])
    greedy = Sampler(SamplingParams(temperature=0), [0])
    assert greedy.sample(row, only(*allowed)).token_id == best[0]


def test_a_mask_that_allows_all_changes_nothing() -> None:
    row = logits(9, scale=0.5)
    free, masked = (Sampler(SamplingParams(seed=4), [0]) for _ in range(2))
    everything = np.ones(VOCAB, np.bool_)
    for _ in range(50):
        assert free.sample(row).token_id == masked.sample(row, everything).token_id


def test_min_tokens_gives_way_where_only_the_end_is_allowed() -> None:
    params = SamplingParams(seed=0, min_tokens=5, end_ids=frozenset({2}))
    assert Sampler(params, [0]).sample(logits(10), only(2)).token_id == 2
    assert Sampler(params, [0]).sample(logits(10), only(2, 7)).token_id == 7

"""How a token is drawn from scores: where the mass lies, and that nothing without mass is drawn."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from appliance.engine.drawing import RUN, draw, kth_largest, place
from appliance.engine.sampling import SamplingParams


@given(st.integers(1, 40_000), st.integers(1, 300), st.integers(0, 2**32), st.booleans())
def test_thekth_largest_is_the_one_that_sorting_finds(
    count: int, k: int, seed: int, ties: bool
) -> None:
    values = np.random.default_rng(seed).normal(size=count).astype(np.float32)
    if ties:
        values = np.round(values)
    k = min(k, count)
    assert kth_largest(values, k) == np.sort(values)[-k]


@given(st.integers(1, 5_000), st.integers(0, 2**32), st.floats(0, 1, exclude_max=True))
def test_a_share_of_the_mass_lies_where_the_cumulative_sum_reaches_it(
    count: int, seed: int, share: float
) -> None:
    # Whole numbers: sums are exact in any order.
    weights = np.random.default_rng(seed).integers(1, 9, count).astype(np.float32)
    boundaries = np.cumsum(weights, dtype=np.float64)
    wanted = int(np.searchsorted(boundaries, share * boundaries[-1], side="right"))
    assert place(weights, share) == min(wanted, count - 1)


@given(
    st.integers(1, 3 * RUN),
    st.integers(0, 2**32),
    st.floats(0, 1, exclude_max=True),
    st.floats(0.001, 0.999),
)
@example(2 * RUN, 1, np.nextafter(1.0, 0), 0.999)
@example(RUN, 2, np.nextafter(1.0, 0), 0.5)
@example(3, 0, 0.0, 0.9)
def test_what_has_no_weight_is_never_drawn(
    count: int, seed: int, share: float, forbidden: float
) -> None:
    random = np.random.default_rng(seed)
    scores = random.normal(size=count).astype(np.float32) * 30
    hidden = random.random(count) < forbidden
    hidden[random.integers(count)] = False
    scores[hidden] = -np.inf
    assert np.isfinite(scores[draw(scores, SamplingParams(), share)])


@given(st.integers(2, 2_000), st.integers(0, 2**32), st.floats(0, 1, exclude_max=True))
def test_a_draw_does_not_change_with_what_was_drawn_before(
    count: int, seed: int, share: float
) -> None:
    random = np.random.default_rng(seed)
    scores, others = random.normal(size=(2, count)).astype(np.float32)
    params = SamplingParams(temperature=0.7, top_p=0.9, min_p=0.01)
    alone = draw(scores, params, share)
    draw(others, params, share)
    assert draw(scores, params, share) == alone

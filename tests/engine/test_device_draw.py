"""Draws on the device are those from the rows themselves, and fetch little of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.engine import draw_graphs
from appliance.engine.device import HostArray, HostDevice
from appliance.engine.device_draw import MOST_ROWS, DeviceDraw
from appliance.engine.device_logits import DeviceLogits
from appliance.engine.drawing import RUN, candidates, draw, run_sums, weigh
from appliance.engine.sampling import SamplingParams
from tests.engine.device import on_processor

MEMORY = 64 << 20
VOCAB = 3000
ROUNDING = 1e-5
"""Share of the mass by which sums in another order move a boundary."""

Rows = npt.NDArray[np.float32]


class CountingDevice(HostDevice):
    """Ordinary memory that counts what is fetched from it."""

    fetched = 0

    def read(self, address: int, array: HostArray) -> None:
        self.fetched += array.nbytes
        super().read(address, array)


class Held:
    """Rows of logits in a device's memory, those behind `gap` apart from the others."""

    def __init__(self, device: CountingDevice, rows: Rows, draws: DeviceDraw, gap: int = 0) -> None:
        self._device = device
        self._blocks = [device.allocate(max(1, part.nbytes)) for part in (rows[:gap], rows[gap:])]
        addresses = []
        for block, part in zip(self._blocks, (rows[:gap], rows[gap:]), strict=True):
            device.write(block, np.ascontiguousarray(part))
            addresses += [block + 4 * rows.shape[1] * row for row in range(len(part))]
        greedy = rows.argmax(1).tolist()
        self.logits = DeviceLogits(device, rows.shape[1], addresses, greedy, draws)

    def close(self) -> None:
        for block in self._blocks:
            self._device.release(block)


@pytest.fixture(scope="module")
def device() -> CountingDevice:
    return CountingDevice(MEMORY)


@pytest.fixture(scope="module")
def draws(device: CountingDevice) -> Iterator[DeviceDraw]:
    draws = DeviceDraw(device, VOCAB, on_processor)
    yield draws
    draws.close()
    assert device.free_bytes() == MEMORY


def random_rows(count: int, scale: float, *, seed: int = 0, ties: bool = False) -> Rows:
    rows = np.random.default_rng(seed).normal(size=(count, VOCAB)).astype(np.float32)
    rows *= np.float32(scale)
    return np.round(rows) if ties else rows


def shares_of(row: Rows, token: int, params: SamplingParams) -> tuple[float, float]:
    """Which shares of the mass draw `token`; none if it is no candidate."""
    ids, weights = candidates(row, params)
    ids = np.arange(len(row)) if ids is None else ids
    boundaries = np.cumsum(weights, dtype=np.float64) / weights.sum(dtype=np.float64)
    (at,) = np.flatnonzero(ids == token)
    return float(boundaries[at - 1]) if at else 0.0, float(boundaries[at])


requests = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.1, 0.7, 1.0, 2.0]),
    top_k=st.sampled_from([0, 0, 1, 5, 40, 255, 256, 1000]),
    top_p=st.sampled_from([1.0, 1.0, 0.1, 0.5, 0.95]),
    min_p=st.sampled_from([0.0, 0.0, 0.01, 0.3]),
)


@settings(deadline=None)
@given(
    params=st.lists(requests, min_size=1, max_size=4),
    share=st.floats(0, 1, exclude_max=True),
    scale=st.sampled_from([0.1, 2.0, 8.0]),
    seed=st.integers(0, 999),
    ties=st.booleans(),
)
def test_a_draw_is_that_from_the_row_itself(
    device: CountingDevice,
    draws: DeviceDraw,
    params: list[SamplingParams],
    share: float,
    scale: float,
    seed: int,
    ties: bool,
) -> None:
    rows = random_rows(len(params), scale, seed=seed, ties=ties)
    held = Held(device, rows, draws)
    try:
        held.logits.weigh(dict(enumerate(params)))
        for number, each in enumerate(params):
            token = held.logits.draw(number, each, share)
            least, most = shares_of(rows[number], token, each)
            assert least - ROUNDING <= share <= most + ROUNDING
    finally:
        held.close()


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.6),
        SamplingParams(top_p=0.9),
        SamplingParams(temperature=0.7, top_p=0.8, top_k=20),
        SamplingParams(min_p=0.05),
    ],
    ids=str,
)
def test_little_of_a_peaked_row_is_fetched(
    device: CountingDevice, draws: DeviceDraw, params: SamplingParams
) -> None:
    rows = random_rows(3, 8.0)
    held = Held(device, rows, draws)
    device.fetched = 0
    held.logits.weigh({0: params, 2: params})
    for number in (0, 2):
        assert held.logits.draw(number, params, 0.4) == draw(rows[number], params, 0.4)
    likeliest = 3 * draw_graphs.LIKELIEST * 12
    assert device.fetched <= 3 * 4 * (1 + draw_graphs.run_count(VOCAB)) + 2 * 4 * RUN + likeliest
    held.close()


def test_a_row_whose_likeliest_do_not_decide_is_fetched_whole(
    device: CountingDevice, draws: DeviceDraw
) -> None:
    rows = random_rows(1, 0.0)
    params = SamplingParams(top_p=0.9)
    held = Held(device, rows, draws)
    held.logits.weigh({0: params})
    device.fetched = 0
    assert held.logits.draw(0, params, 0.5) == draw(rows[0], params, 0.5)
    assert device.fetched == rows.nbytes
    held.close()


def test_rows_of_two_blocks_and_of_many_are_weighed_in_turns(
    device: CountingDevice, draws: DeviceDraw
) -> None:
    rows = random_rows(2 * MOST_ROWS + 5, 3.0)
    held = Held(device, rows, draws, gap=3)
    params = SamplingParams()
    held.logits.weigh(dict.fromkeys(range(1, len(rows)), params))
    for number in range(len(rows)):
        least, most = shares_of(rows[number], held.logits.draw(number, params, 0.37), params)
        assert least - ROUNDING <= 0.37 <= most + ROUNDING
    held.close()


@pytest.mark.parametrize("vocab", [1, 7, RUN - 1, RUN, RUN + 1, 2 * RUN, 2 * RUN + 1, 5000])
def test_the_graphs_give_the_runs_and_the_likeliest_of_any_vocabulary(vocab: int) -> None:
    rows = np.random.default_rng(vocab).normal(size=(3, vocab)).astype(np.float32)
    temperatures = np.array([[0.5], [1.0], [2.0]], np.float32)
    session = on_processor(draw_graphs.sums(vocab))
    highest, sums = session.run(None, {"logits": rows, "temperature": temperatures})
    assert sums.shape == (3, draw_graphs.run_count(vocab))
    for row, temperature, found in zip(rows, temperatures[:, 0], sums, strict=True):
        weights = weigh(row, row.max(), float(temperature), np.empty_like(row))
        np.testing.assert_allclose(found, run_sums(weights), rtol=1e-5)
    assert (highest[:, 0] == rows.max(1)).all()
    session = on_processor(draw_graphs.likeliest(vocab))
    values, ids = session.run(None, {"logits": rows})
    assert values.shape == (3, draw_graphs.likeliest_count(vocab))
    assert (np.sort(rows)[:, ::-1][:, : values.shape[1]] == values).all()
    assert (np.take_along_axis(rows, ids, 1) == values).all()

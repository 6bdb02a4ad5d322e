"""Choices on the device are those from the rows themselves, and fetch little of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.engine.choosing import Choice, Edits, HostRow
from appliance.engine.device import change as device_change
from appliance.engine.device import draw_graphs
from appliance.engine.device.change import MOST_ROWS
from appliance.engine.device.device import HostArray, HostDevice
from appliance.engine.device.draw import DeviceDraw
from appliance.engine.device.logits import DeviceLogits
from appliance.engine.drawing import RUN, candidates, draw, run_sums, weigh
from appliance.engine.grammar.constraint import Mask
from appliance.engine.sampler import Sampler
from appliance.engine.sampling import SamplingParams
from tests.engine.device.processor import on_processor

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


def drawn(held: Held, number: int, share: float) -> int:
    row = held.logits.row(number)
    assert row is not None
    return row.draw(share)


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
        held.logits.weigh({number: Choice(each) for number, each in enumerate(params)})
        for number, each in enumerate(params):
            token = drawn(held, number, share)
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
    held.logits.weigh({0: Choice(params), 2: Choice(params)})
    for number in (0, 2):
        assert drawn(held, number, 0.4) == draw(rows[number], params, 0.4)
    likeliest = 3 * draw_graphs.LIKELIEST * 12
    assert device.fetched <= 3 * 4 * (1 + draw_graphs.run_count(VOCAB)) + 2 * 4 * RUN + likeliest
    held.close()


def test_a_row_whose_likeliest_do_not_decide_is_fetched_whole(
    device: CountingDevice, draws: DeviceDraw
) -> None:
    rows = random_rows(1, 0.0)
    params = SamplingParams(top_p=0.9)
    held = Held(device, rows, draws)
    held.logits.weigh({0: Choice(params)})
    device.fetched = 0
    assert drawn(held, 0, 0.5) == draw(rows[0], params, 0.5)
    assert device.fetched == rows.nbytes
    held.close()


def test_rows_of_two_blocks_and_of_many_are_weighed_in_turns(
    device: CountingDevice, draws: DeviceDraw
) -> None:
    rows = random_rows(2 * MOST_ROWS + 5, 3.0)
    held = Held(device, rows, draws, gap=3)
    params = SamplingParams()
    held.logits.weigh(dict.fromkeys(range(1, len(rows)), Choice(params)))
    assert held.logits.row(0) is None, "nobody asked for it"
    for number in range(1, len(rows)):
        least, most = shares_of(rows[number], drawn(held, number, 0.37), params)
        assert least - ROUNDING <= 0.37 <= most + ROUNDING
    held.close()


def mask_of(how: str, random: np.random.Generator) -> Mask | None:
    """Of everything, of about half, of a few, or of one token; None is no mask."""
    share = {"half": 0.5, "few": 0.003}.get(how)
    if share is None:
        return None if how == "none" else np.full(VOCAB, how == "all")
    allowed = random.random(VOCAB) < share
    allowed[random.integers(VOCAB)] = True
    return allowed


samplers = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0, 0, 0.7, 1.0]),
    top_k=st.sampled_from([0, 0, 5, 1000]),
    top_p=st.sampled_from([1.0, 0.9]),
    min_p=st.sampled_from([0.0, 0.1]),
    presence_penalty=st.sampled_from([0, 0, 1, -1]),
    frequency_penalty=st.sampled_from([0, 0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3, 0.5]),
    logit_bias=st.dictionaries(
        st.integers(0, VOCAB - 1), st.sampled_from([-100, -1, 3]), max_size=4
    ),
    min_tokens=st.sampled_from([0, 0, 99]),
    end_ids=st.just(frozenset({7, 2999})),
    logprobs=st.sampled_from([None, None, 0, 5, 20]),
)


@settings(deadline=None)
@given(
    params=st.lists(samplers, min_size=1, max_size=4),
    masks=st.lists(st.sampled_from(["none", "all", "half", "few"]), min_size=4, max_size=4),
    seed=st.integers(0, 999),
    ties=st.booleans(),
)
def test_a_choice_on_the_device_is_that_from_the_row_itself(
    device: CountingDevice,
    draws: DeviceDraw,
    params: list[SamplingParams],
    masks: list[str],
    seed: int,
    ties: bool,
) -> None:
    random = np.random.default_rng(seed)
    rows = random_rows(len(params), 4.0, seed=seed, ties=ties)
    choices = []
    for each, how in zip(params, masks, strict=False):
        sampler = Sampler(each, random.integers(0, VOCAB, 20).tolist())
        for token in random.integers(0, 30, 6):
            sampler.take_forced(int(token), HostRow(rows[0], Choice(each)))
        choices.append(sampler.choice(mask_of(how, random)))
    held = Held(device, rows, draws)
    try:
        held.logits.weigh(dict(enumerate(choices)))
        for number, choice in enumerate(choices):
            there, here = held.logits.row(number), HostRow(rows[number], choice)
            assert there is not None
            if choice.params.greedy:
                token = there.best()
                assert token == here.best()
            else:
                token = there.draw(0.37)
                least, most = shares_of(scores_of(rows[number], choice), token, choice.params)
                assert least - ROUNDING <= 0.37 <= most + ROUNDING
            assert choice.allowed is None or choice.allowed[token]
            if choice.params.logprobs is not None:
                found, wanted = (
                    row.logprob(token, choice.params.logprobs) for row in (there, here)
                )
                assert found.logprob == pytest.approx(wanted.logprob, abs=1e-4)
                assert [i for i, _ in found.top] == [i for i, _ in wanted.top]
                assert [p for _, p in found.top] == pytest.approx(
                    [p for _, p in wanted.top], abs=1e-4
                )
    finally:
        held.close()


def scores_of(row: Rows, choice: Choice) -> Rows:
    """What a choice makes of a row."""
    scores = row.copy()
    if choice.edits is not None:
        scores[choice.edits.ids] = choice.edits.of(row[choice.edits.ids])
    if choice.allowed is not None:
        scores[~choice.allowed] = -np.inf
    return scores


@pytest.mark.parametrize(
    ("params", "most"),
    [
        (SamplingParams(temperature=0), 12),
        (SamplingParams(), 12 + 4 * (1 + 6 + RUN)),
        (SamplingParams(temperature=0, repetition_penalty=1.2), 12),
        (SamplingParams(temperature=0, logprobs=5), 12 + 4 * 8 + 12 * draw_graphs.LIKELIEST),
    ],
    ids=str,
)
def test_little_is_fetched_of_a_row_that_a_grammar_restricts(
    device: CountingDevice, draws: DeviceDraw, params: SamplingParams, most: int
) -> None:
    rows = random_rows(1, 4.0)
    choice = Sampler(params, [1, 2, 3]).choice(np.arange(VOCAB) % 3 == 0)
    held = Held(device, rows, draws)
    device.fetched = 0
    held.logits.weigh({0: choice})
    row = held.logits.row(0)
    assert row is not None
    token = row.best() if params.greedy else row.draw(0.5)
    if params.logprobs is not None:
        row.logprob(token, params.logprobs)
    assert token % 3 == 0
    assert device.fetched <= most < rows.nbytes
    held.close()


def test_a_row_with_more_edits_than_there_is_room_for_is_fetched(
    device: CountingDevice, draws: DeviceDraw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_change, "MOST_EDITS", 9)
    rows = random_rows(2, 4.0)
    params = SamplingParams(temperature=0, repetition_penalty=1.5)
    best = int(rows[1].argmax())
    choices = {
        0: Sampler(params, [*range(10)]).choice(),
        1: Sampler(params, [best]).choice(np.arange(VOCAB) != 3),
    }
    held = Held(device, rows, draws)
    device.fetched = 0
    held.logits.weigh(choices)
    for number, choice in choices.items():
        row = held.logits.row(number)
        assert row is not None
        assert row.best() == HostRow(rows[number], choice).best()
    assert rows[0].nbytes <= device.fetched < rows.nbytes
    held.close()


def test_rows_without_a_choice_stay_what_they_are(
    device: CountingDevice, draws: DeviceDraw
) -> None:
    rows = random_rows(3, 4.0)
    nothing = Choice(SamplingParams(temperature=0), allowed=np.arange(VOCAB) == 5)
    held = Held(device, rows, draws)
    held.logits.weigh({1: nothing})
    for number in (0, 2):
        assert (held.logits[number] == rows[number]).all()
    row = held.logits.row(1)
    assert row is not None
    assert row.best() == 5
    assert np.flatnonzero(np.isfinite(held.logits[1])).tolist() == [5]
    held.close()


@pytest.mark.parametrize("vocab", [1, 7, 8, 9, 300, 513])
def test_the_graph_that_changes_rows_does_as_a_choice_says(vocab: int) -> None:
    random = np.random.default_rng(vocab)
    row = random.normal(size=vocab).astype(np.float32)
    edits = Edits(
        np.array([0, vocab - 1][: min(2, vocab)], np.int64),
        np.array([1.5, 0.5][: min(2, vocab)], np.float32),
        np.array([-1.0, 2.0][: min(2, vocab)], np.float32),
    )
    allowed = random.random(vocab) < 0.5
    allowed[vocab // 2] = True
    choice = Choice(SamplingParams(), edits, allowed)
    session = on_processor(draw_graphs.changed(vocab))
    scores, highest, best = session.run(
        None,
        {
            "logits": row[None],
            "ids": edits.ids[None],
            "factors": edits.factors[None],
            "shifts": edits.shifts[None],
            "allowed": np.packbits(allowed, bitorder="little")[None],
        },
    )
    wanted = scores_of(row, choice)
    np.testing.assert_array_equal(scores[0], wanted)
    assert (highest[0, 0], best[0, 0]) == (wanted.max(), wanted.argmax())


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

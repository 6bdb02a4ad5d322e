"""Figures are those that one works out by hand from known times."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from installer.bench.figures import figures_of, histogram, percentile, spread
from installer.bench.recorder import Recorder
from installer.bench.workload import Level

TIMES = st.lists(st.floats(0, 1e6, allow_nan=False), min_size=1, max_size=60)
ONE = Level(concurrency=1)


def frame(document: object) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def piece(text: str = "x", **more: object) -> bytes:
    return frame({"choices": [{"index": 0, "delta": {"content": text}, **more}]})


def usage(prompt: int, completion: int, cached: int | None = None) -> bytes:
    counts: dict[str, object] = {"prompt_tokens": prompt, "completion_tokens": completion}
    if cached is not None:
        counts["prompt_tokens_details"] = {"cached_tokens": cached}
    return frame({"choices": [], "usage": counts})


def answered(begin: float, *, first: float, step: float, tokens: int, prompt: int = 10) -> Recorder:
    """A request due at `begin`: pieces at first, first + step, …; the end one step after."""
    recorder = Recorder(begin)
    recorder.feed(piece(""), begin + first / 2)
    for index in range(tokens):
        recorder.feed(piece(), begin + first + index * step)
    end = begin + first + tokens * step
    recorder.feed(usage(prompt, tokens) + b"data: [DONE]\n\n", end)
    recorder.close(end)
    return recorder


def test_one_request_has_the_figures_of_its_times() -> None:
    request = answered(5.0, first=0.5, step=0.1, tokens=11, prompt=100)
    figures = figures_of(ONE, [request], seconds=1.6, peak=1)
    assert figures.ttft is not None
    assert figures.ttft.p50 == pytest.approx(0.5)
    assert figures.gap is not None
    assert figures.gap.count == 10
    assert figures.gap.p99 == pytest.approx(0.1)
    assert figures.time_per_token is not None
    assert figures.time_per_token.p50 == pytest.approx(0.1)
    assert figures.stream_tokens_per_second == pytest.approx(10)
    assert figures.total is not None
    assert figures.total.p50 == pytest.approx(1.6)
    assert figures.output_tokens_per_second == pytest.approx(11 / 1.6)
    assert figures.requests_per_second == pytest.approx(1 / 1.6)
    assert figures.prefill_tokens_per_second == pytest.approx(100 / 0.5)
    assert figures.prompt_tokens is not None
    assert figures.prompt_tokens.total == 100


def test_tokens_are_those_of_the_usage_and_not_the_pieces() -> None:
    recorder = Recorder(0.0)
    recorder.feed(piece("three tokens here"), 1.0)
    recorder.feed(piece("and two"), 2.0)
    recorder.feed(usage(7, 5) + b"data: [DONE]\n\n", 2.0)
    recorder.close(2.0)
    figures = figures_of(ONE, [recorder], seconds=2.0, peak=1)
    assert figures.output_tokens_per_second == pytest.approx(2.5)
    assert figures.tokens_per_piece == pytest.approx(2.5)
    assert figures.time_per_token is not None
    assert figures.time_per_token.p50 == pytest.approx(1 / 4)


def test_without_usage_there_is_no_figure_in_tokens() -> None:
    recorder = Recorder(0.0)
    recorder.feed(piece() + piece(), 1.0)
    recorder.feed(b"data: [DONE]\n\n", 1.0)
    recorder.close(1.0)
    figures = figures_of(ONE, [recorder], seconds=1.0, peak=1)
    assert figures.requests == 1
    assert figures.output_tokens_per_second is None
    assert figures.stream_tokens_per_second is None
    assert figures.completion_tokens is None
    assert figures.ttft is not None


def test_if_some_answers_lack_usage_the_sum_is_not_known() -> None:
    with_usage = answered(0.0, first=1, step=1, tokens=3)
    without = Recorder(0.0)
    without.feed(piece() + b"data: [DONE]\n\n", 1.0)
    without.close(1.0)
    figures = figures_of(Level(concurrency=2), [with_usage, without], seconds=4.0, peak=2)
    assert figures.output_tokens_per_second is None


def test_failed_requests_are_counted_by_reason_and_are_in_no_figure() -> None:
    good = answered(0.0, first=1.0, step=0.5, tokens=3)
    broken = Recorder(0.0)
    broken.feed(piece() + piece(), 9.0)
    broken.close(9.0)
    refused = Recorder(0.0)
    refused.feed(frame({"error": {"message": "the cache\nis full"}}), 9.0)
    refused.close(9.0)
    figures = figures_of(Level(concurrency=3), [good, broken, refused], seconds=9.0, peak=3)
    assert (figures.requests, figures.failed) == (1, 2)
    assert figures.errors == {
        "the stream broke off": 1,
        "error in the stream: the cache is full": 1,
    }
    assert figures.ttft is not None
    assert (figures.ttft.count, figures.ttft.max) == (1, 1.0)
    assert figures.gap is not None
    assert figures.gap.count == 2
    assert figures.output_tokens_per_second == pytest.approx(3 / 9)


def test_the_role_alone_is_not_the_first_token_but_reasoning_and_tools_are() -> None:
    for delta in ({"reasoning_content": "hm"}, {"tool_calls": [{"index": 0}]}, {"reasoning": "hm"}):
        recorder = Recorder(0.0)
        recorder.feed(frame({"choices": [{"delta": {"role": "assistant", "content": ""}}]}), 1.0)
        recorder.feed(frame({"choices": [{"delta": delta}]}), 2.0)
        assert recorder.sample.ttft == 2.0


def test_an_answer_without_text_is_answered_and_silent() -> None:
    recorder = Recorder(0.0)
    recorder.feed(piece("", finish_reason="stop"), 1.0)
    recorder.close(1.0)
    figures = figures_of(ONE, [recorder], seconds=1.0, peak=1)
    assert (figures.requests, figures.silent, figures.ttft) == (1, 1, None)


def test_cached_tokens_are_added_up_and_not_part_of_the_prefill_rate() -> None:
    recorder = Recorder(0.0)
    recorder.feed(piece(), 2.0)
    recorder.feed(usage(100, 1, cached=60) + b"data: [DONE]\n\n", 2.0)
    recorder.close(2.0)
    figures = figures_of(ONE, [recorder], seconds=2.0, peak=1)
    assert figures.cached_tokens == 60
    assert figures.prefill_tokens_per_second == pytest.approx(20)


def test_a_level_without_any_request_has_no_figures() -> None:
    figures = figures_of(ONE, [], seconds=0.0, peak=0)
    assert (figures.requests, figures.failed, figures.ttft, figures.totals) == (0, 0, None, None)
    assert figures.output_tokens_per_second is None


@settings(deadline=None)
@given(TIMES, st.floats(0, 1))
def test_a_percentile_is_numpys(values: list[float], share: float) -> None:
    ordered = sorted(values)
    expected = float(np.quantile(np.array(ordered), share))
    assert percentile(ordered, share) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(TIMES)
def test_a_spread_is_ordered_and_within_its_values(values: list[float]) -> None:
    found = spread(values)
    assert found is not None
    assert min(values) <= found.p50 <= found.p90 <= found.p99 <= found.max == max(values)


@settings(deadline=None)
@given(TIMES)
def test_every_value_is_in_the_histogram_once(values: list[float]) -> None:
    found = histogram(values)
    assert found is not None
    assert sum(found.counts) == len(values)
    assert found.low == min(values)
    assert found.width >= 0

"""From samples to figures.

Owns what each figure means:
    time to first token    from the request's due time to the first piece of its answer
    gap                    between two pieces of one answer that follow each other
    time per token         (last piece - first piece) / (tokens - 1), one figure a request
    output tokens a second completion tokens of all answered requests / seconds of the level
    a stream's tokens      1 / time per token
Failed requests are in none of them; they are counted and named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from installer.bench.recorder import Recorder, Sample
from installer.bench.workload import Level

_FEWEST_BARS, _MOST_BARS = 8, 24


class Spread(msgspec.Struct, frozen=True):
    """How values are spread."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float


class Span(msgspec.Struct, frozen=True):
    """Smallest and largest of counted things, and their sum."""

    low: int
    high: int
    total: int


class Histogram(msgspec.Struct, frozen=True):
    """`counts[i]` values between `low + i * width` and one width more, in seconds."""

    low: float
    width: float
    counts: tuple[int, ...]


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One level's figures. Seconds and tokens; None where the server did not say enough."""

    level: Level
    requests: int
    """Answered completely."""
    failed: int
    errors: dict[str, int]
    """Reason -> how many requests failed with it."""
    silent: int
    """Answered completely, without any text."""
    seconds: float
    peak: int
    """Most requests that were on their way at once."""
    requests_per_second: float
    output_tokens_per_second: float | None
    stream_tokens_per_second: float | None
    """Median over the requests."""
    prefill_tokens_per_second: float | None
    """Prompt tokens that were not cached / time to first token, median; with one stream only,
    where no other request is in the way."""
    tokens_per_piece: float | None
    ttft: Spread | None
    gap: Spread | None
    time_per_token: Spread | None
    total: Spread | None
    prompt_tokens: Span | None
    completion_tokens: Span | None
    cached_tokens: int | None
    totals: Histogram | None
    """Of whole requests' seconds."""
    gaps: Histogram | None
    samples: tuple[Sample, ...]


def figures_of(
    level: Level, recorders: Sequence[Recorder], *, seconds: float, peak: int
) -> Figures:
    """The figures of one level, whose requests took `seconds` from the first to the last."""
    samples = [recorder.sample for recorder in recorders]
    good = [sample for sample in samples if not sample.error]
    errors = Counter(sample.error for sample in samples if sample.error)
    gaps = [gap for r in recorders if not r.sample.error for gap in r.gaps]
    prompts = _span(sample.prompt_tokens for sample in good)
    completions = _span(sample.completion_tokens for sample in good)
    per_token = [value for value in map(_time_per_token, good) if value is not None]
    totals = [sample.seconds for sample in good]
    cached = [sample.cached_tokens for sample in good if sample.cached_tokens is not None]
    return Figures(
        level=level,
        requests=len(good),
        failed=len(samples) - len(good),
        errors=dict(errors.most_common()),
        silent=sum(sample.ttft is None for sample in good),
        seconds=seconds,
        peak=peak,
        requests_per_second=_rate(len(good), seconds),
        output_tokens_per_second=_rate(completions.total, seconds) if completions else None,
        stream_tokens_per_second=_median([1 / value for value in per_token if value > 0]),
        prefill_tokens_per_second=_prefill(good) if level.concurrency == 1 else None,
        tokens_per_piece=_tokens_per_piece(good),
        ttft=spread([sample.ttft for sample in good if sample.ttft is not None]),
        gap=spread(gaps),
        time_per_token=spread(per_token),
        total=spread(totals),
        prompt_tokens=prompts,
        completion_tokens=completions,
        cached_tokens=sum(cached) if cached else None,
        totals=histogram(totals),
        gaps=histogram(gaps),
        samples=tuple(samples),
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` of the ascending, non-empty `ordered` lies.

    Between two values it is interpolated linearly (Hyndman and Fan 1996, definition 7).
    """
    position = (len(ordered) - 1) * share
    index = int(position)
    low, high = ordered[index], ordered[min(index + 1, len(ordered) - 1)]
    # Never outside of its neighbours, whatever rounding does.
    return min(max(low + (high - low) * (position - index), low), high)


def spread(values: Sequence[float]) -> Spread | None:
    """How `values` are spread; None if there are none."""
    if not values:
        return None
    ordered = sorted(values)
    return Spread(
        count=len(ordered),
        mean=sum(ordered) / len(ordered),
        p50=percentile(ordered, 0.5),
        p90=percentile(ordered, 0.9),
        p99=percentile(ordered, 0.99),
        max=ordered[-1],
    )


def histogram(values: Sequence[float]) -> Histogram | None:
    """`values` in equal steps from the smallest to the 99th percentile, more of them for more.

    What lies above is in the last bar: one straggler must not flatten the rest.
    """
    if not values:
        return None
    bars = min(max(len(values) // 2, _FEWEST_BARS), _MOST_BARS)
    ordered = sorted(values)
    low, high = ordered[0], percentile(ordered, 0.99)
    width = (high - low) / bars
    if width <= 0:
        return Histogram(low, 0.0, (len(ordered),))
    counts = [0] * bars
    for value in ordered:
        counts[min(int((value - low) / width), bars - 1)] += 1
    return Histogram(low, width, tuple(counts))


def _time_per_token(sample: Sample) -> float | None:
    tokens = sample.completion_tokens
    if tokens is None or tokens < 2 or sample.ttft is None or sample.last is None:
        return None
    return (sample.last - sample.ttft) / (tokens - 1)


def _prefill(samples: Sequence[Sample]) -> float | None:
    rates = [
        (sample.prompt_tokens - (sample.cached_tokens or 0)) / sample.ttft
        for sample in samples
        if sample.prompt_tokens is not None and sample.ttft
    ]
    return _median(rates)


def _tokens_per_piece(samples: Sequence[Sample]) -> float | None:
    known = [s for s in samples if s.completion_tokens is not None and s.pieces]
    if not known:
        return None
    return sum(s.completion_tokens or 0 for s in known) / sum(s.pieces for s in known)


def _span(counts: Iterable[int | None]) -> Span | None:
    """None as soon as one is not known: a sum over some would be taken for the whole."""
    values = list(counts)
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return Span(min(known), max(known), sum(known))


def _median(values: Sequence[float]) -> float | None:
    return percentile(sorted(values), 0.5) if values else None


def _rate(count: float, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0

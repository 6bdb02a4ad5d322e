"""The figures as rows of text, the same for the terminal and the page."""

from __future__ import annotations

from collections.abc import Sequence

from installer.bench.comparison import Comparison
from installer.bench.figures import Figures, Span, Spread
from installer.bench.picture import digits, duration
from installer.bench.report import Report

NONE = "-"
SPEED = ("load", "answered", "failed", "tokens in", "out", "tokens/s", "per stream", "requests/s")
TIMES = ("load", "first p50", "p90", "p99", "gap p50", "p90", "p99", "whole p50", "p99")
RATIOS = ("load", "tokens/s", "requests/s", "first p50", "gap p50", "whole p50")


def speed_rows(levels: Sequence[Figures]) -> list[tuple[str, ...]]:
    """One row a level, under `SPEED`."""
    return [
        (
            figures.level.label,
            str(figures.requests),
            str(figures.failed),
            _span(figures.prompt_tokens),
            _span(figures.completion_tokens),
            _number(figures.output_tokens_per_second),
            _number(figures.stream_tokens_per_second),
            digits(figures.requests_per_second),
        )
        for figures in levels
    ]


def time_rows(levels: Sequence[Figures]) -> list[tuple[str, ...]]:
    """One row a level, under `TIMES`."""
    return [
        (
            figures.level.label,
            *_spread(figures.ttft),
            *_spread(figures.gap),
            _time(figures.total, "p50"),
            _time(figures.total, "p99"),
        )
        for figures in levels
    ]


def remarks(report: Report) -> list[str]:
    """What stands below the tables, a line each."""
    lines = []
    for figures in report.levels:
        load = f"load {figures.level.label}"
        if figures.prefill_tokens_per_second is not None:
            rate = digits(figures.prefill_tokens_per_second)
            lines.append(f"prefill at {load}: {rate} prompt tokens/s")
        if figures.cached_tokens and figures.prompt_tokens is not None:
            of = figures.prompt_tokens.total
            lines.append(f"cached at {load}: {figures.cached_tokens} of {of} prompt tokens")
        lines += [f"failed at {load}: {n} x {reason}" for reason, n in figures.errors.items()]
    return [*lines, *(f"note: {note}" for note in report.notes)]


def ratio_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """One row for each level that both reports have, under `RATIOS`."""
    return [
        (
            ratios.load,
            _ratio(ratios.output_tokens_per_second),
            _ratio(ratios.requests_per_second),
            _ratio(ratios.ttft_p50),
            _ratio(ratios.gap_p50),
            _ratio(ratios.total_p50),
        )
        for ratios in comparison.levels
    ]


def _spread(spread: Spread | None) -> tuple[str, str, str]:
    return _time(spread, "p50"), _time(spread, "p90"), _time(spread, "p99")


def _time(spread: Spread | None, name: str) -> str:
    return duration(getattr(spread, name)) if spread is not None else NONE


def _number(value: float | None) -> str:
    return digits(value) if value is not None else NONE


def _ratio(value: float | None) -> str:
    return f"{value:.2f}x" if value is not None else NONE


def _span(span: Span | None) -> str:
    if span is None:
        return NONE
    return str(span.low) if span.low == span.high else f"{span.low}-{span.high}"

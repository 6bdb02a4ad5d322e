"""Charts of block characters, for a terminal or a mail.

Owns text only: no colour, no width beyond what it is told. Each function gives lines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from installer.bench.figures import Figures, Histogram

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_COLUMNS = " ▁▂▃▄▅▆▇█"
BAR_WIDTH = 40
HISTOGRAM_ROWS = 4


def bars(rows: Sequence[tuple[str, float, str]], *, width: int = BAR_WIDTH) -> list[str]:
    """A horizontal bar for each (label, value, text), to the scale of the largest value."""
    if not rows:
        return []
    largest = max(value for _, value, _ in rows)
    labels = max(len(label) for label, _, _ in rows)
    return [
        f"{label:>{labels}} {_bar(value / largest if largest else 0.0, width)} {text}"
        for label, value, text in rows
    ]


def histogram(values: Histogram, *, rows: int = HISTOGRAM_ROWS) -> list[str]:
    """Columns over an axis in milliseconds or seconds; any value at all shows as a mark."""
    highest = max(values.counts)
    eighths = [math.ceil(count / highest * rows * 8) for count in values.counts]
    lines = [
        "".join(_COLUMNS[min(max(column - row * 8, 0), 8)] for column in eighths).rstrip()
        for row in reversed(range(rows))
    ]
    high = values.low + values.width * len(values.counts)
    return [*lines, axis(values.low, high, len(values.counts))]


def axis(low: float, high: float, width: int) -> str:
    """Both ends of an axis in seconds, at least a space apart."""
    left, right = duration(low), duration(high)
    return left if left == right else f"{left}{right:>{max(width - len(left), len(right) + 1)}}"


def duration(seconds: float) -> str:
    """Three digits and a unit: `4.12 ms`, `132 ms`, `12.3 s`."""
    value, unit = (seconds * 1000, "ms") if seconds < 1 else (seconds, "s")
    return f"{digits(value)} {unit}"


def digits(value: float) -> str:
    """A number with about three significant digits."""
    magnitude = abs(value)
    if magnitude >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if magnitude >= 9.995 else f"{value:.2f}"


def pictures(levels: Sequence[Figures]) -> list[str]:
    """Throughput over load, then how long whole requests took at each level."""
    lines: list[str] = []
    rates = [(level, level.output_tokens_per_second) for level in levels]
    known = [(level, rate) for level, rate in rates if rate is not None and level.requests]
    if known:
        lines += ["output tokens/s over load", ""]
        lines += bars([(figures.level.label, rate, digits(rate)) for figures, rate in known])
    for figures in levels:
        if figures.totals is not None and figures.requests > 1:
            lines += ["", f"seconds of a whole request, load {figures.level.label}", ""]
            lines += histogram(figures.totals)
    return lines


def _bar(share: float, width: int) -> str:
    eighths = round(share * width * 8)
    if share > 0:
        eighths = max(eighths, 1)
    whole, rest = divmod(eighths, 8)
    return ("█" * whole + (_EIGHTHS[rest] if rest else "")).ljust(width)

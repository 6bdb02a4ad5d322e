"""Charts as SVG, drawn with classes that the page's style sheet colours.

Owns geometry only. Every chart has a title and a description for screen readers, its values
stand as text beside the marks, and nothing is loaded from anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from xml.sax.saxutils import escape

from installer.bench.figures import Histogram, Spread
from installer.bench.picture import digits, duration

WIDTH, HEIGHT = 460, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 18, 40
_INNER_WIDTH = WIDTH - _LEFT - _RIGHT
_INNER_HEIGHT = HEIGHT - _TOP - _BOTTOM
_TICKS = 4

Format = Callable[[float], str]


def bar_chart(title: str, axis: str, rows: Sequence[tuple[str, float]]) -> str:
    """One column for each (label, value)."""
    scale = _Scale(max(value for _, value in rows))
    marks = []
    for index, (label, value) in enumerate(rows):
        center, width = _place(index, len(rows))
        top = scale.y(value)
        marks.append(
            f'<rect class="bar" x="{_n(center - width / 2)}" y="{_n(top)}" width="{_n(width)}" '
            f'height="{_n(_TOP + _INNER_HEIGHT - top)}" rx="2"/>'
        )
        marks.append(_text(center, top - 5, digits(value), "value"))
        marks.append(_text(center, HEIGHT - 22, label, "label"))
    return _chart(title, axis, [*scale.lines(_plain), *marks])


def spread_chart(title: str, axis: str, rows: Sequence[tuple[str, Spread]]) -> str:
    """For each label a line from the median to the 99th percentile, with marks on it."""
    scale = _Scale(max(spread.p99 for _, spread in rows))
    marks = []
    for index, (label, spread) in enumerate(rows):
        center, _ = _place(index, len(rows))
        x, low, middle, high = _n(center), *map(scale.y, (spread.p50, spread.p90, spread.p99))
        marks.append(
            f'<line class="range" x1="{x}" x2="{x}" y1="{_n(low)}" y2="{_n(high)}"/>'
            f'<circle class="median" cx="{x}" cy="{_n(low)}" r="5"/>'
            f'<circle class="high" cx="{x}" cy="{_n(middle)}" r="3.5"/>'
            f'<line class="top" x1="{_n(center - 7)}" x2="{_n(center + 7)}" '
            f'y1="{_n(high)}" y2="{_n(high)}"/>'
        )
        marks.append(_text(center + 10, low + 4, duration(spread.p50), "value start"))
        marks.append(_text(center, HEIGHT - 22, label, "label"))
    return _chart(title, axis, [*scale.lines(duration), *marks])


def histogram_chart(title: str, values: Histogram) -> str:
    """Columns of counts over seconds."""
    scale = _Scale(max(values.counts), least_step=1.0)
    width = _INNER_WIDTH / len(values.counts)
    marks = []
    for index, count in enumerate(values.counts):
        top = scale.y(count)
        marks.append(
            f'<rect class="bar" x="{_n(_LEFT + index * width + 0.5)}" y="{_n(top)}" '
            f'width="{_n(max(width - 1, 1))}" height="{_n(_TOP + _INNER_HEIGHT - top)}"/>'
        )
    high = values.low + values.width * len(values.counts)
    marks.append(_text(_LEFT, HEIGHT - 22, duration(values.low), "label start"))
    if high > values.low:
        marks.append(_text(WIDTH - _RIGHT, HEIGHT - 22, duration(high), "label end"))
    return _chart(title, "requests over seconds of a whole request", [*scale.lines(_plain), *marks])


class _Scale:
    """Values from 0 to a round number above `largest`, upwards."""

    def __init__(self, largest: float, *, least_step: float = 0.0) -> None:
        self.step = max(_round_step(largest / _TICKS), least_step)
        self.most = self.step * math.ceil(largest / self.step) if largest > 0 else self.step

    def y(self, value: float) -> float:
        return _TOP + _INNER_HEIGHT * (1 - value / self.most)

    def lines(self, words: Format) -> list[str]:
        """The grid with its numbers."""
        count = round(self.most / self.step)
        lines = []
        for value in (self.step * index for index in range(count + 1)):
            y = _n(self.y(value))
            lines.append(
                f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>'
            )
            text = words(value) if value else "0"
            lines.append(_text(_LEFT - 6, self.y(value) + 4, text, "label end"))
        return lines


def _round_step(least: float) -> float:
    """1, 2 or 5 times a power of ten, at least `least`."""
    if least <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * 0.999)


def _place(index: int, count: int) -> tuple[float, float]:
    """Centre and width of a column."""
    step = _INNER_WIDTH / count
    return _LEFT + step * (index + 0.5), min(step * 0.6, 56)


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{_n(x)}" y="{_n(y)}">{escape(text)}</text>'


def _chart(title: str, axis: str, marks: Sequence[str]) -> str:
    label = _text(_LEFT + _INNER_WIDTH / 2, HEIGHT - 5, axis, "axis")
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{escape(title)}</title><desc>{escape(axis)}</desc>"
        f"{''.join(marks)}{label}</svg></figure>"
    )


def _plain(value: float) -> str:
    return f"{value:,.10g}"


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")

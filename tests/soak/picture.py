"""What the daemons held over the time of a soak, drawn as one SVG that needs nothing else.

A line for each daemon, broken where a process began anew, and a mark for each fault.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from xml.sax.saxutils import escape

from tests.soak.soak import Outcome
from tests.soak.watch import Sample

_WIDTH, _LEFT, _RIGHT = 960, 56, 16
_POINTS = 700
"""Of a line, at most."""
_PANEL, _TOP, _GAP = 190, 34, 46
_COLOURS = {"engine": "#2463c9", "shim": "#c2571a"}
_NAMES = {"engine": "engine", "shim": "endpoint"}
_STYLE = """
svg { background: #fff; font: 12px system-ui, sans-serif; }
text { fill: #1d2430; } .soft { fill: #5c6675; font-size: 11px; }
.grid { stroke: #dfe3e8; } .strike { stroke: #98a3b3; stroke-dasharray: 2 3; }
.line { fill: none; stroke-width: 1.4; }
"""
_PANELS: Sequence[tuple[str, Callable[[Sample], float]]] = (
    ("memory that is not a file's, MiB", lambda sample: sample.anonymous),
    ("memory resident, MiB", lambda sample: sample.resident),
    ("descriptors", lambda sample: float(sample.descriptors)),
)


def draw(outcome: Outcome) -> str:
    """The picture."""
    last = max(s.at for samples in outcome.samples.values() for s in samples)
    height = _TOP + len(_PANELS) * (_PANEL + _GAP) + 10
    parts = [_legend(outcome)]
    for number, (title, of) in enumerate(_PANELS):
        top = _TOP + number * (_PANEL + _GAP)
        parts += _panel(outcome, title, of, top, last)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">'
        f"<title>What the daemons held</title><style>{_STYLE}</style>"
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _panel(
    outcome: Outcome, title: str, of: Callable[[Sample], float], top: float, last: float
) -> list[str]:
    values = sorted(of(s) for samples in outcome.samples.values() for s in samples)
    most = values[int(0.98 * (len(values) - 1))] * 1.1
    step = _round(most / 4)
    scale = step * (int(most / step) + 1)

    def x(at: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * at / last

    def y(value: float) -> float:
        return top + _PANEL * (1 - min(value, scale) / scale)

    if values[-1] > scale:
        title += f"; peaks up to {values[-1]:.0f} are cut off"
    parts = [_text(_LEFT, top - 6, title)]
    for number in range(int(scale / step) + 1):
        at = y(number * step)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        )
        parts.append(_text(_LEFT - 6, at + 4, f"{number * step:g}", "soft", "end"))
    for window in outcome.windows:
        at = x(window.began - outcome.began)
        parts.append(
            f'<line class="strike" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{top + _PANEL}">'
            f"<title>{escape(window.fault)}</title></line>"
        )
    parts += [
        _text(x(minute * 60), top + _PANEL + 14, f"{minute} min", "soft", "middle")
        for minute in range(0, int(last / 60) + 1, max(1, int(last / 600)))
    ]
    for name, samples in outcome.samples.items():
        thinned = samples[:: -(-len(samples) // _POINTS)]
        for _, life in groupby(thinned, key=lambda s: s.process):
            points = " ".join(f"{x(s.at):.1f},{y(of(s)):.1f}" for s in life)
            parts.append(f'<polyline class="line" stroke="{_COLOURS[name]}" points="{points}"/>')
    return parts


def _legend(outcome: Outcome) -> str:
    parts = []
    for number, (name, colour) in enumerate(_COLOURS.items()):
        at = _WIDTH - 360 + number * 90
        parts.append(f'<rect x="{at}" y="8" width="14" height="4" fill="{colour}"/>')
        parts.append(_text(at + 20, 14, _NAMES[name]))
    parts.append(_text(_WIDTH - _RIGHT, 14, f"dotted: {len(outcome.windows)} faults", "", "end"))
    return "".join(parts)


def _round(least: float) -> float:
    """1, 2 or 5 times a power of ten, at least `least`."""
    power = 1.0
    while power * 10 <= least:
        power *= 10
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least)


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )

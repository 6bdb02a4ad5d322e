"""A report as one HTML page that needs nothing else.

Owns the page: no script, no font, no picture from elsewhere, so that it can be mailed, kept and
printed. Light or dark as the reader's system is; always light on paper. It is well-formed XML.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from xml.sax.saxutils import escape

from installer.bench.chart import bar_chart, histogram_chart, spread_chart
from installer.bench.figures import Figures
from installer.bench.picture import digits, duration
from installer.bench.report import Report
from installer.bench.table import SPEED, TIMES, remarks, speed_rows, time_rows

_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1d2430; --soft: #5c6675;
  --line: #dfe3e8; --mark: #2463c9; --mark-soft: #7fa8e6; --card: #f5f7f9; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181f; --ink: #e4e8ee; --soft: #98a3b3;
  --line: #2d3643; --mark: #6ea3f5; --mark-soft: #3f6db3; --card: #1c222c; } }
@media print { :root { color-scheme: light; --paper: #ffffff; --ink: #000000; --soft: #444444;
  --line: #cccccc; --mark: #2463c9; --mark-soft: #7fa8e6; --card: #ffffff; }
  figure, table, section { break-inside: avoid; } main { max-width: none; padding: 0; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } @page { margin: 16mm; } }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .7rem; }
.lead { color: var(--soft); margin: .2rem 0 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .8rem;
  margin: 1.5rem 0 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: .7rem .9rem; }
.card b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: .85rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(22rem, 1fr)); gap: 1rem; }
figure { margin: 0; border: 1px solid var(--line); border-radius: 8px; padding: .7rem .8rem; }
figcaption { font-weight: 600; margin-bottom: .3rem; }
svg { display: block; width: 100%; height: auto; font: 11px system-ui, sans-serif; }
.grid { stroke: var(--line); } .bar { fill: var(--mark); }
.range { stroke: var(--mark-soft); stroke-width: 3; } .median { fill: var(--mark); }
.high { fill: var(--paper); stroke: var(--mark); stroke-width: 2; }
.top { stroke: var(--mark); stroke-width: 2; }
text { fill: var(--ink); text-anchor: middle; } .label, .axis { fill: var(--soft); }
.start { text-anchor: start; } .end { text-anchor: end; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .35rem .6rem; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { color: var(--soft); font-weight: 600; font-size: .85rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
code { font: .9em ui-monospace, "Liberation Mono", monospace; }
.note { border-left: 3px solid var(--mark); padding-left: .8rem; margin: .4rem 0; }
"""

_MEANINGS = {
    "time to first token": "from the moment a request was due to the first piece of its answer, "
    "connecting included",
    "gap": "between two pieces of one answer that follow each other; what a reader feels",
    "output tokens/s": "completion tokens of all answered requests over the level's whole time, "
    "prefill included",
    "per stream": "one answer's speed once it has begun: the median over the requests",
    "p50, p90, p99": "half, nine in ten, and 99 of 100 values are at most this",
    "tokens": "always the server's own count (usage), never the number of pieces",
}


def page_of(report: Report) -> str:
    """The page of `report`, as text to be stored in UTF-8."""
    levels = [figures for figures in report.levels if figures.requests]
    title = f"{report.target.model} under load"
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(_lead(report))}</p>',
        *_cards(levels),
        *(f'<p class="note">{escape(line)}</p>' for line in remarks(report)),
        "<h2>Pictures</h2>",
        f'<div class="charts">{"".join(_charts(levels))}</div>',
        "<h2>Figures</h2>",
        _table(SPEED, speed_rows(report.levels)),
        _table(TIMES, time_rows(report.levels)),
        "<h2>What was measured</h2>",
        _list(_facts(report)),
        "<h2>What the words mean</h2>",
        _list(_MEANINGS),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><main>\n{chr(10).join(body)}\n</main></body></html>\n"
    )


def _lead(report: Report) -> str:
    return f"appliance bench {report.appliance}, {report.created}, {report.machine.processor}"


def _cards(levels: Sequence[Figures]) -> Iterable[str]:
    cards = []
    fast = [f for f in levels if f.output_tokens_per_second is not None]
    if fast:
        best = max(fast, key=lambda f: f.output_tokens_per_second or 0.0)
        cards.append(_card(digits(best.output_tokens_per_second or 0.0), "output tokens/s", best))
    first = levels[0] if levels else None
    if first is not None and first.ttft is not None:
        cards.append(_card(duration(first.ttft.p50), "time to first token, p50", first))
    if first is not None and first.gap is not None:
        cards.append(_card(duration(first.gap.p50), "between pieces, p50", first))
    if first is not None and first.stream_tokens_per_second is not None:
        text = digits(first.stream_tokens_per_second)
        cards.append(_card(text, "tokens/s of one stream", first))
    return [f'<div class="cards">{"".join(cards)}</div>'] if cards else []


def _card(value: str, name: str, figures: Figures) -> str:
    load = f"load {figures.level.label}"
    return f'<div class="card"><b>{escape(value)}</b><span>{escape(name)}, {load}</span></div>'


def _charts(levels: Sequence[Figures]) -> list[str]:
    if not levels:
        return []
    axis = "requests a second" if levels[0].level.rate else "streams at once"
    charts = []
    rates = [(f.level.label, f.output_tokens_per_second) for f in levels]
    known = [(label, rate) for label, rate in rates if rate is not None]
    if known:
        charts.append(bar_chart("Output tokens a second", axis, known))
    firsts = [(f.level.label, f.ttft) for f in levels]
    spreads = [(label, spread) for label, spread in firsts if spread is not None]
    if spreads:
        charts.append(spread_chart("Time to first token: p50, p90, p99", axis, spreads))
    gaps = [(f.level.label, f.gap) for f in levels]
    spreads = [(label, spread) for label, spread in gaps if spread is not None]
    if spreads:
        charts.append(spread_chart("Gap between pieces: p50, p90, p99", axis, spreads))
    charts += [
        histogram_chart(f"Whole requests, load {f.level.label}", f.totals)
        for f in levels
        if f.totals is not None and f.requests > 1
    ]
    return charts


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _facts(report: Report) -> Mapping[str, str]:
    target, machine, work = report.target, report.machine, report.workload
    where = "this node" if target.own_node else "client"
    shape = f"{work.input_tokens} tokens in" if not work.prompts else f"prompts of {work.prompts}"
    facts = {
        "command": report.command,
        "server": target.base_url,
        "model": f"{target.model} {target.version}".strip(),
        "bundle": target.bundle_digest,
        "fingerprint": target.fingerprint,
        "shape": f"{shape}, {work.output_tokens} out",
        "shared prefix": f"{work.shared_prefix} tokens" if work.shared_prefix else "",
        "seed": str(work.seed),
        where: f"{machine.processor}, {machine.processors} processors, "
        f"{machine.memory_bytes / 1024**3:.1f} GiB",
        "system": f"{machine.system}, Python {machine.python}",
    }
    return {name: value for name, value in facts.items() if value}


def _list(pairs: Mapping[str, str]) -> str:
    items = (f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in pairs.items())
    return f"<dl>{''.join(items)}</dl>"

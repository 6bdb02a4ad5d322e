"""The table of docs/benchmarks.md, between its two markers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bench_peers.workloads import Row

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
OURS = "appliance"
NONE = "-"

Medians = Mapping[str, Mapping[str, float]]
"""Peer -> row -> figure."""


def table_of(rows: Sequence[Row], peers: Sequence[str], medians: Medians) -> str:
    """One line a row: each peer's figure, and how many times ours is better than each other's."""
    others = [peer for peer in peers if peer != OURS]
    head = ["", *peers, *(f"us / {peer}" for peer in others)]
    lines = [_line(head), _line(["---"] * len(head))]
    for row in rows:
        cells = [_figure(medians.get(peer, {}).get(row.name)) for peer in peers]
        ratios = [_better(row, medians, other) for other in others]
        lines.append(_line([f"{row.name}, {row.unit}", *cells, *ratios]))
    return "\n".join(lines)


def put_into(page: Path, block: str) -> None:
    """Replace what stands between the markers of `page`."""
    before, _, rest = page.read_text("utf-8").partition(BEGIN)
    _, found, after = rest.partition(END)
    assert found, f"{page} has no markers"
    page.write_text(f"{before}{BEGIN}\n{block.strip()}\n{END}{after}", "utf-8")


def _better(row: Row, medians: Medians, other: str) -> str:
    ours, theirs = medians.get(OURS, {}).get(row.name), medians.get(other, {}).get(row.name)
    if not ours or not theirs:
        return NONE
    less_is_better = row.unit in {"s", "GiB"}
    return f"{theirs / ours if less_is_better else ours / theirs:.2f}x"


def _figure(value: float | None) -> str:
    if value is None:
        return NONE
    places = next((n for n, least in enumerate((99.5, 9.95, 0.995)) if value >= least), 3)
    return f"{value:.{places}f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"

"""The parity table: what a test run measured of each model in each way it is run.

A test records a cell with `record_property(PROPERTY, cell.as_property())`, which reaches the
process that prints the table from wherever the test ran; of several for one cell the largest
counts. A way that no model of a group has is a dash with its reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

PROPERTY = "parity"
Group = Literal["decoders", "images", "embedders", "rerankers"]
RUNS = ("prefill", "chunked", "ragged", "prefix", "tower", "int8", "int4", "fp8", "w8a8", "w4a8")
"""The columns, in their order; others follow."""
_ONCE = "of one model a family"
_NATIVE = f"{_ONCE}, where native operators compute it"
_DENSE = f"{_ONCE}, of those without experts"
_WHOLE = {
    "chunked": "a text is read in one piece",
    "prefix": "there is no cache",
    "int4": "not built, it would lose too much",
    "fp8": "not built, int8 takes as much and is more exact",
    "w8a8": "there is no cache that could have 8 bits",
    "w4a8": "the same",
}
DASHES: Mapping[Group, Mapping[str, str]] = {
    "decoders": {"int8": _ONCE, "int4": _ONCE, "fp8": _DENSE, "w8a8": _ONCE, "w4a8": _NATIVE},
    "images": {
        "w8a8": "of those with a running state, words alone; its two graphs take no images",
        "w4a8": "not built, its graphs take words alone",
    },
    "embedders": {**_WHOLE, "int8": _ONCE},
    "rerankers": {**_WHOLE, "int8": _ONCE},
}
"""Why there is nothing to measure."""


@dataclass(frozen=True, slots=True)
class Cell:
    """Attributes:
    model: the row.
    run: the column.
    error: as measured, relative.
    bound: the most that it may be.
    group: the table.
    """

    model: str
    run: str
    error: float
    bound: float
    group: Group = "decoders"

    def as_property(self) -> dict[str, str | float]:
        """What can travel between processes."""
        return asdict(self)


def draw(properties: Iterable[tuple[str, object]]) -> Iterator[str]:
    """The tables' lines, of all properties that tests recorded; none without a cell."""
    cells = [
        Cell(**value) for name, value in properties if name == PROPERTY and isinstance(value, dict)
    ]
    for group, reasons in DASHES.items():
        if those := [cell for cell in cells if cell.group == group]:
            yield from _table(group, those, reasons)


def _table(group: Group, cells: Sequence[Cell], reasons: Mapping[str, str]) -> Iterator[str]:
    measured = {cell.run for cell in cells}
    runs = [run for run in RUNS if run in measured or run in reasons]
    bounds = {cell.run: cell.bound for cell in sorted(cells, key=lambda cell: cell.bound)}
    rows: dict[str, dict[str, Cell]] = {}
    for cell in sorted(cells, key=lambda cell: (cell.model, cell.error)):
        rows.setdefault(cell.model, {})[cell.run] = cell
    width = max(map(len, [group, "at most", *rows]))
    yield "  ".join([f"{group:{width}}", *(f"{run:>11}" for run in runs)])
    most = [f"{bounds[run]:11.0e}" if run in bounds else " " * 10 + "-" for run in runs]
    yield "  ".join([f"{'at most':{width}}", *most])
    for model, found in rows.items():
        yield "  ".join([f"{model:{width}}", *(_shown(found.get(run)) for run in runs)])
    for run in runs:
        if run in reasons and any(run not in found for found in rows.values()):
            yield f"- {run}: {reasons[run]}"


def _shown(cell: Cell | None) -> str:
    if cell is None:
        return " " * 10 + "-"
    return f"{cell.error:10.1e}" + (" " if cell.error <= cell.bound else "!")

"""The parity table: what a test run measured of each model in each way it is run.

A test records a cell with `record_property(PROPERTY, cell.as_property())`, which reaches the
process that prints the table from wherever the test ran.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

PROPERTY = "parity"


@dataclass(frozen=True, slots=True)
class Cell:
    """Attributes:
    model: the row.
    run: the column.
    error: as measured, relative.
    bound: the most that it may be.
    """

    model: str
    run: str
    error: float
    bound: float

    def as_property(self) -> dict[str, str | float]:
        """What can travel between processes."""
        return asdict(self)


def draw(properties: Iterable[tuple[str, object]]) -> Iterator[str]:
    """The table's lines, of all properties that tests recorded; none without a cell."""
    cells = [
        Cell(**value) for name, value in properties if name == PROPERTY and isinstance(value, dict)
    ]
    if not cells:
        return
    runs = list(dict.fromkeys(cell.run for cell in cells))
    bounds = {run: max(cell.bound for cell in cells if cell.run == run) for run in runs}
    rows = {
        model: {c.run: c for c in cells if c.model == model}
        for model in sorted({c.model for c in cells})
    }
    width = max(map(len, ["model", *rows]))
    yield "  ".join([f"{'model':{width}}", *(f"{run:>11}" for run in runs)])
    yield "  ".join([f"{'at most':{width}}", *(f"{bounds[run]:11.0e}" for run in runs)])
    for model, found in rows.items():
        yield "  ".join([f"{model:{width}}", *(_shown(found.get(run)) for run in runs)])


def _shown(cell: Cell | None) -> str:
    if cell is None:
        return " " * 10 + "-"
    return f"{cell.error:10.1e}" + (" " if cell.error <= cell.bound else "!")

"""Changes rows of logits in a device's memory as their choices want it: in their place.

Owns the bits and numbers that go there for it, a fortieth of a row. A row with more edits than
there is room for is left as it is (docs/decisions/0267-choices-on-the-device.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import numpy as np
import onnxruntime as ort

from appliance.engine.choosing import Choice, Edits
from appliance.engine.device import draw_graphs
from appliance.engine.device.device import Device
from appliance.engine.device.rows import DeviceRows

MOST_ROWS = 32
"""Rows of a run; what is computed in between takes as much as they do, a few times."""
MOST_EDITS = 4096
"""Of a row: a prompt of as many different tokens under a repetition penalty."""


@dataclass(frozen=True, slots=True)
class Changed:
    """What became of rows.

    Attributes:
        best: row -> its likeliest token, of those that were changed.
        left_out: rows that could not be changed.
    """

    best: Mapping[int, int] = field(default_factory=dict)
    left_out: AbstractSet[int] = frozenset()


class DeviceChange:
    """The graph `draw_graphs.changed` over rows of `vocab` logits on `device`."""

    def __init__(
        self, device: Device, vocab: int, open_graph: Callable[[bytes], ort.InferenceSession]
    ) -> None:
        self._vocab, self._mask_bytes = vocab, draw_graphs.mask_bytes(vocab)
        self._graph = DeviceRows(
            *(device, open_graph(draw_graphs.changed(vocab)), MOST_ROWS),
            ids=8 * MOST_EDITS,
            factors=4 * MOST_EDITS,
            shifts=4 * MOST_EDITS,
            allowed=self._mask_bytes,
            highest=4,
            best=8,
        )

    def apply(self, address: int, choices: Sequence[Choice | None]) -> Changed:
        """Change the rows from `address` on, one for each of `choices`.

        Those whose choice changes nothing, or is None, stay what they are.
        """
        wanted = {
            number: choice
            for number, choice in enumerate(choices)
            if choice is not None and choice.changes
        }
        left_out = {number for number, choice in wanted.items() if not _has_room(choice)}
        for number in left_out:
            del wanted[number]
        if not wanted:
            return Changed(left_out=left_out)
        count = len(choices)
        self._write(count, wanted)
        highest, best = np.empty((count, 1), np.float32), np.empty((count, 1), np.int64)
        rows = (address, (count, self._vocab))
        # In their place: a sum of all that was read before is what is written last.
        self._graph.run({"logits": rows}, {"scores": rows}, highest=highest, best=best)
        # Where nothing is possible, whoever looks at the row shall say so.
        found = {n: int(best[n, 0]) for n in wanted if np.isfinite(highest[n, 0])}
        return Changed(found, left_out)

    def close(self) -> None:
        """Give the device's memory back."""
        self._graph.close()

    def _write(self, count: int, wanted: Mapping[int, Choice]) -> None:
        """Bits and numbers of all rows, which have as many edits each: some come twice."""
        most = max(_count(choice.edits) for choice in wanted.values()) or 1
        ids = np.zeros((count, most), np.int64)
        factors, shifts = np.ones((count, most), np.float32), np.zeros((count, most), np.float32)
        allowed = np.full((count, self._mask_bytes), 255, np.uint8)
        for number, choice in wanted.items():
            edits = choice.edits
            if edits is not None and len(edits.ids):
                again = np.minimum(np.arange(most), len(edits.ids) - 1)
                ids[number], factors[number] = edits.ids[again], edits.factors[again]
                shifts[number] = edits.shifts[again]
            if choice.allowed is not None:
                allowed[number] = np.packbits(choice.allowed, bitorder="little")
        for name, array in (
            ("ids", ids),
            ("factors", factors),
            ("shifts", shifts),
            ("allowed", allowed),
        ):
            self._graph.write(name, array)


def _has_room(choice: Choice) -> bool:
    return _count(choice.edits) <= MOST_EDITS


def _count(edits: Edits | None) -> int:
    return 0 if edits is None else len(edits.ids)

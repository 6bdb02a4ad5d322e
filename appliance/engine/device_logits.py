"""Logits that stay on the device: what was chosen there comes with them, the rest on demand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from appliance.engine import drawing
from appliance.engine.device import Device
from appliance.engine.device_draw import MOST_ROWS, DeviceDraw, WeighedRow
from appliance.engine.drawing import Scores
from appliance.engine.sampling import SamplingParams


class DeviceLogits:
    """Rows of logits, float32 [vocab] each, at `addresses`; valid until the next run.

    Args:
        greedy: the likeliest token of each row.
        draws: draws from rows on the device; None: each row is fetched for it.
    """

    def __init__(
        self,
        device: Device,
        vocab: int,
        addresses: Sequence[int],
        greedy: Sequence[int],
        draws: DeviceDraw | None = None,
    ) -> None:
        self._device = device
        self._vocab = vocab
        self._addresses = addresses
        self.greedy = greedy
        self._draws = draws
        self._weighed: dict[int, WeighedRow] = {}

    def __len__(self) -> int:
        return len(self._addresses)

    def __getitem__(self, row: int) -> Scores:
        """A copy of the row [vocab]."""
        logits = np.empty(self._vocab, np.float32)
        self._device.read(self._addresses[row], logits)
        return logits

    def weigh(self, requests: Mapping[int, SamplingParams]) -> None:
        """Prepare draws from these rows, together; without it each is fetched when it is drawn."""
        if self._draws is None or not requests:
            return
        for rows in self._runs():
            wanted = [requests.get(row) for row in rows]
            if any(wanted):
                weighed = self._draws.weigh(self._addresses[rows[0]], wanted)
                self._weighed.update(zip(rows, weighed, strict=True))

    def draw(self, row: int, params: SamplingParams, share: float) -> int:
        """The token with `share` of the mass of all candidates to its left, as `drawing.draw`."""
        weighed = self._weighed.get(row)
        token = weighed.draw(params, share, self._vocab) if weighed is not None else None
        return drawing.draw(self[row], params, share) if token is None else token

    def _runs(self) -> Iterator[list[int]]:
        """Rows that lie one behind the other, at most so many as are weighed at once."""
        run: list[int] = []
        for row, address in enumerate(self._addresses):
            follows = run and address == self._addresses[run[-1]] + 4 * self._vocab
            if run and (not follows or len(run) == MOST_ROWS):
                yield run
                run = []
            run.append(row)
        if run:
            yield run

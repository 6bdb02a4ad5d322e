"""Logits that stay on the device: what was chosen there comes with them, the rest on demand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from appliance.engine.choosing import Choice, HostRow, Row, TokenLogprob
from appliance.engine.device.change import MOST_ROWS
from appliance.engine.device.device import Device
from appliance.engine.device.draw import DeviceDraw
from appliance.engine.drawing import Scores
from appliance.engine.weighed_row import WeighedRow


class DeviceLogits:
    """Rows of logits, float32 [vocab] each, at `addresses`; valid until the next run.

    Args:
        greedy: the likeliest token of each row.
        draws: chooses from rows on the device; None: each row is fetched for it.
        prepared: what computed them was recorded in that run, which took longer than it will.
    """

    def __init__(
        self,
        device: Device,
        vocab: int,
        addresses: Sequence[int],
        greedy: Sequence[int],
        draws: DeviceDraw | None = None,
        *,
        prepared: bool = False,
    ) -> None:
        self._device = device
        self.vocab = vocab
        self._addresses = addresses
        self.greedy = greedy
        self.prepared = prepared
        self._draws = draws
        self._choices: Mapping[int, Choice | None] = {}
        self._weighed: dict[int, WeighedRow] = {}

    def __len__(self) -> int:
        return len(self._addresses)

    def __getitem__(self, row: int) -> Scores:
        """A copy of the row [vocab], as it is there."""
        logits = np.empty(self.vocab, np.float32)
        self._device.read(self._addresses[row], logits)
        return logits

    def weigh(self, choices: Mapping[int, Choice | None]) -> None:
        """Prepare these choices, each by its row, together; None needs nothing of its row.

        Once for each row: what is to be changed of it is changed in its place. Others' choices
        that were prepared before are dropped.
        """
        self._choices = choices
        if self._draws is None:
            return
        asked = {row: each for row, each in choices.items() if each and _needs_more(each)}
        for rows in self._runs():
            wanted = [asked.get(row) for row in rows]
            if any(choice is not None for choice in wanted):
                weighed = self._draws.weigh(self._addresses[rows[0]], wanted)
                found = zip(rows, weighed, strict=True)
                self._weighed.update((row, known) for row, known in found if known is not None)

    def row(self, row: int) -> Row | None:
        """A row as the choice sees it that it was weighed for; None if there was none."""
        choice, known = self._choices.get(row), self._weighed.get(row)
        if choice is None:
            return None
        if known is None and _needs_more(choice):
            return HostRow(self[row], choice)
        return _DeviceRow(self, row, choice, known)

    def _runs(self) -> Iterator[list[int]]:
        """Rows that lie one behind the other, at most so many as are weighed at once."""
        run: list[int] = []
        for row, address in enumerate(self._addresses):
            follows = run and address == self._addresses[run[-1]] + 4 * self.vocab
            if run and (not follows or len(run) == MOST_ROWS):
                yield run
                run = []
            run.append(row)
        if run:
            yield run


class _DeviceRow:
    """A row there. What is not known of it is found out from a copy."""

    def __init__(
        self, logits: DeviceLogits, row: int, choice: Choice, known: WeighedRow | None
    ) -> None:
        self._logits, self._row, self._choice, self._known = logits, row, choice, known

    def best(self) -> int:
        """The likeliest token."""
        if not self._choice.changes:
            return self._logits.greedy[self._row]
        known = self._known
        return self._copy().best() if known is None or known.best is None else known.best

    def draw(self, share: float) -> int:
        """As every row's."""
        known = self._known
        if known is not None and known.weighed is not None:
            token = known.weighed.draw(self._choice.params, share, self._logits.vocab)
            if token is not None:
                return token
        return self._copy().draw(share)

    def logprob(self, token_id: int, top: int) -> TokenLogprob:
        """As every row's."""
        known = self._known
        assert known is not None, "who asks for it was weighed"
        assert known.own is not None, "who asks for it was weighed"
        if known.own.row is not None:
            return HostRow(known.own.row, self._choice).logprob(token_id, top)
        return known.own.logprob(token_id, top)

    def _copy(self) -> HostRow:
        """What it has is what may be chosen, if it was changed there."""
        known, choice = self._known, self._choice
        if known is not None and known.changed:
            choice = Choice(choice.params)
        return HostRow(self._logits[self._row], choice)


def _needs_more(choice: Choice) -> bool:
    """Than the likeliest token under the model itself."""
    return choice.changes or not choice.params.greedy or choice.params.logprobs is not None

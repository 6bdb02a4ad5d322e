"""Finds out what choices need of rows of logits that stay in a device's memory.

Owns what is fetched for that: the likeliest token; the mass of each run of tokens, and the most
likely ones where filters leave only such; for log-probabilities the same of the model's own logits.
What a request changes of a row is changed there, in its place (change.py). How tokens are
chosen from what was fetched: weighed_row.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import onnxruntime as ort

from appliance.engine.choosing import Choice
from appliance.engine.device import draw_graphs
from appliance.engine.device.change import MOST_ROWS, DeviceChange
from appliance.engine.device.device import Device
from appliance.engine.device.rows import DeviceRows
from appliance.engine.drawing import Scores
from appliance.engine.sampling import SamplingParams
from appliance.engine.weighed_row import Likeliest, ModelsOwn, Weighed, WeighedRow


class DeviceDraw:
    """The graphs of `draw_graphs` over rows of `vocab` logits on `device`.

    Args:
        open_graph: opens a graph on the provider of that device.
    """

    def __init__(
        self, device: Device, vocab: int, open_graph: Callable[[bytes], ort.InferenceSession]
    ) -> None:
        self._device, self._vocab = device, vocab
        self._runs, self._most = draw_graphs.run_count(vocab), draw_graphs.likeliest_count(vocab)
        with ExitStack() as made:
            self._sums = DeviceRows(
                *(device, open_graph(draw_graphs.sums(vocab)), MOST_ROWS),
                temperature=4,
                highest=4,
                sums=4 * self._runs,
            )
            made.callback(self._sums.close)
            self._likeliest = DeviceRows(
                *(device, open_graph(draw_graphs.likeliest(vocab)), MOST_ROWS),
                values=4 * self._most,
                ids=8 * self._most,
            )
            made.callback(self._likeliest.close)
            self._change = DeviceChange(device, vocab, open_graph)
            made.callback(self._change.close)
            self._made = made.pop_all()

    def weigh(self, address: int, choices: Sequence[Choice | None]) -> list[WeighedRow | None]:
        """What is known of the rows from `address` on, one for each of `choices`.

        Of a None nothing. At most `MOST_ROWS`; what comes back reads the rows themselves, too. Rows
        are changed in their place; one that cannot be is left as it is, and nothing is known of it.
        """
        own = self._models_own(address, choices)
        changed = self._change.apply(address, choices)
        weighed = self._weighed_for_draws(address, choices)
        return [
            None
            if choice is None or number in changed.left_out
            else WeighedRow(changed.best.get(number), weighed[number], own[number], choice.changes)
            for number, choice in enumerate(choices)
        ]

    def close(self) -> None:
        """Give the device's memory back."""
        self._made.close()

    def _models_own(self, address: int, choices: Sequence[Choice | None]) -> list[ModelsOwn | None]:
        """Before anything is changed."""
        asked = [
            choice if choice is not None and choice.params.logprobs is not None else None
            for choice in choices
        ]
        if all(choice is None for choice in asked):
            return [None] * len(choices)
        found = self._weigh(address, [1.0] * len(choices), likeliest=True)
        return [
            None if choice is None else self._of_model(weighed, choice)
            for weighed, choice in zip(found, asked, strict=True)
        ]

    def _of_model(self, weighed: Weighed, choice: Choice) -> ModelsOwn:
        likeliest, top = weighed.likeliest, choice.params.logprobs or 0
        assert likeliest is not None
        scores = likeliest.scores
        # Others may be as likely as the last of them.
        unclear = not likeliest.all_of_them and top > 0 and scores[top - 1] == scores[-1]
        whole = unclear or choice.edits is not None
        return ModelsOwn(weighed, weighed.read(0, self._vocab) if whole else None)

    def _weighed_for_draws(
        self, address: int, choices: Sequence[Choice | None]
    ) -> list[Weighed | None]:
        drawn = [
            None if choice is None or choice.params.greedy else choice.params for choice in choices
        ]
        if all(params is None for params in drawn):
            return [None] * len(choices)
        temperatures = [1.0 if params is None else params.temperature for params in drawn]
        filters = [params is not None and _filters(params) for params in drawn]
        found = self._weigh(address, temperatures, likeliest=any(filters))
        return [
            None if params is None else weighed if keeps else replace(weighed, likeliest=None)
            for weighed, params, keeps in zip(found, drawn, filters, strict=True)
        ]

    def _weigh(
        self, address: int, temperatures: Sequence[float], *, likeliest: bool
    ) -> list[Weighed]:
        count, width = len(temperatures), 4 * self._vocab
        self._sums.write("temperature", np.array(temperatures, "<f4").reshape(count, 1))
        highest = np.empty((count, 1), np.float32)
        masses = np.empty((count, self._runs), np.float32)
        self._sums.run({"logits": (address, (count, self._vocab))}, highest=highest, sums=masses)
        best: list[Likeliest | None] = [None] * count
        if likeliest:
            best = list(self._run_likeliest(address, count))
        return [
            Weighed(
                highest[row, 0],
                masses[row].astype(np.float64),
                best[row],
                self._reader(address + row * width),
            )
            for row in range(count)
        ]

    def _run_likeliest(self, address: int, count: int) -> list[Likeliest]:
        scores = np.empty((count, self._most), np.float32)
        ids = np.empty((count, self._most), np.int64)
        self._likeliest.run({"logits": (address, (count, self._vocab))}, values=scores, ids=ids)
        whole = self._most == self._vocab
        return [Likeliest(*row, whole) for row in zip(ids, scores, strict=True)]

    def _reader(self, address: int) -> Callable[[int, int], Scores]:
        def read(first: int, count: int) -> Scores:
            scores = np.empty(count, np.float32)
            self._device.read(address + 4 * first, scores)
            return scores

        return read


def _filters(params: SamplingParams) -> bool:
    return bool(params.top_k or params.top_p < 1 or params.min_p > 0)

"""Chooses tokens from rows of logits that stay in a device's memory.

Owns what is fetched for that: the likeliest token; the mass of each run of tokens and the run that
the share falls into, or the most likely tokens where filters leave only such; for log-probabilities
the same of the model's own logits. What a request changes of a row is changed there, in its place
(device_change.py). Says so where that does not decide; the row is then fetched whole. The draw is
that of `drawing`, from sums in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from appliance.engine import draw_graphs
from appliance.engine.choosing import Choice, TokenLogprob
from appliance.engine.device import Device
from appliance.engine.device_change import MOST_ROWS, Changed, DeviceChange
from appliance.engine.device_rows import DeviceRows
from appliance.engine.drawing import (
    RUN,
    Ids,
    Scores,
    Sums,
    filtered,
    find_run,
    inside_run,
    place,
    rooms,
    weigh,
)
from appliance.engine.sampling import SamplingParams

_Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Likeliest:
    """The most likely tokens of a row, best first; `all_of_them`: there are no others."""

    ids: Ids
    scores: Scores
    all_of_them: bool


@dataclass(frozen=True, slots=True)
class Weighed:
    """What is known of one row of logits.

    Attributes:
        highest: its largest logit.
        sums: the mass of each run at one temperature, as `drawing.run_sums` has it.
        likeliest: None where nobody needs them.
        read: fetches so many logits from a token on.
    """

    highest: np.float32
    sums: Sums
    likeliest: Likeliest | None
    read: Callable[[int, int], Scores]

    def draw(self, params: SamplingParams, share: float, vocab: int) -> int | None:
        """As `drawing.draw`; None if the row has to be looked at for it."""
        if self.likeliest is not None:
            return self._among_likeliest(self.likeliest, params, share)
        if not self.sums.sum() > 0:
            return None  # numbers that mean nothing: whoever looks at the row shall say so
        run, rest = find_run(self.sums, share)
        first = run * RUN
        scores = self.read(first, min(RUN, vocab - first))
        weights = weigh(scores, self.highest, params.temperature, rooms.row("run", len(scores)))
        return first + inside_run(weights, rest)

    def _among_likeliest(
        self, likeliest: Likeliest, params: SamplingParams, share: float
    ) -> int | None:
        ids, scores, mass = likeliest.ids, likeliest.scores, float(self.sums.sum())
        complete = likeliest.all_of_them
        if not complete and scores[-1] == -np.inf:
            # What a mask forbids has no weight, wherever it stands: those that may be are all here.
            possible = scores > -np.inf
            ids, scores, complete = ids[possible], scores[possible], True
        if 0 < params.top_k < len(scores):
            kept = scores >= scores[params.top_k - 1]
            # Where the last one is kept, others that are as likely may follow.
            complete = complete or not kept[-1]
            ids, scores = ids[kept], scores[kept]
            mass = 0.0
        elif params.top_k and not complete:
            return None
        if not len(scores):
            return None
        order = np.argsort(ids)
        ids = ids[order]
        weights = weigh(
            scores[order], self.highest, params.temperature, rooms.row("likeliest", len(ids))
        )
        if not (complete or _decides(weights, params, mass)):
            return None
        left, weights = filtered(ids, weights, params, mass or None)
        assert left is not None
        return int(left[place(weights, share)])


@dataclass(frozen=True, slots=True)
class ModelsOwn:
    """What log-probabilities need of a row as the model gave it: `weighed` at temperature 1.

    Attributes:
        row: all of it, where `weighed` does not say which tokens are the most likely, or its
            logits are changed since.
    """

    weighed: Weighed
    row: Scores | None

    def logprob(self, token_id: int, top: int) -> TokenLogprob:
        """As `choosing.logprob`, within the rounding of sums in another order."""
        weighed, likeliest = self.weighed, self.weighed.likeliest
        assert likeliest is not None
        total = np.log(weighed.sums.sum()) + float(weighed.highest)
        own = float(weighed.read(token_id, 1)[0])
        order = np.lexsort((likeliest.ids, -likeliest.scores))[:top]
        pairs = [(int(likeliest.ids[i]), float(likeliest.scores[i] - total)) for i in order]
        return TokenLogprob(token_id, float(own - total), tuple(pairs))


@dataclass(frozen=True, slots=True)
class WeighedRow:
    """All that was asked of one row.

    Attributes:
        choice: by which it was asked.
        changed: its row is changed in its place: what it has is what may be chosen.
    """

    choice: Choice
    best: int | None
    weighed: Weighed | None
    own: ModelsOwn | None
    changed: bool


def _decides(weights: Scores, params: SamplingParams, mass: float) -> bool:
    """Whether the filters leave none but these, which are the most likely of `mass`."""
    if params.top_p < 1 and mass:
        return float(weights.sum(dtype=np.float64)) >= params.top_p * mass
    return params.min_p > 0 and float(weights.min()) < params.min_p * float(weights.max())


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
            self._sums = DeviceRows(device, open_graph(draw_graphs.sums(vocab)), MOST_ROWS)
            made.callback(self._sums.close)
            self._likeliest = DeviceRows(
                device, open_graph(draw_graphs.likeliest(vocab)), MOST_ROWS
            )
            made.callback(self._likeliest.close)
            self._change = DeviceChange(device, vocab, open_graph)
            made.callback(self._change.close)
            self._sums.reserve(temperature=4, highest=4, sums=4 * self._runs)
            self._likeliest.reserve(values=4 * self._most, ids=8 * self._most)
            self._made = made.pop_all()

    def weigh(self, address: int, choices: Sequence[Choice | None]) -> list[WeighedRow | None]:
        """What is known of the rows from `address` on, one for each of `choices`.

        Of a None nothing. At most `MOST_ROWS`; what comes back reads the rows themselves, too. Rows
        are changed in their place; one that cannot be is left as it is, and nothing is known of it.
        """
        own = self._models_own(address, choices)
        changed: Changed = self._change.apply(address, choices)
        weighed = self._weighed_for_draws(address, choices)
        return [
            None
            if choice is None or number in changed.left_out
            else WeighedRow(
                choice,
                changed.best.get(number),
                weighed[number],
                own[number],
                choice.changes,
            )
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
        drawn = [choice is not None and not choice.params.greedy for choice in choices]
        if not any(drawn):
            return [None] * len(choices)
        temperatures = [
            choice.params.temperature if choice is not None and draws else 1.0
            for choice, draws in zip(choices, drawn, strict=True)
        ]
        filters = [
            choice is not None and draws and _filters(choice.params)
            for choice, draws in zip(choices, drawn, strict=True)
        ]
        found = self._weigh(address, temperatures, likeliest=any(filters))
        return [
            None if not draws else weighed if keeps else _without_likeliest(weighed)
            for weighed, draws, keeps in zip(found, drawn, filters, strict=True)
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


def _without_likeliest(weighed: Weighed) -> Weighed:
    return Weighed(weighed.highest, weighed.sums, None, weighed.read)


def _filters(params: SamplingParams) -> bool:
    return bool(params.top_k or params.top_p < 1 or params.min_p > 0)

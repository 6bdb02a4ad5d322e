"""Draws tokens from rows of logits that stay in a device's memory.

Owns what is fetched for that: the mass of each run of tokens and the run that the share falls into,
or the most likely tokens where filters leave only such. Says so where that does not decide; the
row is then fetched whole. The draw is that of `drawing`, from sums in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from appliance.engine import draw_graphs
from appliance.engine.device import Device
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

MOST_ROWS = 32
"""Rows of a run; what is computed in between takes as much as they do, a few times."""
_Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Likeliest:
    """The most likely tokens of a row, best first; `all_of_them`: there are no others."""

    ids: Ids
    scores: Scores
    all_of_them: bool


@dataclass(frozen=True, slots=True)
class WeighedRow:
    """What is known of one row.

    Attributes:
        highest: its largest logit.
        sums: the mass of each run at the request's temperature, as `drawing.run_sums` has it.
        likeliest: None where the request filters nothing.
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
        if 0 < params.top_k < len(scores):
            kept = scores >= scores[params.top_k - 1]
            # Where the last one is kept, others that are as likely may follow.
            complete = complete or not kept[-1]
            ids, scores = ids[kept], scores[kept]
            mass = 0.0
        elif params.top_k:
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


def _decides(weights: Scores, params: SamplingParams, mass: float) -> bool:
    """Whether the filters leave none but these, which are the most likely of `mass`."""
    if params.top_p < 1 and mass:
        return float(weights.sum(dtype=np.float64)) >= params.top_p * mass
    return params.min_p > 0 and float(weights.min()) < params.min_p * float(weights.max())


class DeviceDraw:
    """The two graphs of `draw_graphs` over rows of `vocab` logits on `device`.

    Args:
        open_graph: opens a graph on the provider of that device.
    """

    def __init__(
        self, device: Device, vocab: int, open_graph: Callable[[bytes], ort.InferenceSession]
    ) -> None:
        self._device, self._vocab = device, vocab
        self._sums = open_graph(draw_graphs.sums(vocab))
        self._likeliest = open_graph(draw_graphs.likeliest(vocab))
        self._buffers: list[int] = []
        try:
            self._temperatures = self._buffer(4)
            self._highest = self._buffer(4)
            self._masses = self._buffer(4 * draw_graphs.run_count(vocab))
            self._scores = self._buffer(4 * draw_graphs.likeliest_count(vocab))
            self._ids = self._buffer(8 * draw_graphs.likeliest_count(vocab))
        except BaseException:
            self.close()
            raise

    def weigh(self, address: int, requests: Sequence[SamplingParams | None]) -> list[WeighedRow]:
        """What the rows from `address` on give, one for each of `requests`; None stands for any.

        At most `MOST_ROWS`; what comes back reads the rows themselves, too.
        """
        count, width = len(requests), 4 * self._vocab
        highest, masses = self._run_sums(address, requests)
        best: list[Likeliest | None] = [None] * count
        if any(request is not None and _filters(request) for request in requests):
            best = list(self._run_likeliest(address, count))
        return [
            WeighedRow(
                highest[row],
                masses[row].astype(np.float64),
                best[row] if request is not None and _filters(request) else None,
                self._reader(address + row * width),
            )
            for row, request in enumerate(requests)
        ]

    def close(self) -> None:
        """Give the device's memory back."""
        while self._buffers:
            self._device.release(self._buffers.pop())

    def _run_sums(
        self, address: int, requests: Sequence[SamplingParams | None]
    ) -> tuple[_Array, _Array]:
        count = len(requests)
        self._device.write(self._temperatures, np.array(list(map(_temperature, requests)), "<f4"))
        highest = np.empty(count, np.float32)
        masses = np.empty((count, draw_graphs.run_count(self._vocab)), np.float32)
        binding = self._bound(self._sums, address, count)
        self._bind_input(binding, "temperature", (count, 1), self._temperatures)
        self._bind_output(binding, "highest", np.float32, (count, 1), self._highest)
        self._bind_output(binding, "sums", np.float32, masses.shape, self._masses)
        self._sums.run_with_iobinding(binding)
        self._device.read(self._highest, highest)
        self._device.read(self._masses, masses)
        return highest, masses

    def _run_likeliest(self, address: int, count: int) -> list[Likeliest]:
        most = draw_graphs.likeliest_count(self._vocab)
        scores, ids = np.empty((count, most), np.float32), np.empty((count, most), np.int64)
        binding = self._bound(self._likeliest, address, count)
        self._bind_output(binding, "values", np.float32, scores.shape, self._scores)
        self._bind_output(binding, "ids", np.int64, ids.shape, self._ids)
        self._likeliest.run_with_iobinding(binding)
        self._device.read(self._scores, scores)
        self._device.read(self._ids, ids)
        whole = most == self._vocab
        return [Likeliest(*row, whole) for row in zip(ids, scores, strict=True)]

    def _reader(self, address: int) -> Callable[[int, int], Scores]:
        def read(first: int, count: int) -> Scores:
            scores = np.empty(count, np.float32)
            self._device.read(address + 4 * first, scores)
            return scores

        return read

    def _buffer(self, size: int) -> int:
        address = self._device.allocate(MOST_ROWS * size)
        self._buffers.append(address)
        return address

    def _bound(self, session: ort.InferenceSession, address: int, count: int) -> ort.IOBinding:
        binding = session.io_binding()
        self._bind_input(binding, "logits", (count, self._vocab), address)
        return binding

    def _bind_input(
        self, binding: ort.IOBinding, name: str, shape: tuple[int, ...], address: int
    ) -> None:
        binding.bind_input(name, self._device.kind, 0, np.float32, shape, address)

    def _bind_output(
        self, binding: ort.IOBinding, name: str, kind: type, shape: tuple[int, ...], address: int
    ) -> None:
        binding.bind_output(name, self._device.kind, 0, kind, shape, address)


def _filters(params: SamplingParams) -> bool:
    return bool(params.top_k or params.top_p < 1 or params.min_p > 0)


def _temperature(params: SamplingParams | None) -> float:
    return 1.0 if params is None or params.greedy else params.temperature

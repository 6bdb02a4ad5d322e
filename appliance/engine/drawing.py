"""Draws a token from a row of scores: the filters, and the inverse of the cumulative distribution.

Pure numbers: knows neither sequences nor where the scores come from.

Order of the filters, as in the transformers library: temperature; top_k; top_p over what is left,
made to sum to 1; min_p relative to the most likely. Candidates are laid out in order of their ids,
not of their probability: two nearly equal ones may change places when another batch rounds
differently, and every boundary between them would move.
"""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

from appliance.engine.sampling import SamplingParams

Scores = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Sums = npt.NDArray[np.float64]

RUN = 512
"""Weights whose sum is looked at before they are."""
_NUCLEUS_LOOKS = (256, 4096)
"""So many of the most likely tokens usually hold top_p of the mass; sorting all is slow."""
_RUNS_EACH = 4
_ONES = np.ones(RUN, np.float32)


class _Rooms(threading.local):
    """Memory for rows that are needed for a moment, kept by each thread.

    A row of a large vocabulary that is allocated anew costs ten times what is computed in it.
    """

    def __init__(self) -> None:
        self._rooms: dict[str, Scores] = {}

    def row(self, name: str, size: int) -> Scores:
        """What is in it is anything; it is valid until the thread asks for `name` again."""
        room = self._rooms.get(name)
        if room is None or len(room) < size:
            room = self._rooms[name] = np.empty(size, np.float32)
        return room[:size]


rooms = _Rooms()


def draw(scores: Scores, params: SamplingParams, share: float) -> int:
    """The token with `share` of the mass of all candidates to its left: 0 <= share < 1.

    scores: [vocab], at least one of them finite.
    """
    ids, weights = candidates(scores, params)
    at = place(weights, share)
    return at if ids is None else int(ids[at])


def candidates(scores: Scores, params: SamplingParams) -> tuple[Ids | None, Scores]:
    """Token ids in ascending order that may be drawn, and their weights (not normalised).

    None stands for all ids. The weights are valid until the thread's next call.
    """
    highest, ids = scores.max(), None
    if 0 < params.top_k < len(scores):
        ids = np.flatnonzero(scores >= kth_largest(scores, params.top_k))
        scores = scores[ids]
    weights = weigh(scores, highest, params.temperature, rooms.row("weights", len(scores)))
    return filtered(ids, weights, params)


def weigh(scores: Scores, highest: np.float32, temperature: float, room: Scores) -> Scores:
    """exp((scores - highest) / temperature), in `room`."""
    np.subtract(scores, highest, out=room)
    np.divide(room, np.float32(temperature), out=room)
    np.exp(room, out=room)
    return room


def filtered(
    ids: Ids | None, weights: Scores, params: SamplingParams, mass: float | None = None
) -> tuple[Ids | None, Scores]:
    """What top_p and min_p leave of them; `mass`: of all that top_p counts, if not of these."""
    if params.top_p < 1:
        ids, weights = _kept(ids, weights, _nucleus(weights, params.top_p, mass))
    if params.min_p > 0:
        kept = np.flatnonzero(weights >= params.min_p * weights.max())
        ids, weights = _kept(ids, weights, kept)
    return ids, weights


def place(weights: Scores, share: float) -> int:
    """Where `share` of the mass lies to the left; never where there is no weight."""
    sums = run_sums(weights)
    run, rest = find_run(sums, share)
    return run * RUN + inside_run(weights[run * RUN : (run + 1) * RUN], rest)


def run_sums(weights: Scores) -> Sums:
    """The sums of runs of `RUN` weights, the last of which may be shorter."""
    whole = len(weights) // RUN * RUN
    sums: Sums = (weights[:whole].reshape(-1, RUN) @ _ONES).astype(np.float64)
    return np.append(sums, weights[whole:].sum()) if whole < len(weights) else sums


def find_run(sums: Sums, share: float) -> tuple[int, float]:
    """The run in which `share` of the mass is passed, and the mass that lies in it before that."""
    boundaries = np.cumsum(sums)
    wanted = min(share * boundaries[-1], np.nextafter(boundaries[-1], 0))
    run = int(np.searchsorted(boundaries, wanted, side="right"))
    return run, float(wanted - (boundaries[run - 1] if run else 0))


def inside_run(weights: Scores, rest: float) -> int:
    """The weight of a run with which the mass exceeds `rest`.

    Sums in another order differ in their last digits: at the end it is the last weight above 0.
    """
    inside = np.cumsum(weights, dtype=np.float64)
    return int(np.searchsorted(inside, min(rest, np.nextafter(inside[-1], 0)), side="right"))


def kth_largest(values: Scores, k: int) -> np.float32:
    """The k-th largest of `values`.

    A few times as many runs of values as k have k maxima that nothing below them can pass, so
    only what reaches those is partitioned: at 152,000 values 30 times faster than all of them.
    """
    width = len(values) // (_RUNS_EACH * k)
    if width > 1:
        runs = values[: len(values) // width * width].reshape(-1, width).max(1)
        values = values[values >= np.partition(runs, -k)[-k]]
    found: np.float32 = np.partition(values, -k)[-k]
    return found


def _kept(ids: Ids | None, weights: Scores, kept: Ids) -> tuple[Ids, Scores]:
    return kept if ids is None else ids[kept], weights[kept]


def _nucleus(weights: Scores, top_p: float, mass: float | None) -> Ids:
    """The smallest set of the most likely whose mass reaches `top_p` (Holtzman 2020), sorted."""
    wanted = top_p * (weights.sum(dtype=np.float64) if mass is None else mass)
    order = _likely_order(weights, wanted)
    before = np.cumsum(weights[order], dtype=np.float64) - weights[order]
    return np.sort(order[before < wanted])


def _likely_order(weights: Scores, wanted: float) -> npt.NDArray[np.intp]:
    """The most likely first, at least as many as hold `wanted`; seldom is it all of them."""
    for look in _NUCLEUS_LOOKS:
        if look < len(weights):
            likely = np.flatnonzero(weights >= kth_largest(weights, look))
            if weights[likely].sum(dtype=np.float64) >= wanted:
                return likely[np.argsort(-weights[likely], kind="stable")]
    return np.argsort(-weights, kind="stable")

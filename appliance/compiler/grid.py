"""What follows from an image's size alone: the tower's inputs beside the patches, and positions.

Pure arithmetic. Patches are in the order of the tokens that they become: the merge x merge
patches of a token follow each other, row by row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from appliance.bundle.specs import VisionSpec

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Feed = dict[str, npt.NDArray[np.generic]]
Spread = Callable[[Floats, int, int], Floats]


@dataclass(frozen=True, slots=True)
class Grid:
    """An image of `rows` x `columns` tokens."""

    rows: int
    columns: int

    @property
    def tokens(self) -> int:
        return self.rows * self.columns

    @property
    def span(self) -> int:
        """Positions that it takes of the prompt: those of its longer side."""
        return max(self.rows, self.columns)

    def positions(self, start: int) -> Ids:
        """Time, row and column of each token, [tokens, 3], in a prompt that is at `start`."""
        rows, columns = np.divmod(np.arange(self.tokens), self.columns)
        return np.stack([np.zeros_like(rows), rows, columns], axis=1) + start


def feed(grid: Grid, vision: VisionSpec) -> Feed:
    """The tower's inputs for an image of this size, but for its patches."""
    places = patch_places(grid, vision.merge)
    made: Feed = {"positions": places}
    if isinstance(vision.side, int):
        spread = _by_centres if vision.table == "centres" else _by_corners
        made |= _learned(grid, places, vision.merge, vision.side, spread)
    if isinstance(vision.window, int):
        made |= _windows(grid, vision.merge, vision.window)
    return made


def patch_places(grid: Grid, merge: int) -> Ids:
    """Row and column of each patch, [patches, 2]."""
    token = np.arange(grid.tokens)
    inside = np.arange(merge * merge)
    rows = (token // grid.columns * merge)[:, None] + inside // merge
    columns = (token % grid.columns * merge)[:, None] + inside % merge
    return np.stack([rows.ravel(), columns.ravel()], axis=1).astype(np.int64)


def _by_corners(at: Floats, count: int, side: int) -> Floats:
    """Where patches `at` of `count` are among a table's `side` entries: its corners lie on the
    image's. Reference: bilinear interpolation, aligned corners."""
    found: Floats = at * np.float32(side - 1) / np.float32(max(count - 1, 1))
    return found


def _by_centres(at: Floats, count: int, side: int) -> Floats:
    """The same with the centres spread alike. Reference: bilinear interpolation, corners not
    aligned."""
    found: Floats = (at + np.float32(0.5)) * np.float32(side) / np.float32(count) - np.float32(0.5)
    return found


def _learned(grid: Grid, places: Ids, merge: int, side: int, spread: Spread) -> Feed:
    """The four entries of a side x side table around each patch, and their weights; of entries
    beyond its edge none."""
    corners, shares = [], []
    for axis, count in ((0, grid.rows * merge), (1, grid.columns * merge)):
        at = spread(places[:, axis].astype(np.float32), count, side)
        low = np.floor(at).astype(np.int64)
        part = (at - low).astype(np.float32)
        pair = (low, low + 1)
        corners.append(tuple(np.clip(entry, 0, side - 1) for entry in pair))
        there = ((entry >= 0) & (entry < side) for entry in pair)
        both = zip((np.float32(1) - part, part), there, strict=True)
        shares.append(tuple(share * inside.astype(np.float32) for share, inside in both))
    pairs = [(row, column) for row in (0, 1) for column in (0, 1)]
    return {
        "corners": np.stack([corners[0][r] * side + corners[1][c] for r, c in pairs], axis=1),
        "corner_weights": np.stack([shares[0][r] * shares[1][c] for r, c in pairs], axis=1),
    }


def _windows(grid: Grid, merge: int, window: int) -> Feed:
    """Which patches attend to each other where only neighbours do.

    `windows` [windows, most]: patches of each window, filled up with the first; `window_mask`
    the same, 1 for real ones; `places` [patches]: where each patch is among all windows' places.
    """
    token = np.arange(grid.tokens)
    rows, columns = token // grid.columns // window, token % grid.columns // window
    wide = -(-grid.columns // window)
    owner = np.repeat(rows * wide + columns, merge * merge)
    order = np.argsort(owner, kind="stable")
    counts = np.bincount(owner)
    rank = np.empty(len(owner), np.int64)
    rank[order] = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    most = int(counts.max())
    members = np.zeros((len(counts), most), np.int64)
    mask = np.zeros((len(counts), most), np.int32)
    members[owner, rank] = np.arange(len(owner))
    mask[owner, rank] = 1
    return {"windows": members, "window_mask": mask, "places": owner * most + rank}

"""Pixels to patches, as the tower takes them."""

from __future__ import annotations

import numpy as np

from appliance.bundle.specs import VisionSpec
from appliance.compiler.grid import Floats, Grid
from appliance.engine.vision.decoder import Pixels


def grid_of(pixels: Pixels, vision: VisionSpec) -> Grid:
    """The tokens that [height, width, 3] become."""
    side = vision.patch * vision.merge
    return Grid(pixels.shape[0] // side, pixels.shape[1] // side)


def patches(pixels: Pixels, vision: VisionSpec) -> Floats:
    """[height, width, 3] -> [patches, 3 * temporal * patch * patch], normalised.

    The patches of a token follow each other, and so do the frames of a patch, which are the same.
    """
    grid, patch, merge = grid_of(pixels, vision), vision.patch, vision.merge
    mean, std = (np.array(values, np.float32) for values in (vision.mean, vision.std))
    normal = (pixels.astype(np.float32) * np.float32(1 / 255) - mean) / std
    tiled = normal.reshape(grid.rows, merge, patch, grid.columns, merge, patch, 3)
    ordered = tiled.transpose(0, 3, 1, 4, 6, 2, 5)
    count = grid.tokens * merge * merge
    single = ordered.reshape(count, 3, 1, patch * patch)
    framed: Floats = np.repeat(single, vision.temporal, axis=2).reshape(count, -1)
    return np.ascontiguousarray(framed, np.float32)

"""Reads from a text's vector which class it belongs to: softmax regression on embeddings.

Owns the fit and the probabilities. The bound of Boehning (1992) on the curvature of the softmax
likelihood does not depend on the weights, so one factorisation serves all Newton-like steps, and
Nesterov's momentum makes sixty of them enough; no optimiser has to be on the node for it. The fit
starts from zero and draws nothing, so the same vectors give the same reader.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
"""Unit vectors: float32 [texts, dimensions]."""
Classes = npt.NDArray[np.int64]

SHARPNESS = 10.0
"""Unit vectors are multiplied by this, so that weights near 1 can tell them apart."""
DECAY = 1e-3
"""L2 penalty; chosen on the development questions (docs/decisions/0072-one-ranking.md)."""
STEPS = 60


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """A fitted reader; `weights` float32 [dimensions + 1, classes], the last row the bias."""

    weights: Vectors

    def log_probabilities(self, vectors: Vectors) -> Vectors:
        """Of each class for each of `vectors`: [texts, classes]."""
        scores = _with_one(vectors) @ self.weights
        scores -= scores.max(axis=1, keepdims=True)
        log: Vectors = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        return log


def fit(vectors: Vectors, classes: Classes, count: int) -> Reader:
    """The reader that finds `classes` [texts], each below `count`, in `vectors`."""
    inputs, rows = _with_one(vectors), len(vectors)
    wanted = np.eye(count, dtype=np.float32)[classes]
    decay = np.full((inputs.shape[1], 1), 2 * DECAY, np.float32)
    decay[-1] = 1e-6  # the bias is free; a trace keeps the curvature regular
    curvature = 0.5 * inputs.T @ inputs / rows + np.diag(decay[:, 0])
    step = np.linalg.inv(curvature.astype(np.float64)).astype(np.float32)
    before: Vectors = np.zeros((inputs.shape[1], count), np.float32)
    weights = before
    for number in range(STEPS):
        ahead = weights + np.float32(number / (number + 3)) * (weights - before)
        error = np.exp(Reader(ahead).log_probabilities(vectors)) - wanted
        slope: Vectors = inputs.T @ error / np.float32(rows) + decay * ahead
        before, weights = weights, ahead - step @ slope
    return Reader(weights)


def _with_one(vectors: Vectors) -> Vectors:
    ones = np.ones((len(vectors), 1), np.float32)
    return np.concatenate([np.float32(SHARPNESS) * vectors, ones], axis=1)

"""The golden texts: what a graph for a GPU that reads texts must compute as the processor does.

What golden.py is for decoders. Owns the texts, the way through them, and the comparison of what
comes out. Texts of several lengths are computed together, so that padding counts, then a longer one
alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime as ort

from appliance.bundle.specs import Reading, RerankSpec
from appliance.compiler import golden
from appliance.compiler.probe import Array, encoder_feed, run_outputs
from appliance.compiler.record import Comparison
from appliance.errors import UnsupportedError

_TOGETHER = (40, 23, 9, 2, 1)
_ALONE = 96
"""Tokens of each text; of the longest one alone only as many as the processor reads in time."""
_SEED = 26
_SMALLEST_CHANCE = 1e-30

BOUNDS: Mapping[str, float] = {"fp32": 0.02, "int8": 0.1}
"""Largest relative error of a vector, or of all scores, by the grade of the processor's graph.

As for decoders (golden.py): in `int8` the processor rounds activations to 8 bits as well."""


def batches(spec: Reading) -> list[tuple[Array, Array]]:
    """Tokens and mask of each golden batch, both [B, S]: the same on each call."""
    assert isinstance(spec.vocab_size, int), "the manifest was checked: it has a graph for a GPU"
    draw = np.random.default_rng(_SEED)
    found = []
    for lengths in (_TOGETHER, (_ALONE,)):
        fit = np.minimum(lengths, spec.max_length)[:, None]
        mask = (np.arange(fit.max())[None] < fit).astype(np.int64)
        found.append((draw.integers(0, spec.vocab_size, mask.shape) * mask, mask))
    return found


def outputs(session: ort.InferenceSession, spec: Reading) -> Array:
    """What the graph makes of the golden texts: vectors [texts, dimensions], or one row of scores.

    Raises UnsupportedError if a run fails or gives no finite numbers.
    """
    found = np.concatenate([_run(session, ids, mask) for ids, mask in batches(spec)])
    return said(found, spec) if isinstance(spec, RerankSpec) else found


def said(scores: Array, spec: RerankSpec) -> Array:
    """What the model says before a sigmoid, whose ends look alike; scores [texts] -> [1, texts]."""
    return (_log_odds(scores) if spec.sigmoid is True else scores)[None]


def read_longest(session: ort.InferenceSession, spec: Reading) -> None:
    """Compute a text as long as any may be. Raises UnsupportedError if there is no room for it."""
    assert isinstance(spec.vocab_size, int)
    ids = np.arange(spec.max_length, dtype=np.int64)[None] % spec.vocab_size
    try:
        _run(session, ids, np.ones_like(ids))
    except UnsupportedError as error:
        raise UnsupportedError(
            f"the longest text, {spec.max_length} tokens, cannot be computed: {error.message}",
            hint="stop what else uses the GPU and compile again, or take one with more memory",
        ) from error


def compare(measured: Array, expected: Array, grade: str) -> Comparison:
    """How far `measured` is from `expected`, of the same shape. Raises UnsupportedError."""
    return golden.compare(measured, expected, grade, BOUNDS)


def _run(session: ort.InferenceSession, ids: Array, mask: Array) -> Array:
    (made,) = run_outputs(session, encoder_feed(session, ids, mask)).values()
    return made


def _log_odds(chances: Array) -> Array:
    certain = 1 - np.finfo(np.float32).epsneg
    within = np.clip(chances.astype(np.float64), _SMALLEST_CHANCE, certain)
    odds: Array = np.log(within / (1 - within)).astype(np.float32)
    return odds

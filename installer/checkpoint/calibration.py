"""How large keys and values get: the scales of an 8-bit cache, found by running the model.

Owns the texts that are run and the rounding of what was seen. The texts are in this file and go
through the checkpoint's own template and tokenizer, so the same checkpoint on the same kind of
machine gives the same bytes. Refuses a model whose peaks are not finite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from appliance.errors import CheckpointError
from installer.checkpoint.graph.byte_slots import CacheScales
from installer.checkpoint.graph.cached import PAIR
from installer.checkpoint.probe import open_graph
from installer.checkpoint.quantize import Float32

TEXTS = (
    "Summarise the following in two sentences. The harbour of the old town froze three times in "
    "the last century, in 1929, 1947 and 1963; each time the ferries stopped for weeks, and flour "
    "rose from 0.42 to 1.15 crowns a pound. The council then built a road around the bay, 37 km "
    "long, which nobody used in summer.",
    'def mean(values: list[float]) -> float:\n    """Raises ValueError if there are none."""\n'
    "    if not values:\n        raise ValueError('no values')\n"
    "    return sum(values) / len(values)\n\n\nclass Stack<T> { private T[] items; }\n"
    "SELECT name, COUNT(*) FROM orders WHERE placed >= '2024-01-31' GROUP BY name HAVING n > 3;",
    '{"id": 4711, "tags": ["urgent", "billing"], "customer": {"name": "Zoë Ångström", "vip": true},'
    ' "amounts": [12.5, -0.003, 1e6], "note": null}\n| item | price |\n| --- | ---: |\n| nut | 3 |',
    "Wie spät ist es? ¿Dónde está la biblioteca? Où habitez-vous ? Привет, как дела? "
    "你好,请把这段话翻译成英文。 こんにちは、元気ですか。 مرحبا بالعالم 🙂🚀 ∑ x² ≤ π/2",
    "Let x + y = 17 and 3x - 2y = 1. Adding twice the first equation to the second gives 5x = 35, "
    "so x = 7 and y = 10. Check: 3 * 7 - 2 * 10 = 1. First, therefore, however, because, finally: "
    "step by step, we see that the answer is 7.",
    'THE END. chapter i: "Well," said she -- \'tis late... www.example.org/a?b=c&d=%20 '
    "a@b.example +47 22 33 44 55; 10:45 PM; $9.99; 50 %; C:\\temp\\new.txt\n\n\n\t- one\n- two",
)
"""Prose, code, data, languages, arithmetic, odd characters."""

_SPREAD = 512
"""Token ids taken evenly from the whole vocabulary, so that rare ones are seen too."""
_MARGIN = 1.25
"""Peaks of texts that are not in the sample reach beyond those that are."""
_MANTISSA_BITS = 8
"""Scales are rounded up to so many: the last bits of a peak differ between kinds of machine."""


def calibrate(
    graph: Path,
    weights: Path,
    prompts: Sequence[Sequence[int]],
    layers: int,
    advance: Callable[[int], None],
) -> CacheScales:
    """Run the `Observed` graph on `prompts` (token ids); its weights lie in `weights`.

    `advance` is told the tokens as they are done. Raises CheckpointError.
    """
    session = open_graph(graph, weights)
    peaks: list[Float32] | None = None
    for prompt in prompts:
        seen = _run(session, prompt)
        peaks = (
            seen if peaks is None else [np.maximum(a, b) for a, b in zip(peaks, seen, strict=True)]
        )
        advance(len(prompt))
    assert peaks is not None, "there is at least one prompt"
    if not all(np.isfinite(peak).all() for peak in peaks):
        raise CheckpointError(
            "the model's keys or values are not finite numbers",
            hint="the checkpoint is damaged, or its config.json belongs to another",
        )
    scales = [_scale(peak) for peak in peaks]
    return CacheScales([(scales[2 * i], scales[2 * i + 1]) for i in range(layers)])


def spread(vocab: int, length: int) -> list[int]:
    """Token ids from all over the vocabulary, in an order that jumps."""
    count = min(_SPREAD, vocab, length)
    ids = [index * vocab // count for index in range(count)]
    return ids[::2] + ids[1::2][::-1]


def _run(session: ort.InferenceSession, prompt: Sequence[int]) -> list[Float32]:
    """Peaks of keys and values of each layer in turn."""
    names = [output.name for output in session.get_outputs()]
    layers = len(names) // len(PAIR)
    wanted = [f"{name}_peaks_{layer}" for layer in range(layers) for name in PAIR]
    feed = {
        "input_ids": np.array([prompt], np.int64),
        "seqlens_k": np.array([len(prompt) - 1], np.int32),
        "total_sequence_length": np.array(len(prompt), np.int32),
        "start": np.zeros(1, np.int64),
    }
    peaks: list[Float32] = session.run(wanted, feed)
    return peaks


def _scale(peaks: Float32) -> Float32:
    """The step that 127 of reach the peak; a channel that was silent gets a small one."""
    least = max(float(peaks.max()) * 1e-3, 1e-6)
    mantissa, exponent = np.frexp(np.maximum(peaks, least) * np.float32(_MARGIN / 127))
    grid = 1 << _MANTISSA_BITS
    scales: Float32 = np.ldexp(np.ceil(mantissa * grid) / grid, exponent).astype(np.float32)
    return scales

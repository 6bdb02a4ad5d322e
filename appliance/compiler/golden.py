"""The golden prompt: what a graph for a GPU must compute as the processor does.

Owns the prompt, the two ways through it, and the comparison. A graph for a GPU may be in stages,
each on a GPU of its own: the first is given the tokens, the last gives their logits. Both go the
same way: a prompt in two pieces over a cache, then single tokens and two at once as with a draft,
whatever the model would have said. As when it is served, the graph is told of steps only a bound of
how long they are.
The processor's logits come from another interpreter as a file, because the two runtimes cannot be
in one.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime as ort

from appliance.bundle.specs import DecoderSpec
from appliance.compiler.probe import (
    Array,
    adapter_feed,
    advance,
    cannot_run,
    empty_cache,
    no_images,
    not_finite,
    takes_adapters,
    written_again,
)
from appliance.compiler.record import Comparison
from appliance.errors import UnsupportedError
from appliance.fsops import read_regular

NAME = "golden.npy"
CAPACITY = 64
"""Positions of the slot, where the graph takes any number."""
_PROMPT, _STEPS, _ROWS = 32, 4, 4
_SINGLE = 2
"""Steps of one token; what is left of `_STEPS` is one with a draft."""
_SEED = 20
_SHOWN = 0.05
"""Standard deviation of an image's features, about that of words."""
_MAX_BYTES = 1 << 30

BOUNDS: Mapping[str, float] = {
    "fp32": 0.02,
    "fp16": 0.02,
    "fp8": 0.02,
    "int8": 0.1,
    "int4": 0.1,
    "w8a8": 0.25,
    "w4a8": 0.25,
}
"""Largest relative error of a token's logits, by the grade of the processor's graph.

The graph for the GPU has the same weights in half precision; what is allowed is the rounding of
the processor's own arithmetic: none, of weights alone, or of activations and cache besides."""


Stages = Sequence[ort.InferenceSession]
"""Of one graph, in the order in which they compute."""
Place = tuple[str, int]
"""A device: ONNX Runtime's word for its kind, and its number."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens `ids` from position `start` on; the logits of the last `rows` are compared.

    `bound` is of the sequence's length, these tokens included.
    """

    start: int
    ids: tuple[int, ...]
    rows: int
    bound: int


def pieces(spec: DecoderSpec) -> list[Piece]:
    """The golden prompt of a model: the same on each call, for the same vocabulary and context."""
    prompt, ids = _tokens(spec)
    singles = range(prompt, min(prompt + _SINGLE, len(ids)) + 1)
    prompts = [
        Piece(start, ids[start:end], min(_ROWS, end - start), end)
        for start, end in pairwise(sorted({0, prompt // 2, prompt}))
    ]
    return prompts + [
        Piece(start, ids[start:end], end - start, CAPACITY)
        for start, end in pairwise(sorted({*singles, len(ids)}))
    ]


def steps(spec: DecoderSpec, width: int) -> list[Piece]:
    """What comes behind the golden prompt's two pieces, `width` tokens a step; the rest is cut."""
    prompt, ids = _tokens(spec)
    starts = range(prompt, len(ids) - width + 1, width)
    return [Piece(start, ids[start : start + width], width, CAPACITY) for start in starts]


def _tokens(spec: DecoderSpec) -> tuple[int, tuple[int, ...]]:
    """How many tokens the prompt has, and these with those behind it."""
    total = min(_PROMPT + _STEPS, CAPACITY, spec.context_length)
    ids = np.random.default_rng(_SEED).integers(0, spec.vocab_size, total).tolist()
    return max(total - _STEPS, 1), tuple(ids)


def on_processor(
    prompts: ort.InferenceSession, decoder: ort.InferenceSession, spec: DecoderSpec
) -> Array:
    """Logits [rows, vocab] of the golden prompt by the graphs for the processor.

    `prompts` computes pieces, `decoder` single tokens; they are one session where one graph does
    both. Raises UnsupportedError if a run fails.
    """
    cache = empty_cache(decoder, spec, CAPACITY)
    found = []
    for piece in pieces(spec):
        session = prompts if len(piece.ids) > 1 else decoder
        images = _images(session, piece)
        made = advance(session, cache, piece.start, piece.ids, piece.rows, images)
        found.append(made["logits"])
    return np.concatenate(found)


def on_device(
    prompts: Stages,
    decoder: Stages,
    spec: DecoderSpec,
    places: Sequence[Place],
    capacity: int = CAPACITY,
) -> Array:
    """The same by graphs in half precision, with the cache of each stage at its place.

    Of graphs with room for adapters: with nobody's rows, then once more with those of one.
    Raises UnsupportedError if a run fails, or if `greedy` is not what the logits say.
    """
    masks = (0.0, 1.0) if any(map(takes_adapters, decoder)) else (0.0,)
    return np.concatenate(
        [
            _on_device(prompts, decoder, spec, slots(decoder, spec, places, capacity), mask)
            for mask in masks
        ]
    )


def _on_device(
    prompts: Stages,
    decoder: Stages,
    spec: DecoderSpec,
    taken: Mapping[str, ort.OrtValue],
    mask: float,
) -> Array:
    found = []
    for piece in pieces(spec):
        stages = prompts if len(piece.ids) > 1 else decoder
        logits, greedy = run_piece(stages, taken, piece, mask=mask)
        chosen = np.take_along_axis(logits, greedy[:, None], axis=1)[:, 0]
        if not np.array_equal(chosen, logits.max(axis=1)):
            raise UnsupportedError(
                "the graph's greedy tokens are not those with the highest logits",
                hint="report this with the output of `appliance status --json`",
            )
        found.append(logits)
    return np.concatenate(found)


def compare(
    measured: Array, golden: Array, grade: str, bounds: Mapping[str, float] = BOUNDS
) -> Comparison:
    """How far each row of `measured` is from that of `golden`. Raises UnsupportedError."""
    bound = bounds[grade]
    if measured.shape != golden.shape:
        raise UnsupportedError(
            f"the golden results have the shape {golden.shape}, not {measured.shape}"
        )
    if not np.isfinite(measured).all():
        raise not_finite()
    away = np.linalg.norm(measured - golden, axis=1) / np.linalg.norm(golden, axis=1)
    error = float(away.max())
    if not error <= bound:
        raise UnsupportedError(
            f"golden results differ from the processor's by {error:.3f}, more than {bound}",
            hint="report this with the output of `appliance status --json`",
            code="golden_differs",
        )
    return Comparison(error=round(error, 6), bound=bound)


def write(results: Array, directory: Path) -> None:
    """Write the golden logits, or what a model that reads gives, into `directory`."""
    np.save(directory / NAME, results.astype(np.float32), allow_pickle=False)


def read(directory: Path) -> Array:
    """What is written in `directory`. Raises UnsupportedError, LayoutError."""
    data = read_regular(directory / NAME, limit=_MAX_BYTES, name=NAME)
    try:
        logits: Array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UnsupportedError(f"the golden results cannot be read: {error}") from error
    return logits


def slots(
    stages: Stages, spec: DecoderSpec, places: Sequence[Place], capacity: int = CAPACITY
) -> dict[str, ort.OrtValue]:
    """Name of each past input -> an empty slot."""
    return {
        name: ort.OrtValue.ortvalue_from_numpy(empty, *place)
        for session, place in zip(stages, places, strict=True)
        for name, empty in empty_cache(session, spec, capacity).items()
    }


def bind_slots(
    session: ort.InferenceSession, binding: ort.IOBinding, taken: Mapping[str, ort.OrtValue]
) -> None:
    """The stage's slots as past and as present at once, as they are when the model is served."""
    again = written_again(session)
    for name in {entry.name for entry in session.get_inputs()} & taken.keys():
        binding.bind_ortvalue_input(name, taken[name])
        others = again.get(name.removeprefix("past_"), ())
        for written in (name.replace("past", "present"), *others):
            binding.bind_ortvalue_output(written, taken[name])


def feed(session: ort.InferenceSession, piece: Piece, mask: float = 0.0) -> dict[str, Array]:
    """What the graph takes for a piece, but the cache; `mask`: see `adapter_feed`."""
    names = {entry.name for entry in session.get_inputs()}
    given = {name: array for name, array in _feed(piece) if name in names}
    given |= adapter_feed(session, len(piece.ids), mask=mask)
    return given | _images(session, piece)


def run_piece(
    stages: Stages,
    taken: Mapping[str, ort.OrtValue],
    piece: Piece,
    options: ort.RunOptions | None = None,
    *,
    mask: float = 0.0,
) -> tuple[Array, Array]:
    """Logits [rows, vocab] and the likeliest tokens [rows] of a piece. Raises UnsupportedError."""
    made: dict[str, Array] = {}
    for session in stages:
        made = run_stage(session, feed(session, piece, mask) | made, taken, options)
    return made["logits"], made["greedy"]


def run_stage(
    session: ort.InferenceSession,
    given: Mapping[str, Array],
    taken: Mapping[str, ort.OrtValue],
    options: ort.RunOptions | None = None,
) -> dict[str, Array]:
    """What a stage makes beside its cache, by name. Raises UnsupportedError."""
    binding = session.io_binding()
    for name, array in given.items():
        binding.bind_cpu_input(name, array)
    bind_slots(session, binding, taken)
    results = _made_by(session)
    for name in results:
        binding.bind_output(name, "cpu")
    try:
        # The runtime's exceptions share no base class but Exception.
        session.run_with_iobinding(binding, options)
    except Exception as error:
        raise cannot_run(error) from error
    # Outputs come in the order in which they were bound.
    last = binding.get_outputs()[-len(results) :]
    return {name: value.numpy() for name, value in zip(results, last, strict=True)}


def _made_by(session: ort.InferenceSession) -> list[str]:
    names = (entry.name for entry in session.get_outputs())
    return [name for name in names if not name.startswith("present_")]


def _feed(piece: Piece) -> Iterator[tuple[str, Array]]:
    """Every input that some graph for a GPU has, but the cache."""
    count = len(piece.ids)
    total = piece.start + count
    yield "input_ids", np.array([piece.ids], np.int64)
    yield "seqlens_k", np.array([total - 1], np.int32)
    yield "total_sequence_length", np.array(piece.bound, np.int32)
    yield "starts", np.array([piece.start], np.int64)
    yield "rows", np.arange(count - piece.rows, count, dtype=np.int64)


def _images(session: ort.InferenceSession, piece: Piece) -> dict[str, Array]:
    """What a decoder that reads images takes beside: half of what is more than a token shows one.

    Nothing for one that reads words alone.
    """
    feed = no_images(session, piece.start, len(piece.ids))
    shown = len(piece.ids) // 2
    if not (feed and shown):
        return feed
    numbers = np.arange(shown)
    if "positions" in feed:
        feed["positions"][0, :shown, 1:] += np.stack(np.divmod(numbers, 4), axis=1)
    if (nothing := feed.get("features")) is None:
        return feed
    levels, _, width = nothing.shape
    some = np.random.default_rng(_SEED + piece.start).normal(0, _SHOWN, (levels, shown, width))
    feed["features"] = np.concatenate([nothing, some.astype(nothing.dtype)], axis=1)
    feed["feature_index"][0, :shown] = 1 + numbers
    return feed

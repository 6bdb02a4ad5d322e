"""Short runs of a graph on the processor, to see that its numbers are numbers.

Owns what a decoder and an encoder are fed for that. Knows nothing of files.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from appliance.bundle.specs import DecoderSpec, Spec, VisionSpec
from appliance.errors import UnsupportedError, first_line
from appliance.native import contract

Array = npt.NDArray[Any]
Cache = dict[str, Array]
"""Name of a past input -> one slot [1, kv_heads, capacity, head_dim], or a running state."""
ADAPTER = "adapter_"
"""How the names of inputs for adapters begin."""
AGAIN = "."
"""In names of outputs: behind it stands a layer that reads another's keys and values, and writes
them to the same place as that does."""
_TOKENS = 4
_PLAIN_AXES = 4
_TOWER_TOKENS = 4
_GIVEN = 0.1
_DTYPES: Mapping[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
}


def run_probe(session: ort.InferenceSession, spec: Spec) -> list[Array]:
    """All outputs of one run; of two for a decoder: a prompt, then more tokens.

    Raises UnsupportedError if the run fails or an output is not finite.
    """
    if not isinstance(spec, DecoderSpec):
        ids = np.arange(min(_TOKENS, spec.max_length), dtype=np.int64)[None]
        return list(run_outputs(session, encoder_feed(session, ids, np.ones_like(ids))).values())
    first = min(_TOKENS, spec.context_length - 1)
    cache = empty_cache(session, spec, contract.LANES)
    results: list[Array] = []
    for start, count in ((0, first), (first, 1)):
        ids = np.arange(start, start + count) % spec.vocab_size
        results += advance(session, cache, start, ids.tolist()).values()
    return results


def run_tower_probe(session: ort.InferenceSession, vision: VisionSpec) -> list[Array]:
    """All outputs of one run of a vision tower. Raises UnsupportedError as `run_probe` does."""
    count = _TOWER_TOKENS * vision.merge**2
    numbers = np.arange(count, dtype=np.int64)
    given = {entry.name: entry for entry in session.get_inputs()}
    width = given["patches"].shape[1]
    feed = {
        "patches": np.sin(np.arange(count * width, dtype=np.float32)).reshape(count, width),
        "positions": np.stack([numbers // 2, numbers % 2], axis=1),
        "corners": np.tile(numbers[:, None] % 2, 4),
        "corner_weights": np.full((count, 4), 0.25, np.float32),
        "windows": numbers.reshape(2, -1),
        "window_mask": np.ones((2, count // 2), np.int32),
        "places": numbers,
    }
    chosen = {name: value for name, value in feed.items() if name in given}
    return list(run_outputs(session, chosen).values())


def encoder_feed(session: ort.InferenceSession, ids: Array, mask: Array) -> dict[str, Array]:
    """What an encoder or reranker graph takes for one batch, all tokens of the first type."""
    feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return {entry.name: feed[entry.name] for entry in session.get_inputs()}


def empty_cache(session: ort.InferenceSession, spec: DecoderSpec, capacity: int) -> Cache:
    """One slot of `capacity` positions."""
    past = [entry for entry in session.get_inputs() if entry.name.startswith("past_")]
    return {
        entry.name: np.zeros(
            (1, *entry.shape[1:])
            if is_state(entry.name)
            else _slot(spec, entry.name, len(entry.shape), capacity),
            _DTYPES[entry.type],
        )
        for entry in past
    }


def _slot(spec: DecoderSpec, name: str, axes: int, capacity: int) -> tuple[int, ...]:
    """Sizes of the slot of a past input, which a graph of native operators keeps in blocks."""
    heads = spec.layer_heads[int(name.rpartition("_")[2])]
    if axes == _PLAIN_AXES:
        return (1, heads.kv_heads, capacity, heads.head_dim)
    together = (contract.LANES, contract.DEPTH)
    blocks = (capacity // together[0], heads.head_dim // together[1])
    return (1, heads.kv_heads, *blocks, math.prod(together))


def written_again(session: ort.InferenceSession) -> dict[str, list[str]]:
    """`key_0`, ... -> the outputs by which other layers write the same there."""
    found: dict[str, list[str]] = {}
    for entry in session.get_outputs():
        if AGAIN in entry.name:
            slot = entry.name.partition(AGAIN)[0].removeprefix("present_")
            found.setdefault(slot, []).append(entry.name)
    return found


def is_state(name: str) -> bool:
    """Whether it is of a layer with a running state, which has no positions."""
    return name.startswith(("past_state_", "past_tail_", "past_further_"))


def advance(
    session: ort.InferenceSession,
    cache: Cache,
    start: int,
    ids: Sequence[int],
    rows: int = 1,
    beside: Mapping[str, Array] | None = None,
) -> dict[str, Array]:
    """Compute `ids` of one sequence from position `start` on; `cache` then holds them too.

    `beside` is what a decoder that reads images takes for them; None for words alone. Returns all
    outputs by name; `logits` are those of the last `rows` tokens. Raises UnsupportedError as
    `run_probe` does.
    """
    shapes = {entry.name: entry.shape for entry in session.get_inputs()}
    inputs = shapes.keys()
    images = no_images(session, start, len(ids)) if beside is None else beside
    feed = _decoder_feed(start, ids, rows) | dict(images) | cache
    if "spans" in inputs:  # tokens of several sequences in a row, not a table of them
        feed |= {"input_ids": np.array(ids, np.int64)}
    if "states" in inputs:
        feed["states"] = _states(start, len(ids), shapes["states"][1])
    feed |= adapter_feed(session, len(ids))
    made = run_outputs(session, {name: value for name, value in feed.items() if name in inputs})
    _extend(cache, made, start, len(ids))
    return made


def _extend(cache: Cache, outputs: dict[str, Array], start: int, count: int) -> None:
    """Put what a run made into the cache: whole slots, or the new positions alone."""
    for name, slot in cache.items():
        made = outputs.get(name.replace("past", "present"))
        if made is not None:
            cache[name] = made
            continue
        new = outputs[name.replace("past", "new")]
        heads, size = slot.shape[1], slot.shape[3]
        slot[0, :, start : start + count] = new.reshape(count, heads, size).swapaxes(0, 1)


def _decoder_feed(start: int, ids: Sequence[int], rows: int) -> dict[str, Array]:
    """Every input that some form of decoder graph for the processor has."""
    count = len(ids)
    total = start + count
    return {
        "input_ids": np.array([ids], np.int64),
        "seqlens_k": np.array([total - 1], np.int32),
        "total_sequence_length": np.array(total, np.int32),
        "last_index": np.array([count - 1], np.int64),
        "rows": np.arange(count - rows, count, dtype=np.int64),
        "query_seqlens": np.array([count], np.int32),
        "start": np.array([start], np.int64),
        "spans": np.array([[0, start, count]], np.int32),
        "starts": np.array([start], np.int64),
    }


def takes_adapters(session: ort.InferenceSession) -> bool:
    """Whether the graph has room for adapters."""
    return any(entry.name.startswith(ADAPTER) for entry in session.get_inputs())


def adapter_feed(
    session: ort.InferenceSession, tokens: int, *, mask: float = 1.0
) -> dict[str, Array]:
    """Rows of one adapter, for a graph that has room for them: the same for every such graph of a
    model, and large enough to matter. With a `mask` of 0 they are nobody's.
    """
    sizes = {"batch": 1, "tokens": tokens}
    feed = {}
    for entry in session.get_inputs():
        if not entry.name.startswith(ADAPTER):
            continue
        shape = [size if isinstance(size, int) else sizes.get(size, 2) for size in entry.shape]
        if entry.name.startswith(f"{ADAPTER}mask_"):
            numbers = np.full(shape, mask)
        else:
            # What the rows take of the numbers is about as large as those, and a tenth is given.
            scale = _GIVEN if entry.name.startswith(f"{ADAPTER}up_") else shape[1] ** -0.5
            random = np.random.default_rng(zlib.crc32(entry.name.encode()))
            numbers = random.normal(0, scale, shape)
        feed[entry.name] = numbers.astype(_DTYPES[entry.type])
    return feed


def _states(start: int, count: int, width: int) -> Array:
    """What a head takes beside the tokens: some state of each, [count, width]."""
    numbers = np.arange(start * width, (start + count) * width, dtype=np.float32)
    return np.sin(numbers).reshape(count, width)


def no_images(session: ort.InferenceSession, start: int, count: int) -> dict[str, Array]:
    """What a decoder that reads images takes beside `count` words from `start` on; else nothing.

    Of one in stages: what this stage takes of that.
    """
    inputs = {entry.name: entry for entry in session.get_inputs()}
    feed: dict[str, Array] = {}
    if "positions" in inputs:
        positions = np.arange(start, start + count, dtype=np.int64)
        feed["positions"] = np.repeat(positions[None, :, None], 3, axis=2)
    if "features" in inputs:
        levels, _, width = inputs["features"].shape
        feed["features"] = np.zeros((levels, 1, width), _DTYPES[inputs["features"].type])
        feed["feature_index"] = np.zeros((1, count), np.int64)
    return feed


def run_outputs(session: ort.InferenceSession, feed: dict[str, Array]) -> dict[str, Array]:
    """Name of each output -> what one run gives. Raises UnsupportedError as `run_probe` does."""
    try:
        # The runtime's exceptions share no base class but Exception.
        outputs: list[Array] = session.run(None, feed)
    except Exception as error:
        raise cannot_run(error) from error
    if not all(np.isfinite(output).all() for output in outputs):
        raise not_finite()
    names = [entry.name for entry in session.get_outputs()]
    return dict(zip(names, outputs, strict=True))


def cannot_run(error: Exception) -> UnsupportedError:
    """What to raise where the runtime raised `error`."""
    return UnsupportedError(
        f"ONNX Runtime cannot run the graph: {first_line(error)}",
        hint="the bundle needs another release of the appliance",
    )


def not_finite() -> UnsupportedError:
    """What to raise where a graph computes NaN or infinity."""
    return UnsupportedError(
        "the graph's outputs are not finite numbers",
        hint="the model's weights are damaged: build the bundle again",
    )

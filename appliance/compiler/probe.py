"""One short run of a graph, to see that its numbers are numbers.

Owns what a decoder and an encoder are fed for that. Knows nothing of files.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from appliance.bundle.manifest import DecoderSpec, EncoderSpec
from appliance.errors import UnsupportedError

Array = npt.NDArray[Any]
_TOKENS = 4
_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}


def run_probe(session: ort.InferenceSession, spec: DecoderSpec | EncoderSpec) -> list[Array]:
    """All outputs of one run; of two for a decoder: a prompt, then more tokens.

    Raises UnsupportedError if the run fails or an output is not finite.
    """
    if isinstance(spec, EncoderSpec):
        ids = np.arange(min(_TOKENS, spec.max_length), dtype=np.int64)[None]
        return _run(session, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    inputs = {entry.name for entry in session.get_inputs()}
    outputs = [entry.name for entry in session.get_outputs()]
    first = min(_TOKENS, spec.context_length - 1)
    cache = _empty_cache(session, spec)
    results: list[Array] = []
    for start, count in ((0, first), (first, 1)):
        feed = _decoder_feed(spec, start, count) | cache
        new = _run(session, {name: value for name, value in feed.items() if name in inputs})
        _extend(cache, dict(zip(outputs, new, strict=True)), start, count)
        results += new
    return results


def _empty_cache(session: ort.InferenceSession, spec: DecoderSpec) -> dict[str, Array]:
    shape = (1, spec.kv_heads, 2 * _TOKENS, spec.head_dim)
    return {
        entry.name: np.zeros(shape, _DTYPES[entry.type])
        for entry in session.get_inputs()
        if entry.name.startswith("past_")
    }


def _extend(cache: dict[str, Array], outputs: dict[str, Array], start: int, count: int) -> None:
    """Put what a run made into the cache: whole slots, or the new positions alone."""
    for name, slot in cache.items():
        made = outputs.get(name.replace("past", "present"))
        if made is not None:
            cache[name] = made
            continue
        new = outputs[name.replace("past", "new")]
        heads, size = slot.shape[1], slot.shape[3]
        slot[0, :, start : start + count] = new.reshape(count, heads, size).swapaxes(0, 1)


def _decoder_feed(spec: DecoderSpec, start: int, count: int) -> dict[str, Array]:
    """Every input that some form of decoder graph has."""
    total = start + count
    ids = np.arange(start, total, dtype=np.int64) % spec.vocab_size
    return {
        "input_ids": ids[None],
        "seqlens_k": np.array([total - 1], np.int32),
        "total_sequence_length": np.array(total, np.int32),
        "last_index": np.array([count - 1], np.int64),
        "rows": np.array([count - 1], np.int64),
        "query_seqlens": np.array([count], np.int32),
        "start": np.array([start], np.int64),
        "starts": np.array([start], np.int64),
    }


def _run(session: ort.InferenceSession, feed: dict[str, Array]) -> list[Array]:
    try:
        # The runtime's exceptions share no base class but Exception.
        outputs: list[Array] = session.run(None, feed)
    except Exception as error:
        raise UnsupportedError(
            f"ONNX Runtime cannot run the graph: {str(error).splitlines()[0]}",
            hint="the bundle needs another release of the appliance",
        ) from error
    if not all(np.isfinite(output).all() for output in outputs):
        raise UnsupportedError(
            "the graph's outputs are not finite numbers",
            hint="the model's weights are damaged: build the bundle again",
        )
    return outputs

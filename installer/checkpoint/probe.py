"""One run of a freshly built graph, before anyone signs it.

Owns the question whether the runtime accepts the graph and its numbers are numbers. Refuses a
graph whose outputs are not finite. Weights are mapped, not prepacked, so that the probe needs no
more memory than the rest of the build.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from appliance.bundle.manifest import DecoderSpec, EncoderSpec
from appliance.errors import CheckpointError

_TOKENS = 4
Array = npt.NDArray[Any]


def probe(graph: Path, spec: DecoderSpec | EncoderSpec) -> None:
    """Run `graph` once, a decoder twice (a prompt, then one more token). Raises CheckpointError."""
    session = _session(graph)
    if isinstance(spec, EncoderSpec):
        ids = np.arange(_TOKENS, dtype=np.int64)[None]
        _check(session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)}))
        return
    cache = _empty_cache(spec)
    names = [output.name for output in session.get_outputs()]
    for start, count in ((0, _TOKENS), (_TOKENS, 1)):
        results = session.run(None, _decoder_feed(spec, start, count) | cache)
        _check(results)
        cache = {
            name.replace("present", "past"): value
            for name, value in zip(names, results, strict=True)
            if name.startswith("present")
        }


def _session(graph: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.intra_op_num_threads = 1
    try:
        # The runtime's exceptions share no base class but Exception.
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CheckpointError(
            f"the runtime refuses the graph: {error}", hint="this is a fault of the builder"
        ) from error


def _empty_cache(spec: DecoderSpec) -> dict[str, Array]:
    shape = (1, spec.kv_heads, 2 * _TOKENS, spec.head_dim)
    return {
        f"past_{name}_{layer}": np.zeros(shape, np.float32)
        for layer in range(spec.layers)
        for name in ("key", "value")
    }


def _decoder_feed(spec: DecoderSpec, start: int, count: int) -> dict[str, Array]:
    total = start + count
    ids = np.arange(start, total, dtype=np.int64) % spec.vocab_size
    return {
        "input_ids": ids[None],
        "seqlens_k": np.array([total - 1], np.int32),
        "total_sequence_length": np.array(total, np.int32),
        "last_index": np.array([count - 1], np.int64),
    }


def _check(outputs: list[Array]) -> None:
    if not all(np.isfinite(output).all() for output in outputs):
        raise CheckpointError(
            "the graph's outputs are not finite", hint="the checkpoint's weights are damaged"
        )

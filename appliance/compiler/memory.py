"""What of a GPU's memory a model takes, reckoned from its manifest.

Owns the numbers, and the choice among the precisions that a bundle has. Pure: knows nothing of
any GPU but the bytes of its memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from appliance.bundle.manifest import Manifest
from appliance.bundle.specs import (
    DecoderSpec,
    Graph,
    Reading,
    RecurrentSpec,
    Spec,
    VisionSpec,
)
from appliance.compiler.hardware import Gpu
from appliance.compiler.libraries import WIDEST_HEAD
from appliance.compiler.record import Fit
from appliance.compiler.sources import weight_files
from appliance.errors import CapacityError

GIB = 1 << 30
RESERVE_BYTES = GIB
"""The driver's own share, the kernels' workspaces, and logits."""
SLOT_TOKENS = 4096
"""A model that has no room for a sequence of this length (or its context) is too large."""
TABLE_BYTES = 512 << 20
"""Of all products of queries and keys that a step may have at once, where they are stored."""
STATES = 4
"""Running states that one sequence needs: its own, two set aside, and one of nothing."""

_BYTES: Mapping[tuple[str, str], float] = {
    ("fp32", "fp16"): 0.5,
    ("fp16", "fp16"): 1.0,
    ("fp8", "fp16"): 2.0,
    ("fp8", "fp8"): 1.0,
    ("w8a8", "fp16"): 2.0,
    ("w8a8", "int8"): 1.1,
    ("int8", "fp16"): 2.0,
    ("int8", "int8"): 1.0,
    ("int4", "int4"): 1.0,
    ("w4a8", "int4"): 1.0,
}
"""Grade of the bundle, precision on the GPU -> bytes there for each byte stored.

Rows of integers become 16-bit floats when the graph is compiled, or blocks of integers with a scale
each; blocks of integers are multiplied as they are (decisions 0165 and 0168), or become floats in
models that read texts (0260)."""
_AS_STORED: Mapping[str, str] = {"int8": "int8", "int4": "int4", "w4a8": "int4"}
"""Grades whose blocks of integers a decoder in 16-bit floats multiplies as they are; as what."""


_IN_FULL: Mapping[str, int] = {"fp32": 1, "fp16": 2, "fp8": 2, "int8": 4, "int4": 4}
"""Grade of the bundle -> bytes of its tower in 32-bit floats for each byte stored."""


def on_gpu(manifest: Manifest, graph: Graph) -> str:
    """What the weights are on a GPU that computes this graph."""
    if not isinstance(manifest.spec, DecoderSpec):
        return graph.precision
    return _AS_STORED.get(manifest.graph.precision, graph.precision)


def candidates(
    manifest: Manifest, memory: int, variant: str = "cuda", *, copies: int = 1
) -> tuple[Fit, ...]:
    """What the model takes of a GPU with `memory` bytes, for each graph of `variant`.

    The most exact first. `copies` of its weights are there at least.
    """
    graphs = manifest.variants(variant)
    if not graphs:
        return ()
    stored = sum(entry.size for entry in weight_files(manifest).values())
    slot = least_bytes(manifest.spec)
    fits = []
    for graph in graphs:
        precision = on_gpu(manifest, graph)
        weights = int(stored * _BYTES[manifest.graph.precision, precision]) * copies
        weights += _tower_bytes(manifest)
        fits.append(Fit(precision=precision, weights=weights, slot=slot, memory=memory))
    return tuple(fits)


def _tower_bytes(manifest: Manifest) -> int:
    """Of a vision tower that computes on a GPU, in 32-bit floats."""
    vision = manifest.vision
    if not (isinstance(vision, VisionSpec) and isinstance(vision.cuda, str)):
        return 0
    files = weight_files(manifest, vision.graph.rpartition("/")[0])
    return sum(entry.size for entry in files.values()) * _IN_FULL[manifest.graph.precision]


def divided(fit: Fit, spec: DecoderSpec, gpus: int) -> Fit:
    """What a model that takes `fit` of one GPU takes of each if it is cut for `gpus` of them.

    A stage has no more than its share and a layer; what is not so even is found when it is cut.
    """
    weights = fit.weights // gpus + fit.weights // (spec.layers + _layers_beside(spec))
    numbers = [heads.numbers for heads in spec.layer_heads]
    slot = fit.slot // gpus + fit.slot * max(numbers) // sum(numbers)
    return msgspec.structs.replace(fit, weights=weights, slot=slot, gpus=gpus)


def _layers_beside(spec: DecoderSpec) -> int:
    """Layers that keep no keys and values."""
    return spec.recurrent.layers if isinstance(spec.recurrent, RecurrentSpec) else 0


def choose_precision(options: Sequence[Fit]) -> Fit | None:
    """The first whose weights and one sequence fit; None if none does."""
    return next((fit for fit in options if needed(fit) <= fit.memory), None)


def refuse_if_taken(gpu: Gpu, fit: Fit) -> None:
    """Raise CapacityError if what others use of the GPU leaves no room to compile."""
    least, free = fit.weights + RESERVE_BYTES, gpu.free[fit.gpus - 1]
    if free < least:
        number = gpu.numbers[fit.gpus - 1]
        raise CapacityError(
            f"{gpu.name} (GPU {number}) has {free / GIB:.1f} GiB free now; compiling takes "
            f"{least / GIB:.1f}",
            hint="stop what uses the GPU, and compile again",
            code="gpu_busy",
        )


def least_bytes(spec: Spec) -> int:
    """What a model needs beside its weights: the cache of one sequence, or the longest text."""
    if isinstance(spec, DecoderSpec):
        slot = min(spec.context_length, SLOT_TOKENS) * slot_token_bytes(spec)
        states = spec.recurrent.nbytes if isinstance(spec.recurrent, RecurrentSpec) else 0
        return slot + STATES * states + table_bytes(spec)
    return spec.max_length * reading_bytes(spec)


def table_bytes(spec: DecoderSpec) -> int:
    """What kernels take for the products of queries and keys, where heads are too wide for those
    that keep none (docs/decisions/0307-gemma-4-on-a-gpu.md)."""
    return TABLE_BYTES if spec.head_dim > WIDEST_HEAD else 0


def reading_bytes(spec: Reading) -> int:
    """What a token takes while a text is read."""
    assert isinstance(spec.token_bytes, int), "the manifest was checked: it has a graph for a GPU"
    return spec.token_bytes


def slot_token_bytes(spec: DecoderSpec) -> int:
    """Bytes of one token's keys and values over all layers, in half precision."""
    return 2 * 2 * sum(heads.numbers for heads in spec.layer_heads)


def needed(fit: Fit) -> int:
    """Bytes without which the model does not run."""
    return fit.weights + fit.slot + RESERVE_BYTES

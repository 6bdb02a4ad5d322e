"""What of a GPU's memory a model takes, reckoned from its manifest.

Owns the numbers, and the choice among the precisions that a bundle has. Pure: knows nothing of
any GPU but the bytes of its memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from appliance.bundle.manifest import DecoderSpec, Manifest
from appliance.compiler.hardware import Gpu
from appliance.compiler.record import Fit
from appliance.compiler.sources import weight_files
from appliance.errors import CapacityError

GIB = 1 << 30
RESERVE_BYTES = GIB
"""The driver's own share, the kernels' workspaces, and logits."""
SLOT_TOKENS = 4096
"""A model that has no room for a sequence of this length (or its context) is too large."""

_ON_GPU: Mapping[str, tuple[str, float]] = {
    "fp32": ("fp16", 0.5),
    "fp16": ("fp16", 1.0),
    "w8a8": ("fp16", 2.0),
    "int8": ("int8", 1.0),
    "int4": ("int4", 1.0),
}
"""Grade of the bundle -> what its weights are on a GPU, and bytes there for each byte stored.

Rows of integers become 16-bit floats when the graph is compiled; blocks of integers are multiplied
as they are (decision 0165)."""


def candidates(manifest: Manifest, memory: int, *, copies: int = 1) -> tuple[Fit, ...]:
    """What the model takes of a GPU with `memory` bytes, for each precision it can have there.

    The most exact first. The bundle's grade decides: there is one graph for each provider.
    `copies` of its weights are there at least.
    """
    spec = manifest.decoder
    assert spec is not None, "graphs for a GPU are decoders"
    precision, factor = _ON_GPU[manifest.graph.precision]
    stored = sum(entry.size for entry in weight_files(manifest).values())
    only = Fit(
        precision=precision,
        weights=int(stored * factor) * copies,
        slot=min(spec.context_length, SLOT_TOKENS) * slot_token_bytes(spec),
        memory=memory,
    )
    return (only,)


def choose_precision(options: Sequence[Fit]) -> Fit | None:
    """The first whose weights and one sequence fit; None if none does."""
    return next((fit for fit in options if needed(fit) <= fit.memory), None)


def refuse_if_taken(gpu: Gpu, fit: Fit) -> None:
    """Raise CapacityError if what others use of the GPU leaves no room to compile."""
    least = fit.weights + RESERVE_BYTES
    if gpu.free_bytes < least:
        raise CapacityError(
            f"{gpu.name} has {gpu.free_bytes / GIB:.1f} GiB free now; compiling takes "
            f"{least / GIB:.1f}",
            hint="stop what uses the GPU, and compile again",
            code="gpu_busy",
        )


def slot_token_bytes(spec: DecoderSpec) -> int:
    """Bytes of one token's keys and values over all layers, in half precision."""
    return 2 * spec.layers * spec.kv_heads * spec.head_dim * 2


def needed(fit: Fit) -> int:
    """Bytes without which the model does not run."""
    return fit.weights + fit.slot + RESERVE_BYTES

"""Which provider computes a model on a machine: TensorRT, else CUDA, else the processor.

Owns the order, and the reason for each step down. A rung is left only with its reason, which goes
into the artifact's record, the audit log and `appliance status`; what is wrong with the bundle
itself is an error and no reason. Pure, but for the attempts that it is handed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from appliance.bundle.manifest import Manifest
from appliance.bundle.specs import Adapted
from appliance.compiler.cutting import MOST_STAGES
from appliance.compiler.hardware import Gpu
from appliance.compiler.machine import Machine
from appliance.compiler.memory import GIB, candidates, choose_precision, divided, needed
from appliance.compiler.profiles import LEAST_ENGINES
from appliance.compiler.record import Fit, Provider, Refusal
from appliance.errors import CapacityError, UnsupportedError

_NO_ROOM = "room for adapters, which graphs for it have not"
LADDER: tuple[Provider, ...] = ("tensorrt", "cuda", "cpu")
"""Fastest first."""
VARIANTS: Mapping[Provider, Literal["trt", "cuda", "cpu"]] = {
    "tensorrt": "trt",
    "cuda": "cuda",
    "cpu": "cpu",
}
"""Which graph of a bundle each provider computes."""
WEIGHT_COPIES: Mapping[Provider, int] = {"tensorrt": LEAST_ENGINES, "cuda": 1}
"""TensorRT's engines have their weights to themselves."""
WIDE_SUMS = frozenset({"gemma3", "gemma3_text"})
"""Families whose sums outgrow 16 bits. Their graphs say 32, but ONNX Runtime 1.31.1 does not tell
TensorRT to keep to that (docs/decisions/0269-tensorrt-over-stand-ins.md)."""
DRIVER = 580
"""First driver that serves CUDA 13."""
CAPABILITY = (7, 5)
"""Lowest compute capability that onnxruntime-gpu 1.31.1 has kernels for: Turing."""
BYTE_FLOATS_FROM = (8, 0)
"""Lowest compute capability that its kernels for 8-bit floats are for, as its document of the
operator MatMulBlockQuantizedFp8Weight says: Ampere."""

Made = TypeVar("Made")


Attempt = Callable[[Provider, tuple[Refusal, ...]], Made]
"""Compiles for a provider of the GPU, given the reasons against those above it."""


@dataclass(frozen=True, slots=True)
class Rung(Generic[Made]):
    """Where a model ended up.

    Attributes:
        made: what the attempt gave; None at the bottom, where the processor computes.
        reasons: why each faster provider was not taken.
    """

    made: Made | None
    reasons: tuple[Refusal, ...]


def choose(manifest: Manifest, machine: Machine, attempt: Attempt[Made]) -> Rung[Made]:
    """The first rung that nothing speaks against and whose attempt succeeds, or the bottom.

    UnsupportedError and CapacityError from an attempt are reasons to step down; other errors, as
    of a bundle that does not verify, are raised.
    """
    reasons: tuple[Refusal, ...] = ()
    for provider in LADDER[:-1]:
        refusal = refused(provider, manifest, machine)
        if refusal is None:
            try:
                return Rung(attempt(provider, reasons), reasons)
            except (UnsupportedError, CapacityError) as error:
                refusal = Refusal(provider=provider, code=error.code, message=error.message)
        reasons += (refusal,)
    return Rung(None, reasons)


def refused(provider: Provider, manifest: Manifest, machine: Machine) -> Refusal | None:
    """What speaks against computing this model by `provider` here, before anything is tried."""
    for code, message in _objections(provider, manifest, machine):
        return Refusal(provider=provider, code=code, message=message)
    return None


def unusable(machine: Machine) -> Refusal | None:
    """What speaks against the machine's GPU for whatever model."""
    for code, message in _of_the_machine(machine):
        return Refusal(provider="cuda", code=code, message=message)
    return None


def _objections(
    provider: Provider, manifest: Manifest, machine: Machine
) -> Iterator[tuple[str, str]]:
    """Code and message of each, the one to be named first."""
    yield from _of_the_machine(machine)
    if manifest.variant(VARIANTS[provider]) is None:
        room = provider == "tensorrt" and isinstance(manifest.graph.adapted, Adapted)
        yield "no_variant", f"the bundle has {_NO_ROOM if room else 'no graph for it'}"
    if provider == "tensorrt" and manifest.family in WIDE_SUMS:
        yield (
            "types_not_kept",
            f"it may give sums 16 bits, which those of {manifest.family} outgrow",
        )
    libraries = machine.libraries
    if provider == "tensorrt" and libraries is not None and libraries.missing_tensorrt:
        yield "library_missing", libraries.missing_tensorrt
    if machine.gpu is not None:
        yield from _of_memory(provider, manifest, machine.gpu)


def _of_the_machine(machine: Machine) -> Iterator[tuple[str, str]]:
    gpu, libraries = machine.gpu, machine.libraries
    if gpu is None:
        yield machine.code, machine.reason
        return
    if _major(gpu.driver) < DRIVER or gpu.cuda < (13, 0):
        yield (
            "driver_too_old",
            f"the driver {gpu.driver} of {gpu.name} serves CUDA {gpu.cuda[0]}.{gpu.cuda[1]}; "
            f"CUDA 13 needs a driver from {DRIVER} on",
        )
    if gpu.capability < CAPABILITY:
        yield (
            "capability_too_low",
            f"{gpu.name} has compute capability {_dotted(gpu.capability)}, "
            f"less than {_dotted(CAPABILITY)}",
        )
    if libraries is None:
        yield "no_runtime", "this interpreter has no runtime for a GPU"
    elif libraries.missing_cuda:
        yield "library_missing", libraries.missing_cuda


def fits(provider: Provider, manifest: Manifest, gpu: Gpu) -> tuple[Fit, ...]:
    """What the model takes of the GPU in each precision that it can have there by `provider`."""
    copies = WEIGHT_COPIES[provider]
    found = candidates(manifest, gpu.memory_bytes, VARIANTS[provider], copies=copies)
    return tuple(fit for fit in found if _has_kernels(gpu, fit))


def fit_on(provider: Provider, manifest: Manifest, gpu: Gpu) -> Fit | None:
    """What the model takes of each GPU that computes it; None if there is no room for it.

    One GPU in whatever precision goes before several: a token's way through these is no shorter
    than through one. Only CUDA has stages, and only of decoders.
    """
    options = fits(provider, manifest, gpu)
    whole = choose_precision(options)
    if whole is not None or provider != "cuda" or manifest.decoder is None:
        return whole
    for count in range(2, 1 + min(len(gpu.numbers), MOST_STAGES)):
        cut = [divided(fit, manifest.decoder, count) for fit in options]
        if (found := choose_precision(cut)) is not None:
            return found
    return None


def _has_kernels(gpu: Gpu, fit: Fit) -> bool:
    return fit.precision != "fp8" or gpu.capability >= BYTE_FLOATS_FROM


def _of_memory(provider: Provider, manifest: Manifest, gpu: Gpu) -> Iterator[tuple[str, str]]:
    options = fits(provider, manifest, gpu)
    if options and fit_on(provider, manifest, gpu) is None:
        least = min(options, key=needed)
        beside = "one sequence" if manifest.decoder is not None else "the longest text"
        yield (
            "memory_too_small",
            f"{_memory_of(provider, gpu)}; weights in {least.precision} take "
            f"{least.weights / GIB:.1f}, {beside} {least.slot / GIB:.1f}, the rest "
            f"{(needed(least) - least.weights - least.slot) / GIB:.1f}",
        )


def _memory_of(provider: Provider, gpu: Gpu) -> str:
    """Of one, and of how many together, where they can be taken together."""
    each = f"{gpu.name} has {gpu.memory_bytes / GIB:.1f} GiB"
    several = provider == "cuda" and len(gpu.numbers) > 1
    return f"{each}, and there are {len(gpu.numbers)} of it" if several else each


def _major(driver: str) -> int:
    number = driver.partition(".")[0]
    return int(number) if number.isdigit() else 0


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"

"""Which shapes TensorRT's engines are built for.

Owns the plan: one engine for pieces of prompts and one or more for decoding, for each length of
the cache. Together they hold every shape that the scheduler asks for, each in exactly one of them:
an engine refuses all others. It has one profile, because ONNX Runtime's provider (1.31.1) stays on
the first one, and each engine has the weights to itself; so memory decides how finely batches are
told apart, and the time that an operator waits for all of them to be built. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from appliance.bundle.specs import DecoderSpec
from appliance.compiler.record import Fit
from appliance.config import EngineSettings
from appliance.errors import CapacityError, UnsupportedError

Phase = Literal["prefill", "decode"]

LEAST_ENGINES = 2
"""One for prompts and one for decoding, and so many copies of the weights."""
MOST_ENGINES = 12
"""They are built one after the other before a model serves, and TensorRT looks for kernels."""
MOST_ROWS = 9
"""Rows of logits asked for of a piece of a prompt: as many as tokens are guessed ahead, and one."""
_SHORTEST = 1024
"""Positions of the shortest cache; attention over a fixed one costs what all of it costs."""
_LENGTHEN = 4


class Sizes(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the plan is made from.

    Attributes:
        slots: sequences that run at once.
        chunk: tokens of the longest piece of a prompt.
        context: tokens of the longest sequence.
        engines: for which there is memory.
    """

    slots: int
    chunk: int
    context: int
    engines: int


@dataclass(frozen=True, slots=True)
class Range:
    """What a dimension may be; the engine is tuned for `usual`."""

    least: int
    usual: int
    most: int

    def holds(self, size: int) -> bool:
        return self.least <= size <= self.most


@dataclass(frozen=True, slots=True)
class Profile:
    """The shapes of one engine.

    Attributes:
        phase: pieces of one prompt, or one token of each of many sequences.
        batch: sequences.
        tokens: of each.
        rows: whose logits are asked for; of decoding as many as sequences.
        capacity: positions of each slot.
    """

    phase: Phase
    batch: Range
    tokens: Range
    rows: Range
    capacity: int

    @property
    def name(self) -> str:
        """Of the engine's files."""
        batch = "" if self.phase == "prefill" else f"-{self.batch.least}-{self.batch.most}"
        return f"{self.phase}{batch}-of-{self.capacity}"

    @property
    def graph(self) -> str:
        """Name of the file with the graph that names the engine."""
        return f"{self.name}.onnx"

    def holds(self, phase: Phase, batch: int, tokens: int, capacity: int) -> bool:
        """Whether the engine is for this step over slots of `capacity` positions."""
        return (
            (self.phase, self.capacity) == (phase, capacity)
            and self.batch.holds(batch)
            and self.tokens.holds(tokens)
        )

    def options(self, spec: DecoderSpec) -> dict[str, str]:
        """The options of ONNX Runtime's provider that say it: every input with its shape."""
        return {
            f"trt_profile_{word}_shapes": ",".join(
                f"{name}:{'x'.join(map(str, shape))}" for name, shape in self._shapes(spec, which)
            )
            for word, which in (("min", "least"), ("opt", "usual"), ("max", "most"))
        }

    def _shapes(self, spec: DecoderSpec, which: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        batch = int(getattr(self.batch, which))
        yield "input_ids", (batch, int(getattr(self.tokens, which)))
        yield "starts", (batch,)
        yield "rows", (int(getattr(self.rows, which)),)
        slot = (batch, spec.kv_heads, self.capacity, spec.head_dim)
        for layer in range(spec.layers):
            yield f"past_key_{layer}", slot
            yield f"past_value_{layer}", slot


def sizes(spec: DecoderSpec, settings: EngineSettings, *, weights: int, memory: int) -> Sizes:
    """The sizes for a model whose `weights` take so many bytes of a GPU's `memory`.

    Engines take half of it at most; the other half is the cache's.
    """
    sized = settings.sized(gpu=True)
    return Sizes(
        slots=sized.max_sequences,
        chunk=sized.token_budget,
        context=min(sized.max_context or spec.context_length, spec.context_length),
        engines=memory // 2 // max(weights, 1),
    )


def sizes_for(spec: DecoderSpec, settings: EngineSettings, fit: Fit) -> Sizes:
    """The sizes for a model that was found to take `fit`, which has as many copies as engines."""
    return sizes(spec, settings, weights=fit.weights // LEAST_ENGINES, memory=fit.memory)


def plan(sizes: Sizes) -> tuple[Profile, ...]:
    """Profiles for every step of those sizes.

    Where there are too few engines, batches are told apart less finely first, then lengths of the
    cache. Raises CapacityError for fewer than two engines.
    """
    if sizes.engines < LEAST_ENGINES:
        raise CapacityError("TensorRT needs room for two engines, each with the model's weights")
    engines = min(sizes.engines, MOST_ENGINES)
    lengths = capacities(sizes.context)[-(engines // LEAST_ENGINES) :]
    bounds = _bounds(sizes.slots, engines // len(lengths) - 1)
    return tuple(
        profile
        for capacity in lengths
        for profile in (_prefill(sizes.chunk, capacity), *_decodes(bounds, capacity))
    )


def capacities(context: int) -> list[int]:
    """Lengths that a cache for `context` tokens can have, the shortest first."""
    lengths = []
    length = _SHORTEST
    while length < context:
        lengths.append(length)
        length *= _LENGTHEN
    return [*lengths, context]


def find(
    profiles: Sequence[Profile], phase: Phase, batch: int, tokens: int, capacity: int
) -> Profile:
    """The one profile for a step. Raises UnsupportedError: never is another engine built."""
    found = [p for p in profiles if p.holds(phase, batch, tokens, capacity)]
    if len(found) != 1:
        raise UnsupportedError(
            f"{len(found)} engines are for {phase} of {batch} x {tokens} tokens over {capacity}",
            hint="the engine's settings were changed: `appliance models compile` compiles it again",
        )
    return found[0]


def _prefill(chunk: int, capacity: int) -> Profile:
    one = Range(1, 1, 1)
    most = min(chunk, capacity)
    return Profile("prefill", one, Range(1, most, most), Range(1, 1, MOST_ROWS), capacity)


def _decodes(bounds: Sequence[int], capacity: int) -> Iterator[Profile]:
    """Batches up to each bound, from above the one before."""
    least = 1
    for most in bounds:
        batch = Range(least, most, most)
        yield Profile("decode", batch, Range(1, 1, 1), batch, capacity)
        least = most + 1


def _bounds(slots: int, most: int) -> list[int]:
    """Upper bounds of batches up to `slots` sequences, `most` of them: 1, since who is alone waits
    for each token, and on at about equal ratios. `slots` alone if it is one.
    """
    doubling = [*(1 << n for n in range((slots - 1).bit_length())), slots]
    last, steps = len(doubling) - 1, min(most, len(doubling)) - 1
    return [slots] if not steps else [doubling[-(-n * last // steps)] for n in range(steps + 1)]

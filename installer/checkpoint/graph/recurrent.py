"""Layers that keep a running state in place of keys and values: its numbers, and who has it.

Owns what every such layer has in common. What it computes is the file's of its kind
(gated_delta.py, state_space.py, short_convolution.py); how the engine keeps states:
docs/decisions/0290-running-states.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import msgspec
import onnx_ir as ir

from appliance.bundle.specs import RecurrentSpec, TailSpec

LINEAR = "linear_attention"
"""What config.json calls such a layer."""
Part = Literal["state", "tail", "further"]
"""The state itself, the last inputs of the convolution in front of it, and of a second one."""


@dataclass(frozen=True, slots=True)
class Deltas:
    """The numbers of a state. Counts.

    Attributes:
        key_heads, heads: of queries and keys, and of values; each of the former serves as many of
            the latter.
        key_dim, value_dim: of one head.
    """

    key_heads: int
    heads: int
    key_dim: int
    value_dim: int

    @property
    def keys(self) -> int:
        """Numbers of all keys of a token."""
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        """Numbers of all values of a token."""
        return self.heads * self.value_dim

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of a layer's state of one sequence."""
        return (self.heads, self.key_dim, self.value_dim)


@dataclass(frozen=True, slots=True)
class Further:
    """A second convolution, which some of these layers have.

    Attributes:
        layers: which.
        tail: inputs that it remembers.
        channels: numbers of each.
    """

    layers: tuple[int, ...]
    tail: int
    channels: int

    def spec(self) -> TailSpec:
        return TailSpec(layers=len(self.layers), channels=self.channels, tail=self.tail)


@dataclass(frozen=True, slots=True)
class Recurrent:
    """Attributes:
    layers: which layers are so.
    kernel: inputs that the convolution adds up.
    channels: numbers of each.
    deltas: of the state behind it; None: the convolution is all that remembers.
    beside: whether these, which then are all layers, attend as well.
    further: a second convolution; None: there is none.
    """

    layers: frozenset[int]
    kernel: int
    channels: int
    deltas: Deltas | None = None
    beside: bool = False
    further: Further | None = None

    def spec(self) -> RecurrentSpec:
        heads, key_dim, value_dim = (0, 0, 0) if self.deltas is None else self.deltas.sizes
        return RecurrentSpec(
            layers=len(self.layers),
            heads=heads,
            key_dim=key_dim,
            value_dim=value_dim,
            channels=self.channels,
            tail=self.kernel - 1,
            further=msgspec.UNSET if self.further is None else self.further.spec(),
        )


@runtime_checkable
class Remembering(Protocol):
    """A form of attention that has such layers, too."""

    def past(self, part: Part, layer: int, sizes: Sequence[int]) -> ir.Value | None:
        """What `layer` knows before these tokens, [B, *sizes]; None: they are the first."""
        ...

    def present(self, part: Part, layer: int, value: ir.Value, sizes: Sequence[int]) -> None:
        """What it knows behind them."""
        ...

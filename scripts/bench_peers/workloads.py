"""What is measured, as rows of the table.

A workload gives figures by name. Everybody is measured by the same numbers; who is asked through
HTTP and who in process is the peer's matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["batch", "prefill", "decode", "warm", "beside"]
Figures = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Workload:
    """`streams` requests at once of `tokens_in` and `tokens_out`; see docs/benchmarks.md."""

    name: str
    kind: Kind
    tokens_in: int
    tokens_out: int = 2
    streams: int = 1
    repeats: int = 3
    """How often a single stream is measured in a round."""
    part: int = 0
    """Of `warm`: the tokens seen before. Of `beside`: those of the short request."""

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of the table that it fills."""
        if self.kind == "batch":
            return (Row(self.name, "tokens/s"), Row(f"{self.name}, first token p50", "s"))
        if self.kind == "prefill":
            return (Row(self.name, "prompt tokens/s"),)
        if self.kind == "decode":
            return (Row(self.name, "tokens/s"),)
        if self.kind == "warm":
            return (Row(f"{self.name}, cold", "s"), Row(f"{self.name}, warm", "s"))
        return (Row(f"{self.name}, alone", "s"), Row(f"{self.name}, beside", "s"))


@dataclass(frozen=True, slots=True)
class Row:
    """A figure's name and unit. Of seconds less is better."""

    name: str
    unit: str


FULL = (
    Workload("16 x (256, 128)", "batch", 256, 128, streams=16),
    Workload("8 x (1,024, 128)", "batch", 1024, 128, streams=8),
    Workload("prefill 512", "prefill", 512),
    Workload("prefill 2,048", "prefill", 2048),
    Workload("decode, one stream", "decode", 256, 128, repeats=2),
    Workload("first token, 1,024 of 1,056 seen before", "warm", 1056, part=1024),
    Workload("first token of 20, prompt of 2,048", "beside", 2048, part=20),
)
TINY = (
    Workload("4 x (64, 16)", "batch", 64, 16, streams=4),
    Workload("prefill 128", "prefill", 128),
    Workload("decode, one stream", "decode", 64, 16, repeats=2),
    Workload("first token, 128 of 160 seen before", "warm", 160, part=128),
    Workload("first token of 20, prompt of 2,048", "beside", 2048, part=20),
)
MEMORY = Row("resident memory", "GiB")

"""The page of figures, docs/benchmarks-gpu.md."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gpu_check.workloads import FIRST, Workload, median

Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Measured:
    """One shape: what was prepared, what ran, and the seconds of each turn."""

    shape: str
    grade: str
    preparation: Mapping[str, float]
    ours: Facts
    peer: Facts | None
    refusal: str
    seconds: dict[tuple[str, int, int], list[float]] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        return bool(self.ours["provider"] != "cpu")

    def median(self, side: str, workload: Workload) -> float | None:
        values = self.seconds.get((side, workload.streams, workload.wanted))
        return median(values) if values else None

    @property
    def workloads(self) -> list[Workload]:
        """What was measured, besides the first token; one stream first."""
        sizes = {(streams, wanted) for _, streams, wanted in self.seconds}
        return [
            Workload(streams, FIRST.given, wanted)
            for streams, wanted in sorted(sizes)
            if wanted != FIRST.wanted
        ]

    @property
    def limit(self) -> float:
        """Tokens a second of one stream that memory allows: every weight and key once a token."""
        alone = self.workloads[0]
        context = alone.given + alone.wanted / 2
        touched = self.ours["weights"] + context * self.ours["token_bytes"]
        return float(self.ours["bandwidth"] / touched)

    def plain(self) -> dict[str, object]:
        return {
            "shape": self.shape,
            "grade": self.grade,
            "preparation": dict(self.preparation),
            "ours": dict(self.ours),
            "peer": None if self.peer is None else dict(self.peer),
            "seconds": {" ".join(map(str, key)): value for key, value in self.seconds.items()},
        }


def write(results: list[Measured]) -> str:
    """The page, Markdown."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    lines = ["# Benchmarks on a GPU", "", f"Written by `scripts/gpu-check` on {today}.", ""]
    for result in results:
        lines += _section(result)
    return "\n".join(lines)


def _section(result: Measured) -> Iterator[str]:
    ours = result.ours
    yield f"## {result.shape}, random weights, grade {result.grade}"
    yield ""
    facts = ", ".join(f"{name} {value}" for name, value in ours["fingerprint"].items())
    yield f"Provider that ran: **{ours['provider']}** ({facts})."
    for reason in ours["reasons"]:
        yield f"Not taken: {reason}."
    if ours["compared"] is not None:
        error, bound = ours["compared"]["error"], ours["compared"]["bound"]
        yield f"Golden logits: relative error {error:.4f} from the processor's, allowed {bound}."
    yield f"Decoding replays CUDA graphs: {'yes' if ours['recorded'] else 'no'}."
    steps = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in result.preparation.items())
    yield f"Preparation: {steps}, loading {ours['loaded']:.1f} s."
    if result.peer is None:
        yield f"transformers could not be measured: {result.refusal}."
    else:
        peer = ", ".join(f"{name} {value}" for name, value in result.peer.items())
        yield f"Beside it on the same card, in turns: transformers' continuous batching ({peer})."
    yield ""
    yield "| greedy, 256 tokens in | this engine | transformers | ratio |"
    yield "| --- | ---: | ---: | ---: |"
    first = [result.median(side, FIRST) for side in ("ours", "peer")]
    yield _row("time to first token, ms", [None if x is None else 1000 * x for x in first], -1)
    for workload in result.workloads:
        medians = [result.median(side, workload) for side in ("ours", "peer")]
        speeds = [None if x is None else workload.tokens / x for x in medians]
        yield _row(f"{workload.streams} x {workload.wanted} out, tokens/s", speeds, 1)
    yield ""
    if not result.workloads:
        return
    alone = result.workloads[0]
    seconds, started = result.median("ours", alone), result.median("ours", FIRST)
    if result.on_gpu and seconds is not None and started is not None:
        decoding = (alone.wanted - 1) / (seconds - started)
        yield (
            f"One stream decodes {decoding:.0f} tokens/s, {100 * decoding / result.limit:.0f} % "
            f"of the {result.limit:.0f} that a copy's {ours['bandwidth'] / 1e9:.0f} GB/s allow for "
            f"{ours['weights'] / 1e9:.2f} GB of weights."
        )
        yield ""


def _row(name: str, values: list[float | None], sign: int) -> str:
    ours, peer = values
    cells = ["-" if value is None else f"{value:.1f}" for value in values]
    ratio = "-" if ours is None or peer is None else f"{(ours / peer) ** sign:.2f}"
    return f"| {name} | {cells[0]} | {cells[1]} | {ratio} |"

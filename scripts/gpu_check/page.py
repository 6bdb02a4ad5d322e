"""The page of figures, docs/benchmarks-gpu.md.

Owns what stands between its two markers: a section for each file of figures, the newest first. The
rest of the page, with what was measured before there were such files, is written by hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from bench_peers.work import REPOSITORY
from gpu_check.results import Measured, Run
from gpu_check.workloads import FIRST, Workload

PAGE = REPOSITORY / "docs/benchmarks-gpu.md"
FIGURES = REPOSITORY / "docs/benchmarks-gpu"
BEGIN, END = "<!-- gpu-check: begin -->", "<!-- gpu-check: end -->"
_NOTHING = "No run has left figures here yet."


def runs_in(directory: Path) -> list[Run]:
    """The runs whose figures are kept, the newest first. Raises ValueError."""
    return [Run.read(path) for path in sorted(directory.glob("*.json"), reverse=True)]


def put_into(page: str, runs: Sequence[Run]) -> str:
    """`page` with the sections of `runs` between its markers. Raises ValueError without them."""
    before, _, rest = page.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError("the page has no markers: where are the figures to stand?")
    sections = "\n\n".join(section(run) for run in runs) or _NOTHING
    return f"{before}{BEGIN}\n{sections}\n{END}{after}"


def section(run: Run) -> str:
    """The Markdown of one run."""
    lines = [f"## {run.device}, {run.date}", ""]
    for shape in run.shapes:
        lines += _shape(shape)
    if run.golden:
        lines += [*_golden(run), ""]
    for why in dict.fromkeys(run.missing.values()):
        missing = "; ".join(what for what in run.missing if run.missing[what] == why)
        lines += [f"**Not measured**, since {why}: {missing}.", ""]
    return "\n".join(lines).strip()


def _golden(run: Run) -> Iterator[str]:
    yield "### Golden prompt of a tiny model, each graph that a GPU may be given"
    yield ""
    yield "| grade and precision | relative error | allowed |"
    yield "| --- | ---: | ---: |"
    for what, (error, bound) in run.golden.items():
        yield f"| {what} | {error:.4f} | {bound:g} |"


def _shape(result: Measured) -> Iterator[str]:
    yield f"### {result.shape}, random weights, grade {result.grade}"
    yield ""
    yield from _prepared(result)
    yield ""
    if result.seconds:
        yield from _speeds(result)
        yield ""
    if result.kinds:
        yield from _kinds(result)
        yield ""
    if result.loads_beside:
        yield (
            f"Loaded and run {result.loads_beside} times beside itself while steps were recorded: "
            "both said what they say alone."
        )
        yield ""


def _prepared(result: Measured) -> Iterator[str]:
    steps = [f"{step} {seconds:.1f} s" for step, seconds in result.preparation.items()]
    ours = result.ours
    if ours is not None:
        steps.append(f"loading {ours['loaded']:.1f} s")
        facts = ", ".join(f"{name} {value}" for name, value in ours["fingerprint"].items())
        yield f"Provider that ran: **{ours['provider']}** ({facts})."
        for reason in ours["reasons"]:
            yield f"Not taken: {reason}."
        if ours["compared"] is not None:
            error, bound = ours["compared"]["error"], ours["compared"]["bound"]
            yield (
                f"Golden logits: relative error {error:.4f} from the processor's, allowed {bound}."
            )
        yield f"Decoding replays CUDA graphs: {'yes' if ours['recorded'] else 'no'}."
    yield f"Preparation: {', '.join(steps) or 'none was finished'}."
    if result.peer is not None:
        peer = ", ".join(f"{name} {value}" for name, value in result.peer.items())
        yield f"Beside it on the same card, in turns: transformers' continuous batching ({peer})."
    if result.refusal:
        yield f"transformers could not be measured, or not further: {result.refusal}."


def _speeds(result: Measured) -> Iterator[str]:
    yield f"Medians of at least {result.turns} turn{'s' * (result.turns != 1)} after a warm-up:"
    yield ""
    yield "| greedy, 256 tokens in | this engine | transformers | ratio |"
    yield "| --- | ---: | ---: | ---: |"
    first = [result.median(side, FIRST) for side in ("ours", "peer")]
    yield _row("time to first token, ms", [None if x is None else 1000 * x for x in first], -1)
    for workload in result.workloads:
        medians = [result.median(side, workload) for side in ("ours", "peer")]
        speeds = [None if x is None else workload.tokens / x for x in medians]
        yield _row(f"{workload.words}, tokens/s", speeds, 1)
    yield from _against_memory(result)


def _against_memory(result: Measured) -> Iterator[str]:
    """One stream's speed beside what the card's memory would allow."""
    alone = next((load for load in result.workloads if load.streams == 1), Workload(1, 0, 0))
    seconds, started = result.median("ours", alone), result.median("ours", FIRST)
    if not result.on_gpu or seconds is None or started is None:
        return
    assert result.ours is not None
    decoding = (alone.wanted - 1) / (seconds - started)
    yield ""
    yield (
        f"One stream decodes {decoding:.0f} tokens/s, {100 * decoding / result.limit:.0f} % "
        f"of the {result.limit:.0f} that a copy's {result.ours['bandwidth'] / 1e9:.0f} GB/s allow "
        f"for {result.ours['weights'] / 1e9:.2f} GB of weights."
    )


def _kinds(result: Measured) -> Iterator[str]:
    chosen = list(result.kinds)
    yield "What kinds of steps cost, ms the first time / the median of three more, by attention:"
    yield ""
    yield f"| step | {' | '.join(chosen)} |"
    yield f"| --- |{' ---: |' * len(chosen)}"
    for step in dict.fromkeys(step for steps in result.kinds.values() for step in steps):
        found = [result.kinds[attention].get(step) for attention in chosen]
        cells = ["-" if pair is None else f"{pair[0]:.2f} / {pair[1]:.2f}" for pair in found]
        yield f"| {step} | {' | '.join(cells)} |"


def _row(name: str, values: list[float | None], sign: int) -> str:
    ours, peer = values
    cells = ["-" if value is None else f"{value:,.1f}" for value in values]
    ratio = "-" if ours is None or peer is None else f"{(ours / peer) ** sign:.2f}"
    return f"| {name} | {cells[0]} | {cells[1]} | {ratio} |"

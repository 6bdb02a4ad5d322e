"""The document of one run: what was measured, where, with what.

Owns the format, so that a later release reads what an earlier one wrote. Refuses documents that
it does not know.
"""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path

import msgspec

import appliance
from appliance.errors import NotFoundError, UsageError
from installer.bench.figures import Figures
from installer.bench.server import Dialect
from installer.bench.workload import Workload

FORMAT = "appliance-bench-1"


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where the command ran: this node, or only the client of another server."""

    processor: str
    processors: int
    """That this process may use."""
    memory_bytes: int
    system: str
    python: str


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured."""

    base_url: str
    own_node: bool
    model: str
    version: str = ""
    bundle_digest: str = ""
    fingerprint: str = ""
    """`system_fingerprint` of its answers."""
    dialect: Dialect


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One run."""

    format: str = FORMAT
    created: str
    """UTC, ISO 8601."""
    appliance: str = appliance.__version__
    command: str
    """The command line, fit to be typed again."""
    machine: Machine
    target: Target
    workload: Workload
    exact_prompts: bool
    """Prompt lengths were calibrated with the server's own counts."""
    interrupted: bool
    levels: tuple[Figures, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know to read the figures rightly."""
        return tuple(_notes(self))


def to_json(report: Report) -> bytes:
    """The document's bytes."""
    return msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"


def read_report(path: Path) -> Report:
    """The report in the file `path`. Raises NotFoundError, UsageError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise NotFoundError(
            f"{path} cannot be read: {error.strerror}",
            hint="name a file that `appliance bench --json` or an earlier run wrote",
        ) from error
    try:
        report = msgspec.json.decode(data, type=Report)
        if report.format != FORMAT:
            raise msgspec.ValidationError(f"its format is {report.format!r}")
    except msgspec.DecodeError as error:
        raise UsageError(
            f"{path} is not a report of this command: {error}",
            hint="name a file that `appliance bench --json` or an earlier run wrote",
        ) from None
    return report


def now() -> str:
    """The time of a report."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def this_machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> Machine:
    """The machine that this runs on."""
    return Machine(
        processor=_processor(cpuinfo),
        processors=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
    )


def _processor(cpuinfo: Path) -> str:
    try:
        lines = cpuinfo.read_text("utf-8").splitlines()
    except OSError:
        return platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _notes(report: Report) -> list[str]:
    notes = []
    if report.interrupted:
        notes.append("interrupted: the last level holds only what was answered by then")
    if all(level.completion_tokens is None for level in report.levels if level.requests):
        notes.append("the server reports no usage: there are no figures in tokens")
    elif not _forced(report):
        notes.append("the server ends answers by itself: their lengths are as they came")
    if not report.workload.prompts and not report.exact_prompts:
        notes.append("prompts are not calibrated: their length is in words, not in tokens")
    if report.workload.prompts == "" and report.exact_prompts and not _as_asked(report):
        notes.append("not every prompt has exactly the tokens asked for: see their range")
    if any((level.tokens_per_piece or 1.0) > 1.05 for level in report.levels):
        notes.append("the server sends several tokens in one piece: a gap is not one token's time")
    if any(level.silent for level in report.levels):
        notes.append("answers without any text have no time to first token")
    return notes


def _forced(report: Report) -> bool:
    """Whether every answer has the tokens asked for."""
    wanted = report.workload.output_tokens
    spans = [level.completion_tokens for level in report.levels if level.completion_tokens]
    return all(span.low == span.high == wanted for span in spans)


def _as_asked(report: Report) -> bool:
    wanted = report.workload.input_tokens
    spans = [level.prompt_tokens for level in report.levels if level.prompt_tokens]
    return all(span.low == span.high == wanted for span in spans)

"""Two reports side by side.

Owns which levels belong together and what differs besides the speed. A ratio is now / before;
for rates more is better, for times less.
"""

from __future__ import annotations

import msgspec

from installer.bench.figures import Figures, Spread
from installer.bench.report import Report


class Ratios(msgspec.Struct, frozen=True, kw_only=True):
    """One level of both reports. None where one of them lacks the figure."""

    load: str
    output_tokens_per_second: float | None
    requests_per_second: float | None
    ttft_p50: float | None
    gap_p50: float | None
    total_p50: float | None


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """`differences`: names of what is not the same and makes the ratios mean something else."""

    before: str
    """When the former report was made."""
    differences: tuple[str, ...]
    levels: tuple[Ratios, ...]


def compare(now: Report, before: Report) -> Comparison:
    """Ratios of the levels that both have."""
    former = {figures.level: figures for figures in before.levels}
    return Comparison(
        before=before.created,
        differences=tuple(_differences(now, before)),
        levels=tuple(
            _ratios(figures, former[figures.level])
            for figures in now.levels
            if figures.level in former
        ),
    )


def _ratios(now: Figures, before: Figures) -> Ratios:
    return Ratios(
        load=now.level.label,
        output_tokens_per_second=_ratio(
            now.output_tokens_per_second, before.output_tokens_per_second
        ),
        requests_per_second=_ratio(now.requests_per_second, before.requests_per_second),
        ttft_p50=_ratio(_median(now.ttft), _median(before.ttft)),
        gap_p50=_ratio(_median(now.gap), _median(before.gap)),
        total_p50=_ratio(_median(now.total), _median(before.total)),
    )


def _median(spread: Spread | None) -> float | None:
    return spread.p50 if spread is not None else None


def _ratio(now: float | None, before: float | None) -> float | None:
    return now / before if now is not None and before else None


def _differences(now: Report, before: Report) -> list[str]:
    pairs = {
        "machine": (now.machine.processor, before.machine.processor),
        "processors": (now.machine.processors, before.machine.processors),
        "address": (now.target.base_url, before.target.base_url),
        "model": (now.target.model, before.target.model),
        "bundle": (now.target.bundle_digest, before.target.bundle_digest),
        "appliance": (now.appliance, before.appliance),
        "prompt": (_prompt(now), _prompt(before)),
        "output tokens": (now.workload.output_tokens, before.workload.output_tokens),
    }
    return [name for name, (one, other) in pairs.items() if one != other]


def _prompt(report: Report) -> tuple[int, int, str]:
    work = report.workload
    return work.input_tokens, work.shared_prefix, work.prompts

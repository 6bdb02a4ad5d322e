"""What a soak showed, in words and as a document."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict

from tests.soak.soak import Outcome

_OWN = {"complete", "left"}


def lines(outcome: Outcome) -> list[str]:
    """The summary."""
    total = sum(outcome.answers.values())
    counted = outcome.counted
    complete = outcome.answers["complete"]
    found = [
        f"{outcome.course.seconds / 60:.1f} minutes, {total:,} requests: {complete:,} answered, "
        f"{outcome.answers['left']:,} left by their callers, "
        f"{total - complete - outcome.answers['left']:,} refused or broken off",
        "of these: "
        + ", ".join(
            f"{count} {code}" for code, count in outcome.answers.most_common() if code not in _OWN
        ),
        f"{outcome.batches} batches, {outcome.revoked} keys revoked, {outcome.budgets} budgets "
        f"used up, {outcome.stored} responses stored",
        f"the log: {counted.records:,} records, {counted.requests:,} requests, "
        f"{counted.rejected:,} refused, {counted.epochs} changes of the key; "
        f"{counted.compared:,} answers compared with it to the token",
    ]
    taken: dict[str, list[float]] = defaultdict(list)
    for window in outcome.windows:
        taken[window.fault].append(window.ended - window.lifted)
    found += [
        f"{len(each):3} x {fault}: over after {max(each):.1f} s at most"
        for fault, each in sorted(taken.items())
    ]
    for name, grown in outcome.growth.items():
        found.append(
            f"the {name} over its last {grown.seconds / 60:.1f} minutes: {grown.memory:+.3f} MiB "
            f"a minute ({grown.low:.1f} to {grown.high:.1f} MiB), "
            f"{grown.descriptors:+.3f} descriptors a minute"
        )
    found += [f"FAULT: {fault}" for fault in outcome.faults]
    return [*found, f"{len(outcome.faults)} faults"]


def document(outcome: Outcome) -> str:
    """All of it as JSON: course, strikes, samples."""
    return json.dumps(
        {
            "course": asdict(outcome.course),
            "faults": outcome.faults,
            "strikes": [
                {
                    "fault": window.fault,
                    "at": round(window.began - outcome.began, 1),
                    "lifted": round(window.lifted - outcome.began, 1),
                    "served": round(window.ended - outcome.began, 1),
                }
                for window in outcome.windows
            ],
            "answers": dict(outcome.answers),
            "log": asdict(outcome.counted),
            "growth": {name: asdict(each) for name, each in outcome.growth.items()},
            "samples": {
                name: [
                    (
                        round(s.at, 1),
                        s.process,
                        round(s.resident, 2),
                        round(s.anonymous, 2),
                        s.descriptors,
                    )
                    for s in samples
                ]
                for name, samples in outcome.samples.items()
            },
        },
        indent=None,
    )

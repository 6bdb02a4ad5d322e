"""The figures of one run, and the file that keeps them: docs/benchmarks-gpu/DATE-DEVICE.json.

Owns the file's form. What was not measured has its reason in it, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_check.workloads import FIRST, Workload, median

FORMAT = 1
PROCESSOR, UNKNOWN = "processor", "unknown"
Facts = Mapping[str, Any]


@dataclass(slots=True)
class Measured:
    """One shape.

    Attributes:
        preparation: seconds of each step.
        ours, peer: what the workers say of themselves; None if they do not run.
        refusal: why the peer does not.
        seconds: of each turn; side, streams and new tokens -> turns.
        kinds: attention -> kind of step -> milliseconds of the first and of further ones.
        loads_beside: how often it was loaded and run beside itself, and both said what they say
            alone; 0 if that was not seen.
    """

    shape: str
    grade: str
    preparation: dict[str, float] = field(default_factory=dict)
    ours: Facts | None = None
    peer: Facts | None = None
    refusal: str = ""
    seconds: dict[tuple[str, int, int], list[float]] = field(default_factory=dict)
    kinds: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    loads_beside: int = 0

    def add(self, side: str, workload: Workload, seconds: float) -> None:
        """A turn that counts."""
        key = side, workload.streams, workload.wanted
        self.seconds.setdefault(key, []).append(seconds)

    def median(self, side: str, workload: Workload) -> float | None:
        values = self.seconds.get((side, workload.streams, workload.wanted))
        return median(values) if values else None

    @property
    def on_gpu(self) -> bool:
        return self.ours is not None and self.ours["provider"] != "cpu"

    @property
    def workloads(self) -> list[Workload]:
        """What was measured, besides the first token; one stream first."""
        sizes = {(streams, wanted) for _, streams, wanted in self.seconds}
        loads = [Workload(streams, FIRST.given, wanted) for streams, wanted in sorted(sizes)]
        return [load for load in loads if load != FIRST]

    @property
    def turns(self) -> int:
        """The fewest turns behind a median."""
        return min(map(len, self.seconds.values()), default=0)

    @property
    def limit(self) -> float:
        """Tokens a second of one stream that memory allows: every weight and key once a token."""
        assert self.ours is not None
        alone = self.workloads[0]
        context = alone.given + alone.wanted / 2
        touched = self.ours["weights"] + context * self.ours["token_bytes"]
        return float(self.ours["bandwidth"] / touched)

    def plain(self) -> dict[str, object]:
        return {
            "shape": self.shape,
            "grade": self.grade,
            "preparation": self.preparation,
            "ours": self.ours,
            "peer": self.peer,
            "refusal": self.refusal,
            "seconds": {" ".join(map(str, key)): value for key, value in self.seconds.items()},
            "kinds": self.kinds,
            "loads_beside": self.loads_beside,
        }

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Measured:
        """What `plain` gave."""
        seconds = {}
        for key, values in plain["seconds"].items():
            side, streams, wanted = key.split()
            seconds[side, int(streams), int(wanted)] = values
        return cls(**{**plain, "seconds": seconds})


@dataclass(slots=True)
class Run:
    """One run of the script on one machine.

    Attributes:
        date: ISO 8601.
        device: the GPU's name, PROCESSOR, or UNKNOWN where nothing was opened.
        missing: what was to be measured and was not -> the reason.
        golden: grade and precision -> error of the golden prompt and what was allowed.
    """

    date: str
    device: str = UNKNOWN
    shapes: list[Measured] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    golden: dict[str, list[float]] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        return self.device not in {PROCESSOR, UNKNOWN}

    @property
    def name(self) -> str:
        """Of its file, without the ending."""
        return f"{self.date}-{re.sub('[^a-z0-9]+', '-', self.device.lower()).strip('-')}"

    def write(self, path: Path) -> None:
        shapes = [shape.plain() for shape in self.shapes]
        document = {
            "format": FORMAT, "date": self.date, "device": self.device,
            "shapes": shapes, "missing": self.missing, "golden": self.golden,
        }  # fmt: skip
        path.write_text(json.dumps(document, indent=1) + "\n", "utf-8")

    @classmethod
    def read(cls, path: Path) -> Run:
        """Raises ValueError for a file of another form."""
        document = json.loads(path.read_text("utf-8"))
        if document.pop("format", None) != FORMAT:
            raise ValueError(f"{path} has another form than this release writes")
        document["shapes"] = [Measured.of(shape) for shape in document["shapes"]]
        return cls(**document)

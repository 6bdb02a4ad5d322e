"""A report whose every time is known, built by the parts that build real ones."""

from __future__ import annotations

from installer.bench.figures import Figures, figures_of
from installer.bench.recorder import Recorder
from installer.bench.report import Machine, Report, Target
from installer.bench.server import Dialect
from installer.bench.workload import Level, Workload
from tests.bench.test_figures import answered


def example_report(*, speed: float = 1.0) -> Report:
    """Two levels, the second with a failure; `speed` divides all times."""
    return Report(
        created="2026-11-26T12:00:00+00:00",
        appliance="0.1",
        command="appliance bench --concurrency 1,2 --input-tokens 64 --output-tokens 8 --seed 7",
        machine=Machine(
            processor="Example <Processor> & Co",
            processors=2,
            memory_bytes=24 * 1024**3,
            system="Linux 6.1 x86_64",
            python="3.11.2",
        ),
        target=Target(
            base_url="http://127.0.0.1:8400/v1",
            own_node=True,
            model="guide",
            version="1.0",
            bundle_digest="ab" * 32,
            fingerprint="ab" * 8,
            dialect=Dialect(),
        ),
        workload=Workload(
            levels=(Level(concurrency=1), Level(concurrency=2)),
            input_tokens=64,
            output_tokens=8,
            requests=4,
            seed=7,
        ),
        exact_prompts=True,
        interrupted=False,
        levels=(_level(1, speed), _level(2, speed)),
    )


def _level(concurrency: int, speed: float) -> Figures:
    recorders = [
        answered(
            0.5 * index / speed,
            first=(0.1 + 0.02 * index) * concurrency / speed,
            step=(0.03125 + 0.001 * index) * concurrency**0.5 / speed,
            tokens=8,
            prompt=64,
        )
        for index in range(4)
    ]
    if concurrency > 1:
        broken = Recorder(0.0)
        broken.fail("the stream broke off", 0.25)
        recorders.append(broken)
    for recorder in recorders:
        recorder.sample.begin = recorder.begin
    return figures_of(
        Level(concurrency=concurrency),
        recorders,
        seconds=2.0 / concurrency / speed,
        peak=concurrency,
    )

"""Every kind of step is timed over the runner for GPUs, here over ordinary memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from appliance.engine.device.runner import DeviceRunner
from bench_peers.checkpoint import TINY
from gpu_check import kinds, measuring
from gpu_check.kinds import DRAFTED, LENGTHS, PIECES, STREAMS, measure_on_host
from gpu_check.node import Node


class Clock:
    """Goes on by a millisecond at each look, and by a second for each token of a prompt."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, prefill = 0.0, DeviceRunner.prefill

        def counted(runner: DeviceRunner, slot: int, start: int, tokens: Any, result: int) -> None:
            self.now += sum(map(len, tokens))
            prefill(runner, slot, start, tokens, result)

        monkeypatch.setattr(DeviceRunner, "prefill", counted)
        monkeypatch.setattr(kinds, "time", self)

    def perf_counter(self) -> float:
        self.now += 0.001
        return self.now


def test_every_kind_of_step_has_a_first_and_a_further_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Clock(monkeypatch)
    node = Node(tmp_path / "node")
    bundle = node.add(node.write(TINY), TINY.name, "fp16")
    steps = measure_on_host(bundle)
    assert all(first > 0 and again > 0 for first, again in steps.values())
    assert steps.keys() == {
        *(f"prompt of {length}" for length in LENGTHS),
        *(f"piece of 100 from position {start}" for start in PIECES),
        *("copy of a slot of 300", "exchange of two slots of 300", "fetching a row of logits"),
        *(f"decoding {streams}, as it is" for streams in STREAMS),
        *(f"decoding 1 with {drafted} drafted, as it is" for drafted in DRAFTED),
        *(f"drawing {n}{how}" for n in STREAMS for how in ("", " by top_p and top_k")),
        *(f"{how} {n} by a grammar" for n in STREAMS for how in ("drawing", "choosing")),
    }
    for what, tokens in (
        *((f"prompt of {length}", length) for length in LENGTHS),
        *((f"piece of 100 from position {start}", 100) for start in PIECES),
        ("copy of a slot of 300", 0),
        ("decoding 1, as it is", 0),
    ):
        assert steps[what] == pytest.approx((1000 * tokens + 1,) * 2)


def test_who_asks_knows_the_kinds_of_attention_that_there_are() -> None:
    assert measuring.ATTENTION == kinds.ATTENTION

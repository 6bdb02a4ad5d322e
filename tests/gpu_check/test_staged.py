"""Two stages on one device compute the golden prompt, by the steps that the engine takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from appliance.compiler import golden
from appliance.compiler.gpu_compile import Target, stages_of
from appliance.engine.device.device import HostDevice
from appliance.errors import UnsupportedError
from bench_peers.checkpoint import TINY
from gpu_check.grades import Trial, measure_grade
from gpu_check.node import Node
from gpu_check.staged import STAGES, by_steps
from tests.fakes.gpu import machine_with, write_release

PROCESSOR = Target("CPUExecutionProvider", "cpu")


def test_the_engines_steps_through_two_stages_give_the_golden_logits(tmp_path: Path) -> None:
    node = Node(tmp_path / "node")
    bundle = node.add(node.write(TINY), TINY.name, "fp16")
    graph, decoder = bundle.manifest.variant("cuda"), bundle.manifest.decoder
    assert graph is not None
    assert decoder is not None
    data = (bundle.directory / graph.path).read_bytes()
    weights, out = bundle.directory / graph.weights_folder, tmp_path / "out"
    out.mkdir()
    sessions = stages_of(data, weights, out, [PROCESSOR] * STAGES, decoder)
    wanted = golden.on_device(sessions, sessions, decoder, [PROCESSOR.place] * STAGES)
    device = HostDevice(1 << 26)
    measured = by_steps(sessions, decoder, [device] * STAGES, record=False)
    np.testing.assert_array_equal(measured, wanted)
    assert device.free_bytes() == 1 << 26
    with pytest.raises(UnsupportedError, match="golden results differ"):
        golden.compare(measured[::-1], wanted, "fp16")


def test_what_fails_on_the_card_is_said(tmp_path: Path) -> None:
    # No interpreter of a GPU is there: its stand-in knows nothing of stages on one card.
    write_release(tmp_path / "gpu", machine_with())
    trial = Trial("fp16", stages=True)
    found = dict(measure_grade(tmp_path / "root", tmp_path / "gpu", trial))
    assert "two stages on one card failed" in str(found["fp16 as fp16 in two stages"])

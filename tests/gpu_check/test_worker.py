"""A worker that dies or hangs is a reason, not the end of the run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench_peers.work import PeerError
from gpu_check.worker import Worker
from gpu_check.workloads import FIRST

WORKER = """\
import os, sys, time
from gpu_check.workloads import serve
def run(workload, seed):
    if seed == 1:
        time.sleep(60)
    if seed == 2:
        os._exit(3)
    print("a library's own words", flush=True)
    return 0.5
print("words before it is ready", flush=True)
serve(run, name="it")
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    (tmp_path / "answering.py").write_text(WORKER)
    monkeypatch.chdir(tmp_path)
    return Worker(Path(sys.executable), "answering", [], tmp_path / "log")


def test_answers_are_told_from_what_libraries_print(worker: Worker) -> None:
    worker.wait(300)
    assert worker.facts == {"name": "it"}
    assert worker.run(FIRST, 0, 300) == 0.5
    worker.close()


def test_one_that_hangs_is_ended(worker: Worker) -> None:
    worker.wait()
    with pytest.raises(PeerError, match="did not answer within 1 s"):
        worker.run(FIRST, 1, 1)
    worker.close()


def test_one_that_dies_says_how(worker: Worker) -> None:
    worker.wait()
    with pytest.raises(PeerError, match="status 3: it said nothing"):
        worker.run(FIRST, 2)

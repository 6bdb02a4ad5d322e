"""The engine goes on as the interpreter that was chosen for it, and as no other."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from appliance.config import Layout
from appliance.interpreter import choose_interpreter, engine_python
from tests.conftest import REPOSITORY

_ECHO = '#!/bin/sh\necho "$0" "$@"\n'


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "node")
    layout.artifacts.mkdir(parents=True)
    return layout


def release(layout: Layout, name: str, *, gpu: bool) -> tuple[Path, Path]:
    """Both interpreters of a release; the second only says what it was started with."""
    directory = layout.releases / name
    processor, other = (directory / venv / "bin/python" for venv in ("venv", "venv-cuda13"))
    for path in (processor, *([other] if gpu else [])):
        path.parent.mkdir(parents=True)
        path.write_text(_ECHO)
        path.chmod(0o755)
    return processor, other


def test_without_a_choice_the_processors_interpreter_runs(layout: Layout) -> None:
    processor, _ = release(layout, "1-a", gpu=True)
    assert engine_python(layout, processor) == processor
    assert not choose_interpreter(layout, processor), "nothing was changed"
    assert not layout.engine_environment.exists()


def test_a_choice_holds_until_the_next(layout: Layout) -> None:
    processor, other = release(layout, "1-a", gpu=True)
    for _ in range(2):
        assert choose_interpreter(layout, other)
        assert not choose_interpreter(layout, other)
        assert engine_python(layout, processor) == other
        assert choose_interpreter(layout, processor)
        assert engine_python(layout, processor) == processor


def test_a_release_without_the_other_interpreter_runs_its_own(layout: Layout) -> None:
    _, other = release(layout, "1-a", gpu=True)
    older, _ = release(layout, "0-b", gpu=False)
    choose_interpreter(layout, other)
    assert engine_python(layout, older) == older


@pytest.mark.parametrize("word", [b"", b"venv-cuda14\n", b"../../../tmp/evil\n", b"\xff" * 100])
def test_a_word_that_nobody_wrote_means_the_processor(layout: Layout, word: bytes) -> None:
    processor, _ = release(layout, "1-a", gpu=True)
    layout.engine_environment.write_bytes(word)
    assert engine_python(layout, processor) == processor


def test_the_engine_becomes_the_chosen_interpreter_in_the_same_process(layout: Layout) -> None:
    processor, other = release(layout, "1-a", gpu=True)
    processor.unlink()
    venv = processor.parent.parent
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    packages = next(venv.glob("lib/python*/site-packages"))
    here = f"{REPOSITORY}\n{sysconfig.get_path('purelib')}\n"
    (packages / "here.pth").write_text(here)
    choose_interpreter(layout, other)
    command = ["-I", "-m", "appliance.engine_daemon", "--root", str(layout.root)]
    done = subprocess.run([str(processor), *command], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(other), *command]

"""A build that was stopped, at any point and in any way, goes on and gives the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.errors import CapacityError, ConflictError, LockedError, StorageError
from appliance.fsops import walk_files
from installer.checkpoint import build_bundle
from installer.checkpoint.graphs import count_weights
from installer.checkpoint.plan import make_plan
from installer.checkpoint.quantize import Precision
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.space import check_space
from installer.checkpoint.unfinished import unfinished
from installer.progress import Advance, NoProgress
from tests.checkpoint.conftest import BLIND, DECODERS, OF_FLOATS, WRITERS, BuildBundle, Built
from tests.conftest import FULL_VARIABLE, REPOSITORY

SHARDED = "qwen3-untied-bf16-sharded"
CASES: list[tuple[str, Precision]] = [
    (SHARDED, "w8a8"),
    ("qwen3-odd-widths", "int4"),
    ("qwen2-fp16", "fp16"),
    ("qwen3", "fp8"),
    ("bert", "int8"),
]
KILLED = """\
import os, signal, sys
from pathlib import Path
from installer.checkpoint import build_bundle
from installer.checkpoint.journal import Journal

left, append, word = [int(sys.argv[3])], Journal.append, sys.argv[4]

def counted(self, record):
    left[0] -= 1
    if left[0] == 0 and word == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    append(self, record)
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)

Journal.append = counted
build_bundle(Path(sys.argv[1]), Path(sys.argv[2]), name="tiny", version="1.0", precision="w8a8",
             signer=None, created=1_700_000_000)
"""
FULL = """\
import resource, sys
from pathlib import Path
from installer.cli.output import print_error
from installer.checkpoint import build_bundle
from appliance.errors import StorageError

resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
try:
    build_bundle(Path(sys.argv[1]), Path(sys.argv[2]), name="tiny", version="1.0",
                 precision="w8a8", signer=None, created=1_700_000_000)
except StorageError as error:
    sys.exit(error.hint)
"""


class StopAfter(NoProgress):
    """Progress that interrupts the build at the `count`-th report of weights, as Ctrl-C does."""

    def __init__(self, count: int) -> None:
        self.left = count
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    @contextmanager
    def bytes(self, title: str, total: int) -> Iterator[Advance]:
        def advance(_count: int) -> None:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

        yield advance if title.startswith("building") else lambda _count: None


def build_it(
    checkpoint: Path, out: Path, precision: Precision, *, stop: int = 0, limit: int = 10**9
) -> list[str]:
    """Build, or stop at the `stop`-th report; what was noted."""
    progress = StopAfter(stop)
    identity = {"name": "tiny", "version": "1.0", "created": 1_700_000_000}
    build_bundle(
        checkpoint,
        out,
        precision=precision,
        signer=None,
        progress=progress,
        max_file_bytes=limit,
        **identity,  # type: ignore[arg-type]
    )
    return progress.notes


def stopped(model: Built, out: Path, precision: Precision, stop: int) -> Path:
    """The directory of an unfinished build."""
    with pytest.raises(KeyboardInterrupt):
        build_it(model.checkpoint, out, precision, stop=stop)
    return out.with_name(f".{out.name}.partial")


def assert_same(out: Path, model: Built) -> None:
    files = walk_files(model.bundle)
    assert walk_files(out) == files
    for name in files:
        assert (out / name).read_bytes() == (model.bundle / name).read_bytes(), name
    assert not out.with_name(f".{out.name}.partial").exists()


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_a_build_stopped_again_and_again_gives_the_same_bytes(
    built: BuildBundle, tmp_path: Path, name: str, precision: Precision
) -> None:
    model, out = built(name, precision), tmp_path / "it"
    for stop in (1, 4, 9, 14, 19):
        stopped(model, out, precision, stop)
    assert "going on" in build_it(model.checkpoint, out, precision)[0]
    assert_same(out, model)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(WRITERS))
def test_every_family_goes_on_from_everywhere(
    built: BuildBundle, tmp_path: Path, name: str
) -> None:
    whole = name in (*DECODERS, *BLIND) and name not in OF_FLOATS
    precision: Precision = "w8a8" if whole else "int8"
    model = built(name, precision)
    for stop in range(2, 40, 4):
        out = tmp_path / str(stop)
        try:
            build_it(model.checkpoint, out, precision, stop=stop)
        except KeyboardInterrupt:
            build_it(model.checkpoint, out, precision)
        assert_same(out, model)


KILLS = range(1, 60) if os.environ.get(FULL_VARIABLE) else (11, 28)


@pytest.mark.parametrize("kill", KILLS)
@pytest.mark.parametrize("word", ["before", "after"])
def test_a_build_killed_around_a_line_of_its_journal_gives_the_same_bytes(
    built: BuildBundle, tmp_path: Path, kill: int, word: str
) -> None:
    model, out = built(SHARDED, "w8a8"), tmp_path / "it"
    done = run(KILLED, str(model.checkpoint), str(out), str(kill), word)
    assert done.returncode in {0, -signal.SIGKILL}, done.stderr
    assert out.exists() == (done.returncode == 0), "it appears only when it is complete"
    if not out.exists():
        build_it(model.checkpoint, out, "w8a8")
    assert_same(out, model)


def run(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *words],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(REPOSITORY)},
    )


def flip(path: Path, at: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] ^= 1
    path.write_bytes(data)


def shorten(path: Path, at: float) -> None:
    os.truncate(path, int(at * path.stat().st_size))


def lengthen(path: Path, _at: float) -> None:
    path.write_bytes(path.read_bytes() + b"\0" * 100)


def remove(path: Path, _at: float) -> None:
    path.unlink()


def swap_lines(path: Path, _at: float) -> None:
    first, second, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([second, first, *rest]))


@pytest.mark.parametrize("at", [0.0, 0.5, 0.97])
@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("bundle/graph/cpu/weights-00001.bin", flip),
        ("bundle/graph/cpu/weights-00001.bin", shorten),
        ("journal", flip),
        ("journal", shorten),
    ],
)
def test_a_half_written_file_is_never_trusted(
    built: BuildBundle, tmp_path: Path, file: str, damage: Callable[[Path, float], None], at: float
) -> None:
    model, out = built("bert", "int8"), tmp_path / "it"
    damage(stopped(model, out, "int8", 14) / file, at)
    build_it(model.checkpoint, out, "int8")
    assert_same(out, model)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("bundle/graph/cpu/weights-00001.bin", lengthen),
        ("bundle/graph/cpu/weights-00001.bin", remove),
        ("journal", lengthen),
        ("journal", remove),
        ("journal", swap_lines),
        ("key", flip),
        ("key", remove),
    ],
)
def test_whatever_is_wrong_beside_an_unfinished_build_is_forgotten(
    built: BuildBundle, tmp_path: Path, file: str, damage: Callable[[Path, float], None]
) -> None:
    model, out = built("bert", "int8"), tmp_path / "it"
    partial = stopped(model, out, "int8", 14)
    (partial / "bundle/graph/cpu/weights-00007.bin").write_bytes(b"of another build")
    damage(partial / file, 0.3)
    build_it(model.checkpoint, out, "int8")
    assert_same(out, model)


def test_it_goes_on_over_several_weight_files(built: BuildBundle, tmp_path: Path) -> None:
    model = built(SHARDED, "w8a8")
    build_it(model.checkpoint, tmp_path / "whole", "w8a8", limit=17_000)
    out = tmp_path / "it"
    for stop in (9, 25):
        with pytest.raises(KeyboardInterrupt):
            build_it(model.checkpoint, out, "w8a8", limit=17_000, stop=stop)
    build_it(model.checkpoint, out, "w8a8", limit=17_000)
    assert_same(out, Built(model.checkpoint, tmp_path / "whole"))


def test_what_other_inputs_left_is_not_used(built: BuildBundle, tmp_path: Path) -> None:
    other = built("qwen3", "int8")
    out = tmp_path / "it"
    stopped(other, out, "int8", 9)
    model = built("qwen3", "w8a8")
    assert build_it(model.checkpoint, out, "w8a8") == [], "another grade begins anew"
    assert_same(out, model)
    stopped(other, tmp_path / "that", "int8", 9)
    model = built(SHARDED, "int8")
    assert build_it(model.checkpoint, tmp_path / "that", "int8") == [], "so does another checkpoint"
    assert_same(tmp_path / "that", model)


def test_a_second_build_at_the_same_place_is_refused(built: BuildBundle, tmp_path: Path) -> None:
    model, out = built("bert", "int8"), tmp_path / "it"
    with unfinished(out) as first:
        with pytest.raises(LockedError, match="another process"):
            build_it(model.checkpoint, out, "int8")
        assert first.directory.exists(), "and leaves the first alone"
    build_it(model.checkpoint, out, "int8")
    with pytest.raises(ConflictError, match="exists"):
        build_it(model.checkpoint, out, "int8")
    assert_same(out, model)


def test_a_full_disk_stops_a_build_that_then_goes_on(built: BuildBundle, tmp_path: Path) -> None:
    model, out = built(SHARDED, "w8a8"), tmp_path / "it"
    done = run(FULL, str(model.checkpoint), str(out))
    assert "goes on" in done.stderr
    assert "going on" in build_it(model.checkpoint, out, "w8a8")[0]
    assert_same(out, model)


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_the_disk_is_asked_for_what_the_weights_take(
    built: BuildBundle, name: str, precision: Precision
) -> None:
    model = built(name, precision)
    plan = make_plan(Checkpoint(model.checkpoint), precision, None, 10**9, None)
    files = list((model.bundle / "graph/cpu").glob("weights-*.bin"))
    size = sum(path.stat().st_size for path in files)
    counted = count_weights(plan)
    assert counted <= size <= counted * 1.05, "but for the padding between tensors"


def test_a_disk_without_room_is_refused_before_the_first_weight(tmp_path: Path) -> None:
    with pytest.raises(CapacityError, match="free") as caught:
        check_space(tmp_path, 10**18)
    assert "--out" in caught.value.hint
    (tmp_path / "weights-00001.bin").write_bytes(bytes(1000))
    check_space(tmp_path, 1000)


def test_a_place_that_cannot_be_written_is_a_typed_error(
    built: BuildBundle, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError):
        build_it(built("bert", "int8").checkpoint, tmp_path / "file/it", "int8")

"""The power is cut under load: a real file system, any unflushed write of which may be lost."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.access import KeyStore
from appliance.audit import read_events
from appliance.audit.event import AnyEvent
from appliance.config import Config
from tests.conftest import BuildOnce
from tests.fakes.checkpoints import write_qwen3
from tests.fakes.engine_node import EngineNode
from tests.hostile.stack import Daemon
from tests.power.images import Recording
from tests.power.load import Acknowledged, Load, ask
from tests.power.machine import (
    BTRFS,
    EXT4,
    EXT4_WRITEBACK,
    XFS,
    FileSystem,
    recorded,
    require,
    started_again,
)
from tests.power.verdict import assert_kept
from tests.shim.node import prepare

IMAGES = 6


@dataclass(frozen=True, slots=True)
class Stretch:
    """What is recorded: how long, by how many callers, on which file system."""

    system: FileSystem
    seconds: float
    callers: int
    seed: int


QUICK = Stretch(EXT4, 2.0, 4, 7)
FULL = (
    (Stretch(EXT4, 2.0, 4, 11), 300, 4),
    (Stretch(EXT4, 4.0, 1, 12), 250, 3),
    (Stretch(EXT4, 3.0, 12, 13), 250, 3),
    (Stretch(EXT4_WRITEBACK, 3.0, 6, 14), 200, 2),
    (Stretch(XFS, 3.0, 6, 15), 150, 3),
    (Stretch(BTRFS, 3.0, 6, 16), 150, 3),
)
"""Each with the number of its images, and of those on which both daemons start and answer."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A stretch of load on a recorded disk."""

    base: Path
    stretch: Stretch
    config: Config
    secret: str
    told: Acknowledged
    later: list[AnyEvent]
    began: int
    ended: int
    answer: str

    @property
    def mounted(self) -> Path:
        return self.base / "m"


def build(root: Path) -> None:
    """A node with two versions of one model, both compiled."""
    node = EngineNode(root)
    for version in ("1.0", "2.0"):
        checkpoint = write_qwen3(root / f"checkpoint-{version}")
        node.add(checkpoint, name="chat", version=version)


@pytest.fixture(scope="module")
def recording(build_once: BuildOnce) -> Iterator[Recorded]:
    require(QUICK.system)
    models = build_once("power-models", build)
    with tempfile.TemporaryDirectory(prefix="pw") as directory:
        yield record(Path(directory), models, QUICK)


def record(base: Path, models: Path, stretch: Stretch) -> Recorded:
    """Load on a pair of real daemons for so long."""
    root = base / "m/n"
    with recorded(base, base / "m", stretch.system):
        subprocess.run(["cp", "-a", models, root], check=True)
        config = prepare(root)
        config.layout.config_file.parent.mkdir(parents=True, exist_ok=True)
        config.layout.config_file.write_text(f"[api]\nlisten_port = {config.api.listen_port}\n")
        with KeyStore(config.layout.keys_db) as keys:
            _, secret = keys.create("power")
        with serving(root):
            answer = said(config, secret)
            subprocess.run(["sync", "-f", str(root)], check=True)
            began = time.monotonic_ns()
            told = Load(config, secret, stretch.callers, stretch.seed).run(stretch.seconds)
            ended = time.monotonic_ns()
        later = [event for _, event in read_events(config.layout.audit)]
    assert told.failures == []
    return Recorded(base, stretch, config, secret, told, later, began, ended, answer)


def said(config: Config, secret: str) -> str:
    _, document = ask(config, secret, "word")
    return str(document["choices"][0]["message"]["content"])


def judge(made: Recorded, count: int, *, seed: int, serving: int = 0) -> str:
    """Look at `count` images; `serving` of them serve. What was seen, in words."""
    system = made.stretch.system
    found = Recording(made.base / "image", made.base / "journal", system.atomic)
    choices: Counter[str] = Counter()
    every = count // serving if serving else count + 1
    for number, cut in enumerate(
        found.cuts(count, after=made.began, before=made.ended, seed=seed), 1
    ):
        choices[cut.choice] += 1
        with started_again(cut.image, made.base / "left", made.mounted, system):
            try:
                assert_kept(made.config, made.told, made.later, cut.at)
                if number % every == 0:
                    assert_serves(made)
            except AssertionError as error:
                error.add_note(f"image {number} of seed {seed}: {cut.choice} kept, cut at {cut.at}")
                raise
    kinds = ", ".join(f"{n} with {choice}" for choice, n in sorted(choices.items()))
    return (
        f"power loss on {system.name} ({system.options}), {made.stretch.callers} callers: "
        f"{count} images ({kinds} of the unflushed writes) of {len(found.orders)} "
        f"orders, {len(made.told.answers)} answers, {len(made.told.revoked)} revocations, "
        f"{len(made.told.activated)} activations and {len(made.told.rolled)} ends of epochs "
        f"acknowledged: 0 lost, 0 forged; {serving} served"
    )


def assert_serves(made: Recorded) -> None:
    with serving(made.config.layout.root):
        assert said(made.config, made.secret) == made.answer


@contextmanager
def serving(root: Path) -> Iterator[None]:
    """Both daemons; without them the file system can be unmounted, whatever happened."""
    engine = Daemon("appliance.engine_daemon", root)
    try:
        shim = Daemon("appliance.shim", root)
        try:
            yield
        finally:
            shim.stop()
    finally:
        engine.stop()


def test_what_was_acknowledged_survives_a_power_cut(
    recording: Recorded, record_property: Callable[[str, object], None]
) -> None:
    record_property("measured", judge(recording, IMAGES, seed=7))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("stretch", "images", "served"), FULL)
def test_what_was_acknowledged_survives_many_power_cuts(
    build_once: BuildOnce,
    record_property: Callable[[str, object], None],
    stretch: Stretch,
    images: int,
    served: int,
) -> None:
    """More than a thousand in all."""
    require(stretch.system)
    models = build_once("power-models", build)
    with tempfile.TemporaryDirectory(prefix="pw") as directory:
        made = record(Path(directory), models, stretch)
        record_property("measured", judge(made, images, seed=stretch.seed, serving=served))

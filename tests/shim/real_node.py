"""A shim in front of the real engine daemon, over models that were built before."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from installer.readiness import ReadinessSocket
from tests.conftest import REPOSITORY, BuildOnce
from tests.fakes.engine import FakeEngine
from tests.shim.node import PATIENCE, Node, prepare, running_shim

SMALL_CACHE = "cache_bytes = 67108864\n"


def served(
    name: str, build: Callable[[Path], None], engine_settings: str = "", **settings: Any
) -> Any:
    """A module's fixture `node`: as `standing_on`, over what `build` makes once in a run."""

    @pytest.fixture(scope="module")
    def node(build_once: BuildOnce) -> Iterator[Node]:
        with standing_on(build_once(name, build), engine_settings, **settings) as made:
            yield made

    return node


@contextmanager
def standing_on(models: Path, engine_settings: str = "", **settings: Any) -> Iterator[Node]:
    """The pair on a copy of the root `models`, over a short path for the socket's sake.

    `engine_settings` are lines of `[engine]`, `settings` those of the endpoint.
    """
    with tempfile.TemporaryDirectory(prefix="shim") as directory:
        root = Path(directory) / "n"
        subprocess.run(["cp", "-a", models, root], check=True)
        config = prepare(root, **settings)
        config.layout.config_file.parent.mkdir(parents=True, exist_ok=True)
        config.layout.config_file.write_text(f"[engine]\n{engine_settings}\n")
        readiness = ReadinessSocket()
        engine = subprocess.Popen(
            [sys.executable, "-m", "appliance.engine_daemon", "--root", root],
            env=readiness.environment,
            cwd=REPOSITORY,
        )
        try:
            assert readiness.wait(PATIENCE, until=lambda: engine.poll() is not None)
            with running_shim(config):
                yield Node(config, FakeEngine(config.layout.engine_socket))
        finally:
            engine.terminate()
            engine.wait(PATIENCE)
            readiness.close()

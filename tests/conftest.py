"""Fixtures that several packages' tests share: things that are expensive to build once."""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.checkpoint import table

REPOSITORY = Path(__file__).resolve().parent.parent
BUILD_CACHE = REPOSITORY / ".build"
"""Ignored by git; holds downloads that are checked by hash each time they are used."""

FULL_VARIABLE = "APPLIANCE_TEST_FULL"
"""Set by `scripts/test --full`: the long sweeps run too."""

settings.register_profile(
    "appliance",
    settings.default,
    max_examples=200 if os.environ.get(FULL_VARIABLE) else 50,
    deadline=None,  # speed is a benchmark, never a test
)
settings.load_profile("appliance")

BuildOnce = Callable[[str, Callable[[Path], None]], Path]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Thousands of items are made, and none goes: looking for garbage meanwhile takes a quarter.

    Nor is it looked for among them afterwards, each time that tests have made some.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session")
def build_once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> BuildOnce:
    """`build_once(name, build)`: a directory that `build` fills once per test run.

    Workers of pytest-xdist share it; the first to come builds, under a lock. Tests must not
    change what is in it: copy it first.
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if worker_id != "master" else base) / "shared"
    shared.mkdir(exist_ok=True)

    def once(name: str, build: Callable[[Path], None]) -> Path:
        target = shared / name
        fd = os.open(shared / f"{name}.lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if not target.exists():
                partial = shared / f"{name}.partial"
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                build(partial)
                partial.rename(target)
        finally:
            os.close(fd)
        return target

    return once


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long sweeps to `scripts/test --full`; have processes work on different packages."""
    if hasattr(config, "workerinput"):
        _spread(items)
    if os.environ.get(FULL_VARIABLE):
        return
    for item in items:
        if item.get_closest_marker("slow") is not None:
            item.add_marker(pytest.mark.skip(reason="a long sweep: scripts/test --full"))


def _spread(items: list[pytest.Item]) -> None:
    """Take the first module of each folder, then the second of each, and so on.

    Modules of one folder share what is built once. Side by side, all but the process that builds it
    would wait.
    """
    modules: dict[Path, dict[Path, int]] = {}
    for item in items:
        of_folder = modules.setdefault(item.path.parent, {})
        of_folder.setdefault(item.path, len(of_folder))
    items.sort(key=lambda item: modules[item.path.parent][item.path])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests measured with `record_property("measured", …)`, and the parity table."""
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.getreports(kind)]
    properties = [pair for report in reports for pair in report.user_properties]
    figures = [str(value) for name, value in properties if name == "measured"]
    for title, lines in (("measured", figures), ("parity", list(table.draw(properties)))):
        if lines:
            terminalreporter.section(title)
            for line in lines:
                terminalreporter.line(line)

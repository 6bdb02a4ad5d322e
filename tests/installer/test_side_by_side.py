"""Two versions of a model are loaded at once only where there is memory for both."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.audit import create_signer
from appliance.bundle.footprint import loaded_bytes
from appliance.bundle.manifest import Manifest
from appliance.config import Config, EngineSettings, Layout
from appliance.engine_daemon.server import EngineServer
from appliance.pb import engine_v1_pb2 as pb
from installer import memory
from installer.engine_client import connect
from installer.models import Models
from installer.node import PrefixNode
from installer.progress import NoProgress
from tests.conftest import BuildOnce
from tests.fakes.adapter_node import BASE, NAME, build_adapter_node
from tests.model_store.bundles import write_bundle


class Said(NoProgress):
    """What somebody at the terminal would have read."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def step(self, title: str) -> None:
        self.lines.append(title)

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def sizes(tmp_path: Path) -> dict[str, Manifest]:
    """`big` and `small` in two versions each."""
    given = {"big": 4_000_000, "small": 1_000_000}
    return {
        f"{name} {version}": write_bundle(
            tmp_path / name / version, name=name, version=version, weights=bytes(count)
        ).manifest
        for name, count in given.items()
        for version in ("1", "2")
    }


def have(monkeypatch: pytest.MonkeyPatch, *manifests: Manifest) -> None:
    """The machine has memory for exactly these."""
    room = memory.BASE_BYTES + sum(loaded_bytes(manifest, gpu=False) for manifest in manifests)
    monkeypatch.setattr(memory, "there", lambda: room)


def test_nothing_goes_before_what_comes_where_there_is_memory_for_all(
    sizes: dict[str, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    have(monkeypatch, *sizes.values())
    before = {name: sizes[f"{name} 1"] for name in ("big", "small")}
    after = {name: sizes[f"{name} 2"] for name in ("big", "small")}
    assert memory.in_the_way(before, after, gpu=False) == []
    assert memory.interruptions(before, after, gpu=False) == []


def test_as_few_as_must_go_before_and_the_largest_first(
    sizes: dict[str, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: sizes[f"{name} 1"] for name in ("big", "small")}
    after = {name: sizes[f"{name} 2"] for name in ("big", "small")}
    have(monkeypatch, *after.values(), before["small"])
    assert memory.in_the_way(before, after, gpu=False) == ["big"]
    have(monkeypatch, *after.values())
    assert memory.in_the_way(before, after, gpu=False) == ["big", "small"]
    (first, _) = memory.interruptions(before, after, gpu=False)
    assert first.startswith("big 1 and 2 do not fit into this machine's memory together")


def test_what_is_served_no_longer_goes_before_what_callers_would_miss(
    sizes: dict[str, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {"small": sizes["small 1"], "big": sizes["big 1"]}
    after = {"big": sizes["big 2"]}
    have(monkeypatch, sizes["big 1"], sizes["big 2"])
    assert memory.in_the_way(before, after, gpu=False) == ["small"]
    assert memory.interruptions(before, after, gpu=False) == []


def test_what_stays_as_it_is_is_never_unloaded(
    sizes: dict[str, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the node should have less memory than is reckoned."""
    have(monkeypatch)
    served = {"big": sizes["big 1"], "small": sizes["small 1"]}
    assert memory.in_the_way(served, served, gpu=False) == []
    replaced = served | {"small": sizes["small 2"]}
    assert memory.in_the_way(served, replaced, gpu=False) == ["small"]


@pytest.fixture
def root(build_once: BuildOnce) -> Iterator[Path]:
    """A node with a base in two versions and two adapters. Short, for the socket's path."""
    with tempfile.TemporaryDirectory(prefix="node") as directory:
        root = Path(directory) / "n"
        shutil.copytree(build_once(NAME, build_adapter_node), root, symlinks=True)
        create_signer(Layout(root).audit_key, "test")
        yield root


def under_an_engine(config: Config, change: Callable[[], dict[str, str]]) -> dict[str, str]:
    """What `change` says while the daemon serves."""

    async def served() -> dict[str, str]:
        server = EngineServer(config)
        await server.start()
        try:
            return await asyncio.to_thread(change)
        finally:
            await server.stop()

    return asyncio.run(asyncio.wait_for(served(), 300))


def engine_of(root: Path) -> Config:
    return Config(Layout(root), engine=EngineSettings(cache_bytes=64 << 20, threads=1))


@pytest.mark.parametrize("enough", [True, False])
def test_the_engine_unloads_the_old_version_first_where_both_do_not_fit(
    root: Path, monkeypatch: pytest.MonkeyPatch, *, enough: bool
) -> None:
    config = engine_of(root)
    node, said = PrefixNode(config.layout), Said()
    node.prepare()
    models = Models(config, node, said)
    served = {name: bundle.manifest for name, bundle in models.store.active().items()}
    room = memory.needed(served, gpu=False) + (1 << 40 if enough else 0)
    monkeypatch.setattr(memory, "there", lambda: room)

    def change() -> dict[str, str]:
        models.foretell([models.store.get(BASE, "2.0").manifest])
        models.store.activate(BASE, "2.0")
        assert models.tell_engine()
        with connect(config.layout.engine_socket) as engine:
            while {model.state for model in engine.models()} != {pb.MODEL_STATE_SERVING}:
                time.sleep(0.05)  # the old version leaves with its last call
            return {model.name: model.version for model in engine.models()}

    now = under_an_engine(config, change)
    assert now == {BASE: "2.0", "all": "1.0", "half": "1.0"}
    unloaded = [line for line in said.lines if line.startswith("unloading")]
    assert unloaded == (
        [] if enough else [f"unloading {name}, to make room" for name in ("all", "half", BASE)]
    )
    foretold = [line for line in said.lines if "do not fit" in line]
    assert len(foretold) == (0 if enough else 1)


def test_a_base_that_leaves_with_its_adapters_is_unloaded_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = engine_of(root)
    node = PrefixNode(config.layout)
    node.prepare()
    models = Models(config, node, NoProgress())
    monkeypatch.setattr(memory, "there", lambda: 0)

    def change() -> dict[str, str]:
        for name in ("all", "half", BASE):
            models.store.deactivate(name)
        assert models.tell_engine()
        with connect(config.layout.engine_socket) as engine:
            return {model.name: model.version for model in engine.models()}

    assert under_an_engine(config, change) == {}

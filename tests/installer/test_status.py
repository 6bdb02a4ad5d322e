"""`appliance status` and the commands that change models, on nodes where little is there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from appliance.config import ApiSettings, Config, Layout
from appliance.errors import LockedError, NotFoundError
from appliance.fsops import exclusive_lock
from appliance.model_store import ModelStore
from appliance.pb import engine_v1_pb2 as pb
from installer.install import installing
from installer.models import Models
from installer.node import PrefixNode
from installer.progress import NoProgress
from installer.staging import InstalledRelease, make_current
from installer.status import Health, ServedModel, all_served, status_of
from tests.fakes.command import run_command
from tests.fakes.engine import FakeEngine
from tests.fakes.gpu_machine import gpu_machine
from tests.model_store.bundles import write_bundle


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A prefix that was prepared, with a port on which nothing listens."""
    config = Config(Layout(tmp_path / "node"), api=ApiSettings(listen_port=1))
    PrefixNode(config.layout).prepare()
    return config


def test_a_node_that_is_down_says_what_it_would_serve(config: Config, tmp_path: Path) -> None:
    store = ModelStore(config.layout.models)
    store.import_bundle(write_bundle(tmp_path / "b", name="a", version="1"), advance=lambda _: None)
    store.activate("a", "1")
    status = status_of(config, PrefixNode(config.layout))
    assert not status.serving
    assert status.health.status == "unreachable"
    assert [(m.name, m.version, m.state) for m in status.models] == [("a", "1", "not loaded")]
    assert status.services == {"appliance serve": "inactive"}
    assert 0 < status.disk_free_bytes <= status.disk_total_bytes


def test_a_node_that_could_not_load_an_active_model_does_not_serve() -> None:
    """For instance after a restore: its compiled form is signed by another node's key."""
    good = ServedModel(name="a", version="1", kind="chat", state="serving")
    failed = ServedModel(name="b", version="1", kind="chat", state="failed", error="not signed")
    well = Health(status="ok", engine=True, audit=True)
    assert all_served(well, [good])
    assert not all_served(well, [good, failed])
    assert not all_served(Health(status="degraded", audit=True), [good])


def test_a_model_on_several_gpus_says_on_how_many() -> None:
    shown = [
        ServedModel(
            name="a", version="1", kind="chat", provider="CUDAExecutionProvider", gpus=gpus
        ).computed_by
        for gpus in (0, 1, 4)
    ]
    assert shown == ["CUDAExecutionProvider"] * 2 + ["CUDAExecutionProvider, 4 GPUs"]


def test_status_says_what_the_release_has_programs_for(config: Config, tmp_path: Path) -> None:
    node = PrefixNode(config.layout)
    release = InstalledRelease(config.layout.releases / "1-a")
    release.gpu_python.parent.mkdir(parents=True)
    node.deploy(release)
    bare, machine = tmp_path / "bare", gpu_machine(tmp_path / "m")
    said = status_of(config, node, machine=bare).programs
    assert said == "for the processor (this machine has no NVIDIA GPU)"
    said = status_of(config, node, machine=machine).programs
    assert said == "for the processor (NVIDIA 2330; driver 580.95.05)"
    release.gpu_python.touch()
    said = status_of(config, node, machine=machine).programs
    assert said == "for the processor and for a GPU (NVIDIA 2330; driver 580.95.05)"


def test_where_nothing_is_installed_status_says_so(tmp_path: Path) -> None:
    config = Config(Layout(tmp_path), api=ApiSettings(listen_port=1))
    status = status_of(config, PrefixNode(config.layout))
    assert (status.release, status.serving, status.models) == ("", False, ())


def test_models_cannot_be_changed_where_nothing_is_installed(tmp_path: Path) -> None:
    config = Config(Layout(tmp_path))
    models = Models(config, PrefixNode(config.layout), NoProgress())
    with pytest.raises(NotFoundError, match="nothing is installed"), models.changing():
        pass


def test_what_is_neither_bundle_nor_media_is_refused(config: Config, tmp_path: Path) -> None:
    models = Models(config, PrefixNode(config.layout), NoProgress())
    with pytest.raises(NotFoundError, match="neither a bundle nor media"):
        models.verified(tmp_path)


def test_media_and_bundles_one_level_below_are_named(config: Config, tmp_path: Path) -> None:
    """A packager puts them into a folder of the stick."""
    models = Models(config, PrefixNode(config.layout), NoProgress())
    (tmp_path / "stick/appliance/metadata").mkdir(parents=True)
    write_bundle(tmp_path / "stick/guide-2.0", name="guide", version="2.0")
    with pytest.raises(NotFoundError) as caught:
        models.verified(tmp_path / "stick")
    below = (tmp_path / "stick/guide-2.0", tmp_path / "stick/appliance")
    assert caught.value.hint.endswith(f": {below[0]} or {below[1]}")


def test_a_model_that_was_not_loaded_comes_with_what_helps(config: Config, tmp_path: Path) -> None:
    """What the engine says of it: not every model that does not fit is to be compiled anew."""
    store = ModelStore(config.layout.models)
    store.import_bundle(write_bundle(tmp_path / "b", name="a", version="1"), advance=lambda _: None)
    store.activate("a", "1")
    with FakeEngine(config.layout.engine_socket) as engine:
        engine.models["a"] = pb.Model(
            name="a", version="1", bundle_digest=store.active()["a"].digest,
            state=pb.MODEL_STATE_FAILED, error="there is no room", hint="serve fewer",
        )  # fmt: skip
        shown = run_command("status", "--root", str(config.layout.root)).stdout
    assert "\na 1 is not served: there is no room.\nhint: serve fewer\n" in shown
    assert "compile" not in shown


def test_a_service_that_was_stopped_comes_with_the_command_that_starts_it(config: Config) -> None:
    release = InstalledRelease(config.layout.releases / "0.1.0-000000000000")
    release.python.parent.mkdir(parents=True)
    release.python.touch()
    make_current(config.layout, release)
    shown = run_command("status", "--root", str(config.layout.root)).stdout
    assert f"appliance serve does not run: start with `{config.layout.command} serve`." in shown


def test_programs_without_what_the_node_keeps_are_a_disk_that_is_not_mounted(
    config: Config,
) -> None:
    layout = config.layout
    make_current(layout, InstalledRelease(layout.releases / "0.1.0-000000000000"))
    said = "nothing of what the node keeps"
    assert said not in run_command("status", "--root", str(layout.root)).stdout
    shutil.rmtree(layout.state)
    shown = run_command("status", "--root", str(layout.root)).stdout
    assert f"{said} in {layout.state}" in shown
    assert "`findmnt --fstab`" in shown


def test_what_was_never_installed_is_not_told_to_start(config: Config) -> None:
    assert "start with" not in run_command("status", "--root", str(config.layout.root)).stdout


def test_a_change_holds_the_lock_and_lets_its_own_errors_out(config: Config) -> None:
    lock = config.layout.install_state / "lock"
    held = pytest.raises(LockedError, match="another process")
    with held, installing(config.layout, NoProgress()), exclusive_lock(lock):
        pass
    with exclusive_lock(lock):
        pass

"""Media with programs for a GPU, on machines with one and without: the same command, both serve."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.config import Layout, load_config
from appliance.errors import PreflightError
from installer import staging
from installer.install import hand_over, install
from installer.node import PrefixNode
from installer.progress import JsonProgress
from installer.staging import InstalledRelease
from tests.conftest import BuildOnce
from tests.e2e.prefix import Prefix, new_prefix
from tests.fakes.gpu_machine import gpu_machine
from tests.fakes.gpu_node_media import gpu_node_media, runtime_media, trusted
from tests.fakes.gpu_wheels import TENSORRT_LIBRARY
from tests.fakes.node_media import CHAT, EMBEDDING, NodeMedia

Stage = Callable[..., InstalledRelease]


@dataclass(frozen=True, slots=True)
class GpuSite:
    """Media, a prefix, and the kernel's trees of a machine with a GPU."""

    media: NodeMedia
    prefix: Prefix
    machine: Path

    def stage(self, machine: Path, *, processor_only: bool = False) -> InstalledRelease:
        """The first half of `appliance install`, on `machine`."""
        config = load_config(self.prefix.root)
        trusted(self.media, config.layout)
        with (self.prefix.root / "events").open("a") as events:
            return install(
                self.media.media,
                config,
                PrefixNode(config.layout),
                JsonProgress(events),
                machine=machine,
                processor_only=processor_only,
            )

    def notes(self) -> list[str]:
        """What the first half remarked."""
        events = map(json.loads, (self.prefix.root / "events").read_text().splitlines())
        return [event["text"] for event in events if event["event"] == "note"]


@pytest.fixture(scope="module")
def site(build_once: BuildOnce, tmp_path_factory: pytest.TempPathFactory) -> GpuSite:
    root = tmp_path_factory.mktemp("g")
    return GpuSite(runtime_media(build_once), new_prefix(root / "n"), gpu_machine(root / "m"))


def test_a_driver_that_is_too_old_is_named_before_anything_is_copied(
    site: GpuSite, tmp_path: Path
) -> None:
    old = gpu_machine(tmp_path / "old", driver="535.104.05")
    with pytest.raises(PreflightError) as caught:
        site.stage(old)
    assert [blocker.code for blocker in caught.value.blockers] == ["gpu_driver"]
    layout = Layout(site.prefix.root)
    media = trusted(site.media, layout)
    room = [
        sum(share.size for share in staging.space_needed(layout, media, gpu=gpu))
        for gpu in (False, True)
    ]
    assert media.cuda13 is not None
    extra = sum(wheel.size + wheel.unpacked for wheel in media.cuda13.wheels)
    assert room[1] >= room[0] + extra, "the second environment counts"
    assert not (site.prefix.root / "opt").exists()


def test_a_gpu_node_gets_both_environments_however_often_the_installer_is_killed(
    site: GpuSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    def power_cut(*arguments: object) -> None:
        if "venv-cuda13" in str(arguments):
            raise KeyboardInterrupt
        run(*arguments)  # type: ignore[arg-type]

    run = staging._run
    monkeypatch.setattr(staging, "_run", power_cut)
    with pytest.raises(KeyboardInterrupt):
        site.stage(site.machine)
    monkeypatch.undo()
    (left,) = (site.prefix.root / "opt/appliance/releases").iterdir()
    assert not InstalledRelease(left).is_complete()

    release = site.stage(site.machine)
    assert release.directory == left
    assert release.is_complete()
    assert (distribution(release.python), distribution(release.gpu_python)) == (
        "onnxruntime",
        "onnxruntime-gpu",
    )
    library = release.gpu_python.parent.parent / "lib" / f"python{staging.PYTHON}"
    assert (library / "site-packages" / TENSORRT_LIBRARY).is_file()
    stamp = release.gpu_python.parent.stat().st_mtime_ns
    assert site.stage(site.machine) == release
    assert release.gpu_python.parent.stat().st_mtime_ns == stamp, "nothing is made twice"


def test_without_a_gpu_or_without_leave_the_same_media_make_another_release(
    site: GpuSite, tmp_path: Path
) -> None:
    config = load_config(site.prefix.root)
    media = trusted(site.media, config.layout)
    without = staging.release_of(config.layout, media, gpu=False)
    assert without != staging.release_of(config.layout, media, gpu=True)
    release = site.stage(tmp_path / "bare")
    assert release == without
    assert not release.uses_gpu()
    assert site.stage(site.machine, processor_only=True) == without
    assert staging.space_needed(config.layout, media, gpu=False) == ()


@pytest.mark.slow
def test_the_gpu_release_is_provisioned_and_serves(build_once: BuildOnce, tmp_path: Path) -> None:
    site = GpuSite(
        gpu_node_media(build_once), new_prefix(tmp_path / "n"), gpu_machine(tmp_path / "m")
    )
    config = load_config(site.prefix.root)
    release = site.stage(site.machine)
    source = site.media.media
    assert hand_over(release, source, config.layout, as_json=True, allow_expired=False) == 0
    assert staging.current_release(config.layout) == release
    with site.prefix.serving():
        status = site.prefix.run("status")
        assert status["serving"]
        assert {m["name"]: m["state"] for m in status["models"]} == {
            CHAT: "serving",
            EMBEDDING: "serving",
        }


def distribution(python: Path) -> str:
    """Which distribution brought the runtime that this interpreter computes with."""
    program = (
        "from importlib.metadata import packages_distributions as p;print(*set(p()['onnxruntime']))"
    )
    command = [str(python), "-I", "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

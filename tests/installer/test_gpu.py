"""What the kernel shows of a GPU is read without any library, and nothing is guessed."""

from __future__ import annotations

import grp
import os
from pathlib import Path

import pytest

from installer.gpu import Gpus, look, unit_nodes
from tests.fakes.gpu_machine import A100, GIB, H100, gpu_machine, version_text


def test_a_machine_without_a_gpu_has_none(tmp_path: Path) -> None:
    assert look(tmp_path) == Gpus()
    assert look(gpu_machine(tmp_path / "m", devices=(), driver="")) == Gpus()
    assert not look(tmp_path).has_driver


def test_a_gpu_with_its_driver_is_described(tmp_path: Path) -> None:
    found = look(gpu_machine(tmp_path / "m", devices=(H100, H100, A100)))
    assert found.driver == "580.95.05"
    assert [gpu.device for gpu in found.gpus] == [H100, H100, A100]
    assert found.describe() == "2x NVIDIA 2330, NVIDIA 20B2; driver 580.95.05"
    assert found.missing_nodes == ()
    assert found.closed_nodes(system=True) == ()


@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize("version", ["580.95.05", "535.104", "1000.1.1"])
def test_both_kinds_of_driver_say_their_version(
    tmp_path: Path, version: str, is_open: bool
) -> None:
    machine = gpu_machine(tmp_path / "m")
    text = version_text(version, is_open=is_open)
    (machine / "proc/driver/nvidia/version").write_text(text)
    assert look(machine).driver == version


def test_a_gpu_without_a_driver_is_seen_on_the_bus(tmp_path: Path) -> None:
    found = look(gpu_machine(tmp_path / "m", driver=""))
    assert [(gpu.device, gpu.model) for gpu in found.gpus] == [(H100, "")]
    assert not found.has_driver
    assert found.describe() == "NVIDIA GPU 2330; no driver"


def test_a_container_that_hides_the_bus_still_shows_the_driver(tmp_path: Path) -> None:
    machine = gpu_machine(tmp_path / "m")
    (machine / "sys").rename(tmp_path / "hidden")
    found = look(machine)
    assert found.has_driver
    assert [gpu.memory_at_most for gpu in found.gpus] == [None]


@pytest.mark.parametrize(
    ("aperture", "expected"), [(128 * GIB, 128 * GIB), (256 * 1024**2, None), (0, None)]
)
def test_only_a_region_over_all_of_the_memory_bounds_it(
    tmp_path: Path, aperture: int, expected: int | None
) -> None:
    (gpu,) = look(gpu_machine(tmp_path / "m", aperture=aperture)).gpus
    assert gpu.memory_at_most == expected


@pytest.mark.parametrize(
    ("nodes", "missing"),
    [
        ((), ("nvidia0", "nvidiactl", "nvidia-uvm")),
        (("nvidiactl", "nvidia3"), ("nvidia-uvm",)),
        (("nvidiactl", "nvidia-uvm"), ("nvidia0",)),
    ],
)
def test_missing_files_of_the_driver_are_named(
    tmp_path: Path, nodes: tuple[str, ...], missing: tuple[str, ...]
) -> None:
    assert look(gpu_machine(tmp_path / "m", nodes=nodes)).missing_nodes == missing


def test_the_engine_gets_the_gpus_files_and_no_other(tmp_path: Path) -> None:
    nodes = ("nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm", "nvidia-modeset", "nvidia-caps")
    found = look(gpu_machine(tmp_path / "m", nodes=nodes))
    assert unit_nodes(found) == (
        *("/dev/nvidia2", "/dev/nvidia10"),
        *("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"),
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another group")
def test_files_that_belong_to_a_group_name_it(tmp_path: Path) -> None:
    group = next(group for group in grp.getgrall() if group.gr_gid)
    machine = gpu_machine(tmp_path / "m", mode=0o660)
    found = look(machine)
    assert found.groups == ()
    assert len(found.closed_nodes(system=True)) == 4
    for path in (machine / "dev").iterdir():
        os.chown(path, 0, group.gr_gid)
    found = look(machine)
    assert found.groups == (group.gr_name,)
    assert found.closed_nodes(system=True) == ()
    for path in (machine / "dev").iterdir():
        path.chmod(0o640)
    assert len(look(machine).closed_nodes(system=True)) == 4


def test_the_drivers_libraries_are_found_as_the_linker_finds_them(tmp_path: Path) -> None:
    machine = gpu_machine(tmp_path / "m")
    found = look(machine)
    assert (found.missing_libraries, found.libraries) == ((), "580.95.05")
    (machine / "etc/ld.so.cache").unlink()
    assert look(machine).missing_libraries == ("libcuda.so.1", "libnvidia-ml.so.1")
    place = machine / "usr/lib/x86_64-linux-gnu"
    (machine / "usr/lib/nvidia/current").rename(place)
    assert (look(machine).missing_libraries, look(machine).libraries) == ((), "580.95.05")
    (place / "libcuda.so.580.95.05").unlink()
    assert look(machine).missing_libraries == ("libcuda.so.1",)


def test_a_library_that_does_not_say_its_version_is_taken_as_it_is(tmp_path: Path) -> None:
    machine = gpu_machine(tmp_path / "m")
    library = machine / "usr/lib/nvidia/current/libnvidia-ml.so.1"
    library.unlink()
    library.write_text("")
    assert (look(machine).missing_libraries, look(machine).libraries) == ((), "")


def test_looking_changes_nothing(tmp_path: Path) -> None:
    machine = gpu_machine(tmp_path / "m")
    before = sorted(machine.rglob("*"))
    look(machine)
    assert sorted(machine.rglob("*")) == before

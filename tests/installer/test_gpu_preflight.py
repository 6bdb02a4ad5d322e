"""A GPU that media would use and that cannot be used is named before anything is copied."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from installer import gpu_preflight, preflight
from installer.gpu import Gpus, look
from installer.gpu_preflight import GpuNeeds
from tests.fakes.gpu_machine import GIB, H100, P100, V100, gpu_machine
from tests.installer.test_preflight import FULL, GOOD, NEEDS

WANTED = GpuNeeds(offered=True, tensorrt=True, smallest_model=8 * GIB)
Machine = Callable[..., Gpus]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    def make(**options: object) -> Gpus:
        return look(gpu_machine(tmp_path / "m", **options))  # type: ignore[arg-type]

    return make


def codes(gpus: Gpus, needs: GpuNeeds = WANTED) -> tuple[list[str], list[str]]:
    """Of blockers and of remarks."""
    found = list(gpu_preflight.blockers(gpus, needs))
    said = list(gpu_preflight.remarks(gpus, needs))
    assert all(blocker.message and blocker.remedy for blocker in found)
    assert all(remark.message and remark.remedy for remark in said)
    return [blocker.code for blocker in found], [remark.code for remark in said]


def test_a_gpu_that_fits_is_used_without_a_word(machine: Machine) -> None:
    gpus = machine()
    assert gpu_preflight.uses_gpu(gpus, WANTED)
    assert codes(gpus) == ([], [])


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"driver": "570.195.03"}, "gpu_driver"),
        ({"driver": "535.1"}, "gpu_driver"),
        ({"nodes": ()}, "gpu_devices"),
        ({"nodes": ("nvidia0", "nvidiactl")}, "gpu_devices"),
        ({"libraries": None}, "gpu_libraries"),
        ({"libraries": "590.44.01"}, "gpu_driver_halves"),
        ({"devices": (V100,)}, "gpu_generation"),
        ({"devices": (P100, V100)}, "gpu_generation"),
    ],
)
def test_each_mismatch_is_one_blocker_whose_remedy_names_the_way_without(
    machine: Machine, options: dict[str, object], code: str
) -> None:
    gpus = machine(**options)
    assert codes(gpus) == ([code], [])
    (blocker,) = gpu_preflight.blockers(gpus, WANTED)
    assert "--processor-only" in blocker.remedy
    unused = replace(WANTED, wanted=False)
    assert not gpu_preflight.uses_gpu(gpus, unused)
    assert codes(gpus, unused) == ([], [])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"libraries": None}, "but libcuda.so.1, libnvidia-ml.so.1 are not there"),
        ({"nodes": ("nvidia0", "nvidiactl")}, "but /dev/nvidia-uvm is not there"),
    ],
)
def test_what_is_missing_is_said_in_words_that_fit_its_number(
    machine: Machine, options: dict[str, object], said: str
) -> None:
    (blocker,) = gpu_preflight.blockers(machine(**options), WANTED)
    assert blocker.message.endswith(said)
    assert "container" in blocker.remedy


def test_files_that_the_engine_could_not_open_are_a_blocker(machine: Machine) -> None:
    assert codes(machine(mode=0o600)) == (["gpu_access"], [])


@pytest.mark.parametrize("driver", ["580.65.06", "580.1", "590.44.01", "1000.2"])
def test_newer_drivers_are_no_obstacle(machine: Machine, driver: str) -> None:
    assert codes(machine(driver=driver)) == ([], [])


def test_one_gpu_that_is_new_enough_is_enough(machine: Machine) -> None:
    assert codes(machine(devices=(V100, H100))) == ([], [])


def test_all_mismatches_are_named_together_with_the_others(machine: Machine) -> None:
    gpus = machine(driver="470.1", devices=(P100,), nodes=())
    facts = replace(GOOD, gpus=gpus, disks=FULL)
    found = {blocker.code for blocker in preflight.blockers(facts, replace(NEEDS, gpu=WANTED))}
    assert found == {"gpu_driver", "gpu_generation", "gpu_devices", "disk"}


def test_a_gpu_that_the_media_do_not_know_is_a_remark_and_no_blocker(machine: Machine) -> None:
    gpus = machine(driver="470.1", nodes=())
    media = replace(WANTED, offered=False)
    assert not gpu_preflight.uses_gpu(gpus, media)
    assert codes(gpus, media) == ([], ["gpu_media"])


def test_a_gpu_without_its_driver_is_a_remark_where_a_driver_would_help(machine: Machine) -> None:
    gpus = machine(driver="")
    assert not gpu_preflight.uses_gpu(gpus, WANTED)
    assert codes(gpus) == ([], ["gpu_without_driver"])
    assert codes(gpus, replace(WANTED, offered=False)) == ([], [])


def test_media_without_tensorrt_say_what_the_gpu_does_instead(machine: Machine) -> None:
    assert codes(machine(), replace(WANTED, tensorrt=False)) == ([], ["gpu_tensorrt"])


@pytest.mark.parametrize(
    ("aperture", "model", "said"),
    [
        (16 * GIB, 16 * GIB + 1, ["gpu_memory"]),
        (16 * GIB, 16 * GIB, []),
        (256 * 1024**2, 900 * GIB, []),
        (16 * GIB, 0, []),
    ],
)
def test_too_little_memory_is_said_only_where_it_is_certain(
    machine: Machine, aperture: int, model: int, said: list[str]
) -> None:
    gpus = machine(aperture=aperture)
    assert codes(gpus, replace(WANTED, smallest_model=model)) == ([], said)


def test_a_model_may_be_spread_over_the_largest_gpus(machine: Machine) -> None:
    one = machine(aperture=16 * GIB)
    small = machine(aperture=8 * GIB).gpus
    several = replace(one, gpus=(*one.gpus * 3, *small))
    assert codes(several, replace(WANTED, smallest_model=48 * GIB)) == ([], [])
    assert codes(several, replace(WANTED, smallest_model=48 * GIB + 1)) == ([], ["gpu_memory"])


def test_a_machine_without_a_gpu_hears_nothing_of_it() -> None:
    assert codes(Gpus()) == ([], [])
    assert not gpu_preflight.uses_gpu(Gpus(), WANTED)

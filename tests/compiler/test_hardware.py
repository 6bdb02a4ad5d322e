"""The GPU is what the driver says; without one there is a reason and no exception."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from appliance.compiler.hardware import NO_DRIVER, Gpu, NoGpu, has_driver, read_gpu
from tests.fakes.gpu import H100, FakeNvml

CALLS = [
    *("nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetMemoryInfo"),
    *("nvmlDeviceGetCudaComputeCapability", "nvmlSystemGetCudaDriverVersion_v2"),
    *("nvmlDeviceGetName", "nvmlSystemGetDriverVersion"),
]


def test_a_gpu_is_read_whole() -> None:
    nvml = FakeNvml([H100], driver="590.1", cuda=13_020)
    assert read_gpu(nvml) == replace(H100, driver="590.1", cuda=(13, 2))
    assert nvml.calls[-1] == "nvmlShutdown"


def test_of_several_kinds_the_largest_is_used() -> None:
    small = replace(H100, name="NVIDIA T4", memory_bytes=16_000_000_000, free=(15_000_000_000,))
    found = read_gpu(FakeNvml([small, H100, small]))
    assert found == replace(H100, numbers=(1,), count=3)


def test_all_gpus_of_a_kind_are_used_the_one_with_most_free_memory_first() -> None:
    busy, freest = (replace(H100, free=(free,)) for free in (1_000, 84_500_000_000))
    other = replace(H100, name="NVIDIA H100 NVL")
    found = read_gpu(FakeNvml([busy, H100, other, freest, H100]))
    free = 84_500_000_000, *H100.free, *H100.free, 1_000
    assert found == replace(freest, free=free, numbers=(3, 1, 4, 0), count=5)


@pytest.mark.parametrize("call", CALLS)
def test_a_driver_that_fails_is_a_reason(call: str) -> None:
    found = read_gpu(FakeNvml([H100], broken=call))
    assert isinstance(found, NoGpu)
    assert found.reason


def test_a_driver_without_a_gpu_is_a_reason() -> None:
    assert read_gpu(FakeNvml([])) == NoGpu("the NVIDIA driver finds no GPU", "driver_fails")


def test_without_the_library_or_a_driver_there_is_no_gpu() -> None:
    found = read_gpu()
    assert isinstance(found, Gpu | NoGpu)
    if not has_driver():
        assert isinstance(found, NoGpu)
        assert found.reason in {
            NO_DRIVER,
            "the library that asks the NVIDIA driver is not installed",
        }


def test_a_driver_is_seen_by_what_the_kernel_shows(tmp_path: Path) -> None:
    assert not has_driver(tmp_path / "version")
    (tmp_path / "version").touch()
    assert has_driver(tmp_path / "version")

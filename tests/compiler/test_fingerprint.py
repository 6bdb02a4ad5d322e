"""An artifact's key changes with everything that it depends on, and with nothing else."""

from __future__ import annotations

from dataclasses import replace

import onnxruntime as ort
import pytest

from appliance.compiler.fingerprint import artifact_key, fingerprint, fingerprints, fingerprints_of
from appliance.compiler.hardware import Gpu, NoGpu
from appliance.compiler.libraries import Libraries
from tests.fakes.gpu import ALL_LIBRARIES, H100, LIBRARIES

OTHER_GPUS = {
    "model": replace(H100, name="NVIDIA H200"),
    "capability": replace(H100, capability=(9, 1)),
    "memory": replace(H100, memory_bytes=H100.memory_bytes + 1),
    "driver": replace(H100, driver="580.95.06"),
}
OTHER_LIBRARIES = {
    "cuda": replace(ALL_LIBRARIES, cuda="13.1"),
    "cudnn": replace(ALL_LIBRARIES, cudnn="9.15.2"),
    "tensorrt": replace(ALL_LIBRARIES, tensorrt="10.16.2"),
}


def test_the_key_of_an_artifact_for_the_processor_is_what_it_was() -> None:
    values = fingerprint()
    assert list(values) == [
        *("variant", "revision", "onnxruntime", "machine", "cpu", "extensions", "native"),
    ]
    assert (values["variant"], values["revision"]) == ("cpu", "2")
    assert values["onnxruntime"] == ort.__version__
    example = dict.fromkeys(values, "x")
    assert artifact_key("0" * 64, example) == "15f65ac090b990b7876d8ce1e23fdaca8a3af03b"


def keys(gpu: Gpu | NoGpu, libraries: Libraries) -> dict[str, str]:
    found = fingerprints_of(gpu, libraries)
    return {provider: artifact_key("0" * 64, values) for provider, values in found.items()}


@pytest.mark.parametrize("name", OTHER_GPUS)
def test_another_gpu_or_driver_is_another_key(name: str) -> None:
    before, after = keys(H100, ALL_LIBRARIES), keys(OTHER_GPUS[name], ALL_LIBRARIES)
    assert before["cuda"] != after["cuda"]
    assert before["tensorrt"] != after["tensorrt"]


@pytest.mark.parametrize("name", OTHER_LIBRARIES)
def test_another_library_is_another_key_for_what_uses_it(name: str) -> None:
    before, after = keys(H100, ALL_LIBRARIES), keys(H100, OTHER_LIBRARIES[name])
    assert before["tensorrt"] != after["tensorrt"]
    assert (before["cuda"] != after["cuda"]) == (name != "tensorrt")


def test_what_memory_is_free_and_where_the_gpu_sits_change_nothing() -> None:
    moved = replace(H100, free=(1,), numbers=(3, 1), count=4)
    assert keys(H100, ALL_LIBRARIES) == keys(moved, ALL_LIBRARIES)


def test_providers_that_cannot_be_loaded_have_no_key() -> None:
    assert list(keys(H100, ALL_LIBRARIES)) == ["tensorrt", "cuda", "cpu"]
    assert list(keys(H100, LIBRARIES)) == ["cuda", "cpu"]
    without = replace(LIBRARIES, missing_cuda="libcudart.so.13: cannot open")
    assert list(keys(H100, without)) == ["cpu"]
    assert list(keys(NoGpu("none"), ALL_LIBRARIES)) == ["cpu"]


def test_beside_a_gpu_the_processors_key_depends_on_it() -> None:
    # So that a model which fell back is asked again when its GPU or driver changes.
    assert len({keys(gpu, LIBRARIES)["cpu"] for gpu in (H100, *OTHER_GPUS.values())}) == 3
    assert keys(NoGpu("none"), LIBRARIES)["cpu"] != keys(H100, LIBRARIES)["cpu"]


def test_the_processors_runtime_has_one_fingerprint() -> None:
    assert fingerprints() == {"cpu": fingerprint()}

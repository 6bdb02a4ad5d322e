"""Every rung is left only for a reason, which is stated; the order never changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.bundle.files import MANIFEST_NAME
from appliance.bundle.manifest import Manifest, decode
from appliance.compiler.hardware import Gpu
from appliance.compiler.ladder import LADDER, WIDE_SUMS, choose, fit_on, fits, refused, unusable
from appliance.compiler.libraries import Libraries
from appliance.compiler.machine import Machine, without_gpu
from appliance.compiler.memory import choose_precision, divided, needed
from appliance.compiler.record import Provider, Refusal
from appliance.errors import (
    ApplianceError,
    CapacityError,
    DigestError,
    UnsupportedError,
    VerificationError,
)
from installer.checkpoint.families import gemma3
from installer.checkpoint.families.known import FAMILIES
from tests.fakes.gpu import ALL_LIBRARIES, H100, LIBRARIES, machine_with

GIB = 1 << 30


@pytest.fixture(scope="module")
def manifest(decoder_bundle: Path) -> Manifest:
    """With a graph for every provider."""
    manifest = decode((decoder_bundle / MANIFEST_NAME).read_bytes())
    cuda = manifest.variant("cuda")
    assert cuda is not None
    trt = msgspec.structs.replace(cuda, variant="trt")
    return msgspec.structs.replace(manifest, graphs=(manifest.graph, cuda, trt))


def succeed(provider: Provider, _reasons: tuple[Refusal, ...]) -> Provider:
    return provider


def test_where_nothing_speaks_against_it_tensorrt_is_taken(manifest: Manifest) -> None:
    rung = choose(manifest, machine_with(H100, ALL_LIBRARIES), succeed)
    assert (rung.made, rung.reasons) == ("tensorrt", ())


REASONS: dict[str, Callable[[], Machine]] = {
    "no_gpu": lambda: without_gpu("this machine has no NVIDIA GPU", "no_gpu"),
    "driver_fails": lambda: without_gpu("the NVIDIA driver does not answer", "driver_fails"),
    "no_runtime": lambda: Machine(gpu=H100, fingerprints={}),
    "driver_too_old": lambda: machine_with(replace(H100, driver="575.64", cuda=(12, 9))),
    "capability_too_low": lambda: machine_with(replace(H100, capability=(7, 0))),
    "memory_too_small": lambda: machine_with(replace(H100, memory_bytes=GIB), ALL_LIBRARIES),
    "library_missing": lambda: machine_with(
        H100, replace(LIBRARIES, missing_cuda="libcudart.so.13: no such file")
    ),
}


@pytest.mark.parametrize("code", REASONS)
def test_a_machine_that_cannot_is_left_with_its_reason(manifest: Manifest, code: str) -> None:
    machine = REASONS[code]()
    rung = choose(manifest, machine, succeed)
    assert rung.made is None
    assert [reason.provider for reason in rung.reasons] == ["tensorrt", "cuda"]
    assert {reason.code for reason in rung.reasons} == {code}
    assert all(reason.message for reason in rung.reasons)
    about_the_model = code == "memory_too_small"
    assert (unusable(machine) is None) == about_the_model


def test_the_reasons_carry_the_numbers(manifest: Manifest) -> None:
    old = refused("cuda", manifest, REASONS["driver_too_old"]())
    low = refused("cuda", manifest, REASONS["capability_too_low"]())
    small = refused("cuda", manifest, REASONS["memory_too_small"]())
    assert old is not None
    assert "575.64" in old.message
    assert "580" in old.message
    assert low is not None
    assert "7.0" in low.message
    assert "7.5" in low.message
    assert small is not None
    assert "has 1.0 GiB" in small.message


def test_a_bundle_without_a_graph_for_the_gpu_stays_on_the_processor(manifest: Manifest) -> None:
    old = msgspec.structs.replace(manifest, graphs=manifest.graphs[:1])
    rung = choose(old, machine_with(H100, ALL_LIBRARIES), succeed)
    assert rung.made is None
    assert {reason.code for reason in rung.reasons} == {"no_variant"}


def test_without_tensorrts_library_cuda_is_taken(manifest: Manifest) -> None:
    rung = choose(manifest, machine_with(), succeed)
    assert rung.made == "cuda"
    (reason,) = rung.reasons
    assert (reason.provider, reason.code) == ("tensorrt", "library_missing")
    assert "libnvinfer.so.10" in reason.message


def test_a_model_whose_sums_need_32_bits_is_not_left_to_tensorrt(manifest: Manifest) -> None:
    gemma = msgspec.structs.replace(manifest, family="gemma3")
    rung = choose(gemma, machine_with(H100, ALL_LIBRARIES), succeed)
    assert rung.made == "cuda"
    assert [(reason.provider, reason.code) for reason in rung.reasons] == [
        ("tensorrt", "types_not_kept")
    ]
    assert {name for name, family in FAMILIES.items() if family.build is gemma3.build} == WIDE_SUMS


def test_a_model_that_reads_takes_cuda_and_has_no_graph_for_tensorrt(encoder_bundle: Path) -> None:
    manifest = decode((encoder_bundle / MANIFEST_NAME).read_bytes())
    rung = choose(manifest, machine_with(H100, ALL_LIBRARIES), succeed)
    assert rung.made == "cuda"
    assert [(reason.provider, reason.code) for reason in rung.reasons] == [
        ("tensorrt", "no_variant")
    ]
    small = refused("cuda", manifest, machine_with(replace(H100, memory_bytes=GIB)))
    assert small is not None
    assert small.code == "memory_too_small"
    assert "the longest text" in small.message
    old = msgspec.structs.replace(manifest, graphs=manifest.graphs[:1])
    rung = choose(old, machine_with(H100, ALL_LIBRARIES), succeed)
    assert rung.made is None
    assert {reason.code for reason in rung.reasons} == {"no_variant"}


def test_weights_are_8_bit_floats_where_others_do_not_fit_and_the_chip_has_kernels_for_them(
    manifest: Manifest,
) -> None:
    cpu, cuda = manifest.graph, manifest.variant("cuda")
    assert cuda is not None
    graphs = (
        msgspec.structs.replace(cpu, precision="fp8"),
        cuda,
        msgspec.structs.replace(cuda, precision="fp8"),
    )
    floats = msgspec.structs.replace(manifest, graphs=graphs)

    def chosen(gpu: Gpu) -> str | None:
        fit = choose_precision(fits("cuda", floats, gpu))
        return None if fit is None else fit.precision

    large = fits("cuda", floats, H100)[0]
    small = replace(H100, memory_bytes=needed(large) - 1)
    assert chosen(H100) == "fp16"
    assert chosen(small) == "fp8"
    assert chosen(replace(small, capability=(8, 0))) == "fp8"
    turing = replace(small, capability=(7, 5))
    assert chosen(turing) is None
    refusal = refused("cuda", floats, machine_with(turing))
    assert refusal is not None
    assert refusal.code == "memory_too_small"
    assert "in fp16" in refusal.message
    assert chosen(replace(turing, memory_bytes=needed(large))) == "fp16"


def several(memory: int, count: int) -> Gpu:
    """GPUs of one kind."""
    return replace(
        H100, memory_bytes=memory, numbers=(*range(count),), free=(memory,) * count, count=count
    )


def test_a_model_too_large_for_one_gpu_is_cut_for_as_few_as_have_room(manifest: Manifest) -> None:
    assert manifest.decoder is not None
    whole = fits("cuda", manifest, H100)[0]
    room = needed(divided(whole, manifest.decoder, 3))
    assert needed(divided(whole, manifest.decoder, 2)) > room
    cut = fit_on("cuda", manifest, several(room, 8))
    assert cut is not None
    assert (cut.gpus, cut.precision) == (3, whole.precision)
    rung = choose(manifest, machine_with(several(room, 8), ALL_LIBRARIES), succeed)
    assert rung.made == "cuda"
    assert [(r.provider, r.code) for r in rung.reasons] == [("tensorrt", "memory_too_small")]
    for too_few in (several(room, 2), several(room - 1, 3)):
        refusal = refused("cuda", manifest, machine_with(too_few))
        assert refusal is not None
        assert f"there are {too_few.count} of it" in refusal.message


@given(st.integers(0, 1 << 22), st.integers(1, 9))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_fewer_gpus_and_no_more_exact_weights_would_have_done(
    manifest: Manifest, beside: int, count: int
) -> None:
    spec, gpu = manifest.decoder, several(GIB + beside, count)
    assert spec is not None
    options, found = fits("cuda", manifest, gpu), fit_on("cuda", manifest, gpu)
    if found is not None:
        assert found.gpus <= count
        assert needed(found) <= gpu.memory_bytes
    fewer = range(1, count + 1 if found is None else found.gpus)
    every = [divided(fit, spec, n) if n > 1 else fit for n in fewer for fit in options]
    assert all(needed(fit) > gpu.memory_bytes for fit in every)


def failing(error: ApplianceError) -> Callable[[Provider, tuple[Refusal, ...]], Provider]:
    def attempt(provider: Provider, reasons: tuple[Refusal, ...]) -> Provider:
        if provider == "tensorrt":
            raise error
        return provider

    return attempt


@pytest.mark.parametrize(
    "error",
    [
        UnsupportedError("golden results differ by 0.5", code="golden_differs"),
        CapacityError("the GPU is full"),
    ],
)
def test_an_attempt_that_fails_is_a_reason(manifest: Manifest, error: ApplianceError) -> None:
    rung = choose(manifest, machine_with(H100, ALL_LIBRARIES), failing(error))
    assert rung.made == "cuda"
    expected = Refusal(provider="tensorrt", code=error.code, message=error.message)
    assert rung.reasons == (expected,)


@pytest.mark.parametrize("error", [DigestError("altered"), VerificationError("refused")])
def test_a_bundle_that_does_not_verify_is_no_reason_to_step_down(
    manifest: Manifest, error: ApplianceError
) -> None:
    with pytest.raises(type(error)):
        choose(manifest, machine_with(H100, ALL_LIBRARIES), failing(error))


machines = st.builds(
    Machine,
    gpu=st.none()
    | st.builds(
        Gpu,
        name=st.just("G"),
        capability=st.tuples(st.integers(5, 12), st.integers(0, 9)),
        memory_bytes=st.integers(0, 96 * GIB),
        free=st.just((0,)),
        driver=st.sampled_from(["", "470.1", "580.1", "600", "beta"]),
        cuda=st.tuples(st.integers(11, 14), st.integers(0, 9)),
        numbers=st.just((0,)),
        count=st.just(1),
    ),
    reason=st.just("none"),
    libraries=st.none()
    | st.builds(
        Libraries,
        cuda=st.just("13.0"),
        cudnn=st.just("9"),
        tensorrt=st.just("10"),
        missing_cuda=st.sampled_from(["", "libcudart.so.13"]),
        missing_tensorrt=st.sampled_from(["", "libnvinfer.so.10"]),
    ),
    fingerprints=st.just({}),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(machine=machines, fails=st.sets(st.sampled_from(LADDER[:-1])), graphs=st.integers(1, 3))
def test_whatever_the_machine_every_rung_above_has_its_one_reason(
    manifest: Manifest, machine: Machine, fails: set[Provider], graphs: int
) -> None:
    bundle = msgspec.structs.replace(manifest, graphs=manifest.graphs[:graphs])
    tried: list[Provider] = []

    def attempt(provider: Provider, _reasons: tuple[Refusal, ...]) -> Provider:
        tried.append(provider)
        if provider in fails:
            raise UnsupportedError("it fails")
        return provider

    rung = choose(bundle, machine, attempt)
    assert choose(bundle, machine, attempt) == rung
    taken = LADDER.index(rung.made or "cpu")
    assert [reason.provider for reason in rung.reasons] == list(LADDER[:taken])
    assert all(reason.code and reason.message for reason in rung.reasons)
    for provider in tried:
        assert refused(provider, bundle, machine) is None

"""Media for GPU nodes: a second set of wheels, signed and locked like the first."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace as changed
from pathlib import Path

import pytest
from typer.testing import CliRunner

from appliance.errors import (
    DigestError,
    LayoutError,
    UnavailableError,
    UnsupportedError,
    UsageError,
)
from appliance.fsops import hash_regular, walk_files
from installer.cli.app import app
from installer.media import target, verify_media
from installer.media.build import check_targets
from installer.media.gpu_wheels import TENSORRT, TENSORRT_VERSION, gather
from installer.media.lockfile import PYTHONS, Pin, parse_lock, write_lock
from installer.media.release import MAX_FILE_BYTES, ReleaseFile
from installer.media.wheelhouse import Locks, Wheelhouse
from tests.conftest import BuildOnce
from tests.fakes.gpu_wheels import (
    LIBRARIES,
    FakeGpuWheels,
    fake_gpu_wheels,
    give_tensorrt,
    write_wheel,
)
from tests.fakes.media import build_media
from tests.media.conftest import Site, replace

ONE = ("3.11",)


@pytest.fixture(scope="module")
def wheels(site: Site, tmp_path_factory: pytest.TempPathFactory) -> FakeGpuWheels:
    """The set without TensorRT; `site` has filled the repository's cache."""
    assert site.media.is_dir()
    cache = tmp_path_factory.mktemp("gpu") / "wheels"
    return fake_gpu_wheels(cache, pythons=ONE, tensorrt=False)


@pytest.fixture(scope="module")
def gpu_site(site: Site, build_once: BuildOnce) -> Site:
    """Media with target cuda13 and TensorRT, signed with the keys of a site of their own."""

    def build(directory: Path) -> None:
        made = fake_gpu_wheels(directory / "wheels", pythons=ONE, tensorrt=True)
        assert site.media.is_dir()
        for name in ("keys", "tiny"):
            _copy(site.directory / name, directory / name)
        build_media(
            directory / "media",
            [directory / "tiny"],
            directory / "keys",
            pythons=ONE,
            wheel_cache=made.cache,
            targets=["cuda13"],
            locks=made.locks,
        )

    return Site(build_once("gpu-media-site", build))


# The real lock


def test_the_lock_of_gpu_nodes_agrees_with_that_of_every_node() -> None:
    locks = Locks.of_checkout()
    there = {(pin.name, pin.version, pin.marker): pin for pin in parse_lock(locks.cuda13)}
    for pin in parse_lock(locks.node):
        if pin.name != "onnxruntime":
            twin = there[pin.name, pin.version, pin.marker]
            assert pin.hashes <= twin.hashes, "what media have is what both locks name"


def test_the_lock_names_the_runtime_and_what_its_providers_link() -> None:
    names = {pin.name for pin in parse_lock(Locks.of_checkout().cuda13)}
    assert names >= {"onnxruntime-gpu", *LIBRARIES}
    assert "onnxruntime" not in names, "both own the same import folder"
    assert not names & TENSORRT.keys(), "no public index has these as wheels"


@pytest.mark.slow
def test_every_interpreter_finds_the_real_wheels(tmp_path: Path) -> None:
    """What the index has is what the lock names; the smallest of the wheels is fetched."""
    lock = Locks.of_checkout().cuda13
    (small,) = [pin for pin in parse_lock(lock) if pin.name == "nvidia-ml-py"]
    (wheel,) = Wheelhouse(tmp_path).wheels(write_lock([small]))
    assert wheel.sha256 in small.hashes
    assert wheel.pythons == PYTHONS


# What is on the media


def test_the_extra_wheels_are_on_the_media_and_every_byte_verifies(
    gpu_site: Site, tmp_path: Path
) -> None:
    media = gpu_site.open(gpu_site.media, tmp_path)
    verify_media(media)
    assert media.cuda13 is not None
    assert media.cuda13.has_tensorrt
    names = {Path(wheel.path).name.split("-")[0] for wheel in media.cuda13.wheels}
    expected = {"onnxruntime-gpu", "tensorrt-cu13-libs", *LIBRARIES}
    assert names == {name.replace("-", "_") for name in expected}
    assert {wheel.path for wheel in media.cuda13.wheels} == {
        name for name in walk_files(gpu_site.media) if name.startswith("cuda13/")
    }
    for wheel in media.cuda13.wheels_for("3.11"):
        assert wheel.unpacked > 0
    assert media.cuda13.wheels_for("3.12") == ()


def test_their_lock_is_the_whole_environment_with_the_other_runtime(
    gpu_site: Site, tmp_path: Path
) -> None:
    media = gpu_site.open(gpu_site.media, tmp_path)
    assert media.cuda13 is not None
    assert b"://" not in media.gpu_requirements()
    first = {pin.name: pin for pin in parse_lock(media.requirements().decode())}
    lock = parse_lock(media.gpu_requirements().decode())
    second = {pin.name: pin for pin in lock}
    assert len([pin for pin in lock if pin.applies("3.11")]) == len(second)
    assert first.keys() - second.keys() == {"onnxruntime"}
    wheels = (*media.wheels_for("3.11"), *media.cuda13.wheels_for("3.11"))
    available = {wheel.sha256 for wheel in wheels}
    for pin in lock:
        assert not pin.applies("3.11") or pin.hashes & available, pin.name


def test_a_release_that_knows_no_targets_reads_such_media(gpu_site: Site, tmp_path: Path) -> None:
    """Its `release.json` has the form that the first release reads: files, and wheels."""
    media = gpu_site.open(gpu_site.media, tmp_path)
    listed = {file.path for file in media.release.files}
    assert media.cuda13 is not None
    assert {wheel.path for wheel in media.cuda13.wheels} <= listed
    assert all(not wheel.path.startswith("cuda13/") for wheel in media.release.wheels)


def test_media_without_the_target_have_nothing_of_it(site: Site, tmp_path: Path) -> None:
    assert site.open(site.media, tmp_path).cuda13 is None
    assert not [name for name in walk_files(site.media) if "cuda13" in name and "docs/" not in name]


@pytest.mark.parametrize("kind", ["wheel", "document", "lock"])
def test_no_part_of_the_target_can_be_altered(gpu_site: Site, tmp_path: Path, kind: str) -> None:
    media = _copy(gpu_site.media, tmp_path / "media")
    (wheel,) = media.glob("cuda13/nvidia_cublas-*.whl")
    path = {
        "wheel": wheel,
        "document": media / "targets/appliance/cuda13.json",
        "lock": media / "targets/appliance/cuda13.txt",
    }[kind]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    replace(path, bytes(data))
    with pytest.raises(DigestError) as caught:
        verify_media(gpu_site.open(media, tmp_path / "state"))
    assert caught.value.path == path.relative_to(media).as_posix()


def test_a_target_lists_only_what_the_release_lists(gpu_site: Site, tmp_path: Path) -> None:
    media = gpu_site.open(gpu_site.media, tmp_path)
    assert media.cuda13 is not None
    data = target.encode(media.cuda13)
    assert target.decode(data, "cuda13", media.release.files) == media.cuda13
    with pytest.raises(LayoutError, match="does not list"):
        target.decode(data, "cuda13", ())
    wrong = [ReleaseFile(path=w.path, size=w.size, sha256="0" * 64) for w in media.cuda13.wheels]
    with pytest.raises(LayoutError, match="does not list"):
        target.decode(data, "cuda13", wrong)
    for bad in (b"{}", data + b" ", data.replace(b"cuda13", b"cuda14"), b"\xff"):
        with pytest.raises(LayoutError):
            target.decode(bad, "cuda13", media.release.files)


# What the packager gives


def test_without_tensorrt_media_are_built_and_say_so(
    wheels: FakeGpuWheels, keys: Path, tmp_path: Path, site: Site
) -> None:
    built = build_media(
        tmp_path / "out",
        [],
        keys,
        pythons=ONE,
        wheel_cache=wheels.cache,
        targets=["cuda13", "cuda13"],
        locks=wheels.locks,
    )
    assert (built.targets, built.tensorrt) == (("cuda13",), False)
    done = CliRunner().invoke(app, ["media", "verify", str(built.path), "--json"])
    document = json.loads(done.stdout)
    assert (document["targets"], document["tensorrt"]) == (["cuda13"], False)
    plain = CliRunner().invoke(app, ["media", "verify", str(site.media)])
    assert "none" in plain.stdout


def test_tensorrt_of_another_version_is_refused_by_name(
    wheels: FakeGpuWheels, tmp_path: Path
) -> None:
    cache = _copy(wheels.cache, tmp_path / "cache")
    path = give_tensorrt(cache, "11.4.0.106")
    with pytest.raises(UsageError, match=r"tensorrt_cu13_libs-11\.4") as caught:
        gather(cache, wheels.locks, pythons=ONE, status=lambda _: None)
    assert TENSORRT_VERSION in caught.value.message
    assert str(path.parent) in caught.value.hint


def test_a_wheel_that_a_stick_cannot_hold_is_refused_by_name(
    wheels: FakeGpuWheels, tmp_path: Path
) -> None:
    cache = _copy(wheels.cache, tmp_path / "cache")
    path = give_tensorrt(cache)
    os.truncate(path, MAX_FILE_BYTES + 1)
    with pytest.raises(UnsupportedError, match=path.name):
        gather(cache, wheels.locks, pythons=ONE, status=lambda _: None)


def test_a_wheel_that_is_not_the_locked_one_is_never_taken(
    wheels: FakeGpuWheels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = _copy(wheels.cache, tmp_path / "cache")
    (cublas,) = cache.glob("nvidia_cublas-*.whl")
    replace(cublas, cublas.read_bytes() + b"!")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(cache))
    with pytest.raises(UnavailableError, match="pip"):
        gather(cache, wheels.locks, pythons=ONE, status=lambda _: None)


def test_bindings_for_each_interpreter_share_one_pin(wheels: FakeGpuWheels, tmp_path: Path) -> None:
    cache = _copy(wheels.cache, tmp_path / "cache")
    made = [
        write_wheel(cache, "tensorrt-cu13-bindings", TENSORRT_VERSION, f"{tag}-none-any", {})
        for tag in ("cp311", "cp312")
    ]
    gathered = gather(cache, wheels.locks, pythons=ONE, status=lambda _: None)
    assert [wheel.path for wheel in gathered.given] == [made[0]], "media for CPython 3.11 alone"
    both = changed(gathered, given=Wheelhouse(cache).given(TENSORRT, pythons=("3.11", "3.12")))
    lock = both.lock(wheels.locks, Pin("appliance", "1", "", frozenset({"0" * 64})))
    (pin,) = [pin for pin in parse_lock(lock) if pin.name == "tensorrt-cu13-bindings"]
    assert pin.hashes == {hash_regular(path, name=path.name)[1] for path in made}


def test_an_unknown_target_is_refused_before_anything_is_made(keys: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cuda12") as caught:
        build_media(tmp_path / "out", [], keys, targets=["cuda12"])
    assert "cuda13" in caught.value.hint
    check_targets(["cuda13"])
    assert not list(tmp_path.glob("*out*"))


def _copy(source: Path, destination: Path) -> Path:
    """A copy by hard links: replace a file, never write into one."""
    return Path(shutil.copytree(source, destination, copy_function=os.link))

"""Media hold exactly what was signed, and go only forward."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.errors import (
    CapacityError,
    ConflictError,
    DigestError,
    LayoutError,
    LockedError,
    MetadataError,
    NotFoundError,
    StorageError,
    VerificationError,
)
from appliance.fsops import check_relative, exclusive_lock, hash_regular, walk_files
from appliance.trust.store import TrustStore
from installer import pyz
from installer.ceremony import hold_ceremony
from installer.keyring import Keyring
from installer.media import open_media, verify_media
from installer.media.lockfile import PYTHONS, parse_lock
from installer.media.verify import verify_written
from installer.media.wheelhouse import checkout
from installer.progress import JsonProgress
from installer.signing import BundleSigner
from tests.fakes.bundles import write_bundle
from tests.fakes.disk import leave_room, small_disk
from tests.fakes.media import PASSPHRASE, build_media
from tests.media.conftest import Site, replace

ONE = ("3.11",)
"""One interpreter's wheels are enough where wheels are not the point."""


# What is on them


def test_good_media_open_and_every_byte_verifies(site: Site, tmp_path: Path) -> None:
    seen: list[int] = []
    media = site.open(site.media, tmp_path)
    verify_media(media, seen.append)
    assert sum(seen) == media.size == sum(walk_files(site.media).values())
    assert [bundle.manifest.name for bundle in media.bundles] == ["tiny"]
    assert media.release.version
    assert any(file.path.startswith("docs/handbook/") for file in media.docs)


def test_any_file_system_can_hold_them(site: Site) -> None:
    files = walk_files(site.media)
    assert max(files.values()) < 4 * 1024**3 - 1
    assert len({name.lower() for name in files}) == len(files)
    for name in files:
        check_relative(name)


@pytest.mark.parametrize("python", PYTHONS)
def test_each_interpreter_finds_exactly_its_locked_wheels(
    site: Site, tmp_path: Path, python: str
) -> None:
    media = site.open(site.media, tmp_path)
    lock = [pin for pin in parse_lock(media.requirements().decode()) if pin.applies(python)]
    wheels = media.wheels_for(python)
    assert len(wheels) == len(lock)
    assert "appliance" in {pin.name for pin in lock}
    allowed = {value for pin in lock for value in pin.hashes}
    assert {wheel.sha256 for wheel in wheels} <= allowed
    (pip,) = parse_lock(media.bootstrap().decode())
    assert media.pip_wheel.sha256 in pip.hashes


def test_an_unknown_interpreter_is_told_which_ones_work(site: Site, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        site.open(site.media, tmp_path).wheels_for("3.10")
    assert "3.11" in caught.value.hint


def test_nothing_on_them_names_an_address_of_a_package_index(site: Site, tmp_path: Path) -> None:
    media = site.open(site.media, tmp_path)
    assert b"://" not in media.requirements() + media.bootstrap()


def test_the_public_tool_accepts_the_bundle_on_them(site: Site, tmp_path: Path) -> None:
    (signer,) = Keyring(site.keys).model_signers()
    (tmp_path / "signer.pub").write_text(signer.public_key)
    bundle = site.media / "bundles/tiny-1.0"
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(bundle)]
    command += ["--signature", str(bundle / "model.sig")]
    command += ["--public_key", str(tmp_path / "signer.pub")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# What must not be


def add(name: str) -> Callable[[Path], object]:
    def apply(media: Path) -> None:
        (media / name).parent.mkdir(parents=True, exist_ok=True)
        (media / name).write_bytes(b"x")

    return apply


def link(name: str) -> Callable[[Path], object]:
    def apply(media: Path) -> None:
        elsewhere = media.parent / "elsewhere"
        (media / name).rename(elsewhere)
        (media / name).symlink_to(elsewhere)

    return apply


CHANGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "extra file": ("autorun.inf", add("autorun.inf")),
    "extra wheel": ("wheels/evil-1.0-py3-none-any.whl", add("wheels/evil-1.0-py3-none-any.whl")),
    "extra target": ("targets/models/more.json", add("targets/models/more.json")),
    "extra metadata": ("metadata/mirrors.json", add("metadata/mirrors.json")),
    "extra root": ("metadata/3.root.json", add("metadata/3.root.json")),
    "extra bundle": ("bundles/evil-1.0/bundle.json", add("bundles/evil-1.0/bundle.json")),
    "extra file in a bundle": ("bundles/tiny-1.0/run.so", add("bundles/tiny-1.0/run.so")),
    "hidden file": (".Trashes", add(".Trashes")),
    "bad name": ("docs/a:b.md", add("docs/a:b.md")),
    "missing wheel": ("wheels/", lambda m: min((m / "wheels").glob("tuf-*")).unlink()),
    "missing document": ("README.txt", lambda m: (m / "README.txt").unlink()),
    "missing installer": ("appliance.pyz", lambda m: (m / "appliance.pyz").unlink()),
    "missing root": ("metadata/1.root.json", lambda m: (m / "metadata/1.root.json").unlink()),
    "missing bundle": ("bundles/tiny-1.0/", lambda m: shutil.rmtree(m / "bundles")),
    "renamed file": ("README.TXT", lambda m: (m / "README.txt").rename(m / "README.TXT")),
    "longer file": ("README.txt", lambda m: _grow(m / "README.txt")),
    "link": ("README.txt", link("README.txt")),
    "linked directory": ("docs", link("docs")),
    "linked bundles": ("bundles", link("bundles")),
    "linked metadata": ("metadata/timestamp.json", link("metadata")),
    "pipe": ("docs/pipe", lambda m: os.mkfifo(m / "docs/pipe")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_other_file_than_the_signed_ones_is_refused(
    media: Path, site: Site, tmp_path: Path, change: str
) -> None:
    name, apply = CHANGES[change]
    apply(media)
    with pytest.raises(VerificationError) as caught:
        site.open(media, tmp_path / "state")
    assert caught.value.path.startswith(name)
    assert caught.value.hint


def test_an_empty_directory_does_no_harm(media: Path, site: Site, tmp_path: Path) -> None:
    (media / "lost+found").mkdir()
    site.open(media, tmp_path / "state")


def test_a_directory_without_media_is_named(site: Site, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no media"):
        site.open(tmp_path, tmp_path / "state")


def test_another_bundle_by_an_accepted_key_is_not_the_one_that_was_released(
    media: Path, site: Site, tmp_path: Path
) -> None:
    write_bundle(tmp_path / "other", name="tiny", version="1.0")
    BundleSigner.load(site.keys, PASSPHRASE).sign(tmp_path / "other")
    shutil.rmtree(media / "bundles/tiny-1.0")
    shutil.copytree(tmp_path / "other", media / "bundles/tiny-1.0")
    with pytest.raises(DigestError) as caught:
        site.open(media, tmp_path / "state")
    assert caught.value.path == "bundles/tiny-1.0/bundle.json"


def test_a_wheel_that_changes_after_verification_is_not_copied(
    media: Path, site: Site, tmp_path: Path
) -> None:
    opened = site.open(media, tmp_path / "state")
    wheel = opened.pip_wheel
    good = (media / wheel.path).read_bytes()
    for bad in (b"\0" + good[1:], good[:-1], good + b"!"):
        replace(media / wheel.path, bad)
        with pytest.raises(DigestError) as caught:
            opened.copy(wheel, tmp_path / "pip.whl")
        assert caught.value.path == wheel.path
        assert not (tmp_path / "pip.whl").exists()
    replace(media / wheel.path, good)
    opened.copy(wheel, tmp_path / "pip.whl")
    assert hash_regular(tmp_path / "pip.whl", name="copy") == (wheel.size, wheel.sha256)


# `media verify`


def test_written_media_verify_against_the_keys_and_against_themselves(site: Site) -> None:
    for keys in (site.keys, None):
        verified = verify_written(site.media, keys, JsonProgress(sys.stderr))
        assert verified.pyz_sha256 == hash_regular(site.media / pyz.NAME, name="pyz")[1]
        assert verified.files == len(walk_files(site.media))


@pytest.mark.parametrize("name", ["appliance.pyz", "README.txt", "bundles/tiny-1.0/LICENSE"])
def test_media_verify_names_the_altered_file(media: Path, site: Site, name: str) -> None:
    data = bytearray((media / name).read_bytes())
    data[len(data) // 2] ^= 0x10
    replace(media / name, bytes(data))
    for keys in (site.keys, None):
        with pytest.raises(VerificationError) as caught:
            verify_written(media, keys, JsonProgress(sys.stderr))
        assert caught.value.path == name
        assert "copy the media again" in caught.value.hint


def test_media_verify_tells_a_packager_what_a_packager_can_do(
    media: Path, site: Site, keys: Path, tmp_path: Path
) -> None:
    def hint(anchor: Path | None = site.keys, media: Path = media) -> str:
        with pytest.raises(VerificationError) as caught:
            verify_written(media, anchor, JsonProgress(sys.stderr))
        assert "packager" not in caught.value.hint
        return caught.value.hint

    hold_ceremony(tmp_path / "others", PASSPHRASE, officers=1, threshold=1)
    assert hint(tmp_path / "others").startswith("name with --keys the trust directory")
    (media / "notes.txt").write_text("call Ada")
    assert "with nothing else in their directory" in hint()
    (media / "notes.txt").unlink()
    good = (media / pyz.NAME).read_bytes()
    replace(media / pyz.NAME, b"not a zip")
    assert "copy the media again" in hint(None)
    replace(media / pyz.NAME, good)
    old = build_media(
        tmp_path / "old", [], keys, pythons=ONE, now=datetime.now(UTC) - timedelta(days=400)
    )
    assert hint(keys, old.path).startswith("build media again")


def test_an_installer_with_a_foreign_root_is_refused(media: Path, site: Site) -> None:
    replace(media / pyz.NAME, b"not a zip")
    with pytest.raises(LayoutError) as caught:
        verify_written(media, None, JsonProgress(sys.stderr))
    assert caught.value.path == pyz.NAME


# Building


def test_media_go_only_forward(site: Site, keys: Path, tmp_path: Path) -> None:
    build_media(tmp_path / "second", [], keys, pythons=ONE)
    state = tmp_path / "state"
    first = site.open(site.media, state)
    second = site.open(tmp_path / "second", state)
    assert second.targets.version == first.targets.version + 1
    assert second.bundles == ()
    with pytest.raises(MetadataError) as caught:
        site.open(site.media, state)
    assert caught.value.code == "metadata_rollback"


def test_a_version_is_never_used_for_two_contents(keys: Path, tmp_path: Path) -> None:
    """Media that were signed but not published burn their version."""
    before = Keyring(keys).load("timestamp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("installer.media.build.open_media", _power_cut)
        with pytest.raises(KeyboardInterrupt):
            build_media(tmp_path / "lost", [], keys, pythons=ONE)
    after = Keyring(keys).load("timestamp")
    assert before is not None
    assert after is not None
    assert after.signed.version == before.signed.version + 1
    assert not (tmp_path / "lost").exists()
    assert not list(tmp_path.glob(".*"))


def test_the_same_checkout_gives_the_same_installer(site: Site, keys: Path, tmp_path: Path) -> None:
    first = site.media
    if _sources_changed_at() > (first / pyz.NAME).stat().st_mtime:  # merged into, or edited
        first = build_media(tmp_path / "first", [], keys).path
    again = build_media(tmp_path / "again", [], keys)
    assert walk_files(again.path / "wheels") == walk_files(first / "wheels")
    assert _programs(again.path) == _programs(first)
    assert again.pyz_sha256 == hash_regular(first / pyz.NAME, name="pyz")[1]


def _sources_changed_at() -> float:
    """When something in a directory that goes into our wheel was last written or renamed."""
    entries = [checkout() / name for name in ("pyproject.toml", "hatch_build.py")]
    entries += [p for name in ("appliance", "installer") for p in (checkout() / name).rglob("*")]
    return max(p.stat().st_mtime for p in entries if "__pycache__" not in p.parts)


def _programs(media: Path) -> dict[str, int]:
    """CRC of each file in the installer, and of each in our own wheel."""
    (own,) = (media / "wheels").glob("appliance-*.whl")
    found: dict[str, int] = {}
    for archive in (media / pyz.NAME, own):
        with zipfile.ZipFile(archive) as opened:
            found |= {f"{archive.name}/{info.filename}": info.CRC for info in opened.infolist()}
    return found


def test_the_fingerprint_sheet_is_not_on_the_media(keys: Path, tmp_path: Path) -> None:
    built = build_media(tmp_path / "out", [], keys, pythons=ONE)
    sheet = built.fingerprint_sheet.read_text()
    assert not built.fingerprint_sheet.is_relative_to(built.path)
    assert built.pyz_sha256 in sheet
    assert built.pyz_sha256 not in (built.path / "README.txt").read_text()


def test_the_name_of_the_media_may_be_of_any_script(keys: Path, tmp_path: Path) -> None:
    built = build_media(tmp_path / "mëdia 一", [], keys, pythons=ONE)
    assert built.path.name in built.fingerprint_sheet.read_text("utf-8")


def test_a_place_that_cannot_be_written_is_named(keys: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot be written"):
        build_media(tmp_path / "file" / "out", [], keys)


def test_a_second_build_of_the_same_media_leaves_the_first_its_files(
    keys: Path, tmp_path: Path
) -> None:
    began = tmp_path / ".out.partial" / "wheels"
    began.mkdir(parents=True)
    with exclusive_lock(keys / ".lock"), pytest.raises(LockedError):
        build_media(tmp_path / "out", [], keys, pythons=ONE)
    assert began.is_dir()


def test_a_disk_without_room_is_found_before_anything_is_copied(
    site: Site, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[Path] = []
    monkeypatch.setattr(
        "installer.media.contents.copy_verified", lambda *it, **_: copied.append(it)
    )
    size = sum(walk_files(site.media).values())
    leave_room(monkeypatch, size - 1_000_000)
    with pytest.raises(CapacityError, match=r"the media need .* MB, and the disk of .* has") as no:
        build_media(tmp_path / "out", [site.bundle], keys)
    assert "--out" in no.value.hint
    assert copied == []
    assert not list(tmp_path.glob("*out*"))


def test_a_disk_with_just_enough_room_is_enough(
    site: Site, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = walk_files(site.media)
    leave_room(monkeypatch, sum(files.values()) + 1000 * len(files) + 4_000_000)
    build_media(tmp_path / "out", [site.bundle], keys)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
@pytest.mark.parametrize("size", [20, 60])
def test_a_small_stick_is_refused_by_its_own_figures(
    site: Site, keys: Path, tmp_path: Path, size: int
) -> None:
    stick = tmp_path / "stick"
    with small_disk(stick, size * 1024**2):
        with pytest.raises(CapacityError, match=rf"the disk of {stick} has \d+\.\d MB free"):
            build_media(stick / "out", [site.bundle], keys, pythons=ONE)
        assert list(stick.iterdir()) == []


def test_media_are_never_written_over(site: Site, keys: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(ConflictError):
        build_media(tmp_path / "taken", [site.bundle], keys)


def test_a_bundle_is_named_once(site: Site, keys: Path, tmp_path: Path) -> None:
    with pytest.raises(ConflictError, match=r"tiny-1\.0"):
        build_media(tmp_path / "out", [site.bundle, site.bundle], keys)


def test_an_unsigned_or_altered_bundle_never_gets_on_media(
    site: Site, keys: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(site.bundle, tmp_path / "bundle")
    weights = bundle / "graph/cpu/weights-00001.bin"
    weights.write_bytes(bytes(weights.stat().st_size))
    with pytest.raises(DigestError, match="weights"):
        build_media(tmp_path / "out", [bundle], keys, pythons=ONE)
    (bundle / "model.sig").unlink()
    with pytest.raises(VerificationError, match=r"model\.sig"):
        build_media(tmp_path / "out", [bundle], keys, pythons=ONE)
    assert not (tmp_path / "out").exists()


def test_a_wrong_passphrase_is_found_before_the_long_work(keys: Path, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="passphrase"):
        build_media(tmp_path / "out", [], keys, b"wrong")
    assert not list(tmp_path.glob("*out*"))


def test_officers_and_targets_keys_can_stay_away(keys: Path, tmp_path: Path) -> None:
    for path in (keys / "private").iterdir():
        if path.stem not in {"appliance", "models", "snapshot", "timestamp"}:
            path.unlink()
    build_media(tmp_path / "out", [], keys, pythons=ONE)


def test_targets_that_would_expire_first_are_signed_anew(
    site: Site, keys: Path, tmp_path: Path
) -> None:
    later = datetime.now(UTC) + timedelta(days=200)
    build_media(tmp_path / "out", [], keys, now=later, pythons=ONE)
    media = open_media(tmp_path / "out", TrustStore(tmp_path / "state"), site.anchor, later)
    assert media.targets.expires == later.replace(microsecond=0) + timedelta(days=180)
    (keys / "private/targets.pem").unlink()
    with pytest.raises(NotFoundError, match="targets"):
        build_media(tmp_path / "more", [], keys, now=later + timedelta(days=300), pythons=ONE)


def test_a_root_that_would_expire_first_stops_the_build(keys: Path, tmp_path: Path) -> None:
    later = datetime.now(UTC) + timedelta(days=5 * 365 - 100)
    with pytest.raises(MetadataError, match="root"):
        build_media(tmp_path / "out", [], keys, now=later, pythons=ONE)


def _grow(path: Path) -> None:
    replace(path, path.read_bytes() + b"!")


def _power_cut(*_arguments: object, **_options: object) -> None:
    raise KeyboardInterrupt

"""What the model store promises, on a real directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from appliance.errors import (
    CapacityError,
    ConflictError,
    DigestError,
    LayoutError,
    LockedError,
    NotFoundError,
    StorageError,
)
from appliance.fsops import exclusive_lock
from appliance.model_store import ModelStore
from tests.model_store.bundles import write_bundle


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def ignore(_count: int) -> None:
    """Progress that nobody watches."""


def test_an_imported_bundle_looks_like_the_bundle_on_the_media(
    store: ModelStore, tmp_path: Path
) -> None:
    verified = write_bundle(tmp_path / "b", name="a", version="1")
    stored = store.import_bundle(verified, advance=ignore)
    for entry in verified.files:
        copy = (stored.directory / entry.path).read_bytes()
        assert copy == (verified.directory / entry.path).read_bytes()
    assert (stored.name, stored.version, stored.digest) == ("a", "1", verified.digest)
    assert store.bundles() == [stored] == [store.get("a")] == [store.get("a", "1")]


def test_progress_adds_up_to_the_size_of_the_bundle(store: ModelStore, tmp_path: Path) -> None:
    verified = write_bundle(tmp_path / "b", name="a", version="1", weights=os.urandom(9 << 20))
    for _ in ("first", "again"):
        counts: list[int] = []
        store.import_bundle(verified, advance=counts.append)
        assert sum(counts) == verified.size


def test_importing_again_reads_nothing_from_the_media(store: ModelStore, tmp_path: Path) -> None:
    verified = write_bundle(tmp_path / "b", name="a", version="1")
    first = store.import_bundle(verified, advance=ignore)
    assert store.missing_bytes(verified) == 0
    for path in (tmp_path / "b").rglob("*"):
        if path.is_file():
            path.unlink()
    assert store.import_bundle(verified, advance=ignore) == first


def test_two_versions_share_what_they_have_in_common(store: ModelStore, tmp_path: Path) -> None:
    one = store.import_bundle(write_bundle(tmp_path / "1", name="a", version="1"), advance=ignore)
    second = write_bundle(tmp_path / "2", name="a", version="2", created=2)
    assert store.missing_bytes(second) < second.size
    two = store.import_bundle(second, advance=ignore)
    weights = "graph/cpu/weights-00001.bin"
    assert (one.directory / weights).samefile(two.directory / weights)


def test_altered_bytes_are_refused_and_leave_nothing(store: ModelStore, tmp_path: Path) -> None:
    verified = write_bundle(tmp_path / "b", name="a", version="1", weights=b"weights")
    (verified.directory / "graph/cpu/weights-00001.bin").write_bytes(b"wEights")
    with pytest.raises(DigestError) as refusal:
        store.import_bundle(verified, advance=ignore)
    assert refusal.value.path == "graph/cpu/weights-00001.bin"
    assert store.bundles() == []
    assert [p.name for p in (tmp_path / "models/blobs/incoming").iterdir()] == []


@pytest.mark.parametrize("contents", [b"weight", b"weightss", b""])
def test_a_file_of_another_length_is_refused(
    store: ModelStore, tmp_path: Path, contents: bytes
) -> None:
    verified = write_bundle(tmp_path / "b", name="a", version="1", weights=b"weights")
    (verified.directory / "graph/cpu/weights-00001.bin").write_bytes(contents)
    with pytest.raises(DigestError):
        store.import_bundle(verified, advance=ignore)


def test_a_link_or_a_pipe_in_place_of_a_file_is_refused(store: ModelStore, tmp_path: Path) -> None:
    verified = write_bundle(tmp_path / "b", name="a", version="1")
    weights = verified.directory / "graph/cpu/weights-00001.bin"
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LayoutError):
        store.import_bundle(verified, advance=ignore)
    weights.unlink()
    os.mkfifo(weights)
    with pytest.raises(LayoutError):
        store.import_bundle(verified, advance=ignore)


def test_a_full_disk_is_a_capacity_error(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified = write_bundle(tmp_path / "b", name="a", version="1")

    def full(_fd: int, _offset: int, _length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(CapacityError) as refusal:
        store.import_bundle(verified, advance=ignore)
    assert "remove" in refusal.value.hint


def test_one_name_and_version_has_one_content(store: ModelStore, tmp_path: Path) -> None:
    store.import_bundle(write_bundle(tmp_path / "1", name="a", version="1"), advance=ignore)
    other = write_bundle(tmp_path / "2", name="a", version="1", weights=b"others")
    with pytest.raises(ConflictError):
        store.import_bundle(other, advance=ignore)


def test_a_second_writer_is_told_to_wait(store: ModelStore, tmp_path: Path) -> None:
    store.collect()
    with exclusive_lock(tmp_path / "models/lock"), pytest.raises(LockedError):
        store.collect()


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff", b'{"number": "\xff"}'])
def test_a_damaged_generation_is_named_with_a_hint(
    store: ModelStore, tmp_path: Path, damage: bytes
) -> None:
    store.import_bundle(write_bundle(tmp_path / "b", name="a", version="1"), advance=ignore)
    store.activate("a", "1")
    (generation,) = (tmp_path / "models/generations").glob("*.json")
    generation.chmod(0o600)
    generation.write_bytes(damage)
    with pytest.raises(StorageError, match=r"00000001\.json") as caught:
        store.active()
    assert caught.value.hint


def test_activating_and_rolling_back_walk_the_generations(
    store: ModelStore, tmp_path: Path
) -> None:
    for version in ("1", "2"):
        bundle = write_bundle(tmp_path / version, name="a", version=version, created=int(version))
        store.import_bundle(bundle, advance=ignore)
    assert store.active() == {}
    assert store.get("a").version == "2", "nothing is active: the newest"
    store.activate("a", "1")
    assert store.get("a").version == "1", "the active one"
    second = store.activate("a", "2")
    assert store.activate("a", "2") == second, "again changes nothing"
    assert store.active()["a"].version == "2"
    assert store.rollback().number == 1
    assert store.active()["a"].version == "1"
    with pytest.raises(ConflictError):
        store.rollback()
    third = store.activate("a", "2")
    assert (third.number, third.parent) == (3, 1)
    assert [g.number for g in store.generations()] == [1, 2, 3]


def test_what_is_served_cannot_be_removed(store: ModelStore, tmp_path: Path) -> None:
    store.import_bundle(write_bundle(tmp_path / "1", name="a", version="1"), advance=ignore)
    store.activate("a", "1")
    with pytest.raises(ConflictError):
        store.remove("a", "1")
    store.deactivate("a")
    assert store.active() == {}
    with pytest.raises(NotFoundError):
        store.deactivate("a")
    store.remove("a", "1")
    assert store.bundles() == []


def test_several_models_are_one_change_that_one_rollback_takes_back(
    store: ModelStore, tmp_path: Path
) -> None:
    for name, version in (("a", "1"), ("a", "2"), ("b", "1")):
        bundle = write_bundle(tmp_path / (name + version), name=name, version=version)
        store.import_bundle(bundle, advance=ignore)
    first = store.activate("a", "1")
    both = store.activate_all([store.get("a", "2"), store.get("b", "1")])
    assert (both.number, both.parent, set(both.models)) == (2, first.number, {"a", "b"})
    assert store.activate_all([store.get("b", "1")]) == both
    assert store.rollback() == first


def test_rolling_back_to_a_removed_version_is_refused(store: ModelStore, tmp_path: Path) -> None:
    for version in ("1", "2"):
        bundle = write_bundle(tmp_path / version, name="a", version=version)
        store.import_bundle(bundle, advance=ignore)
        store.activate("a", version)
    store.remove("a", "1")
    with pytest.raises(ConflictError) as caught:
        store.rollback()
    assert "`appliance models activate a VERSION`" in caught.value.hint
    assert store.active()["a"].version == "2"


def test_collecting_frees_only_what_no_bundle_needs(store: ModelStore, tmp_path: Path) -> None:
    one = write_bundle(tmp_path / "1", name="a", version="1", weights=b"x" * 5000)
    two = write_bundle(tmp_path / "2", name="a", version="2", weights=b"y" * 7000)
    for bundle in (one, two):
        store.import_bundle(bundle, advance=ignore)
    assert store.collect() == 0
    store.remove("a", "1")
    assert store.collect() >= 5000
    kept = store.get("a", "2")
    assert (kept.directory / "graph/cpu/weights-00001.bin").read_bytes() == b"y" * 7000


def test_a_version_can_come_and_go_more_than_once(store: ModelStore, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "1", name="a", version="1")
    for _ in range(3):
        store.import_bundle(bundle, advance=ignore)
        store.remove("a", "1")
    assert store.bundles() == []


def test_unknown_models_are_named(store: ModelStore) -> None:
    with pytest.raises(NotFoundError, match="nothing 2"):
        store.activate("nothing", "2")


def test_a_manifest_altered_on_the_node_is_refused(store: ModelStore, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "1", name="a", version="1")
    stored = store.import_bundle(bundle, advance=ignore)
    (stored.directory / "bundle.json").write_bytes(b"{}")
    with pytest.raises(DigestError):
        store.bundles()

"""Durable writes are all or nothing; no name leaves its directory."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import LayoutError, LockedError
from appliance.fsops import (
    check_relative,
    create_durable,
    exclusive_lock,
    hash_regular,
    make_dirs,
    read_regular,
    resolve_inside,
    symlink_durable,
    walk_files,
    write_durable,
)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_write_replaces_the_whole_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_durable(path, b"old")
    write_durable(path, b"new", mode=0o640)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o640
    assert names(tmp_path) == ["file"]


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_durable(path, b"old")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_durable(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_of_many_creators_exactly_one_wins(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        won = pool.starmap(create_durable, [(tmp_path / "f", b"%d" % n) for n in range(8)])
    assert sum(won) == 1
    assert (tmp_path / "f").read_bytes() == b"%d" % won.index(True)
    assert names(tmp_path) == ["f"]


def test_a_link_is_replaced_in_one_step(tmp_path: Path) -> None:
    symlink_durable(tmp_path / "current", "1")
    symlink_durable(tmp_path / "current", "2")
    assert (tmp_path / "current").readlink() == Path("2")
    assert names(tmp_path) == ["current"]


def test_new_directories_have_exactly_the_mode_asked_for(tmp_path: Path) -> None:
    make_dirs(tmp_path / "a/b", mode=0o750)
    assert {(tmp_path / p).stat().st_mode & 0o777 for p in ("a", "a/b")} == {0o750}
    make_dirs(tmp_path / "a/b", mode=0o700)
    assert (tmp_path / "a/b").stat().st_mode & 0o777 == 0o750


def test_a_second_holder_of_the_lock_is_refused_at_once(tmp_path: Path) -> None:
    with (
        exclusive_lock(tmp_path / "lock"),
        pytest.raises(LockedError),
        exclusive_lock(tmp_path / "lock"),
    ):
        pass
    with exclusive_lock(tmp_path / "lock"):
        pass


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd", "..", "a/../b", "./a", "a//b", "a/", "a\\b", "C:x", "a\x00", "a\n", "ä",
     "a.", "a ", "con?", "x" * 256],
)  # fmt: skip
def test_a_path_that_could_escape_or_collide_is_refused(name: str) -> None:
    with pytest.raises(LayoutError) as caught:
        check_relative(name)
    assert caught.value.path == name


@given(st.text(max_size=40))
def test_an_accepted_path_stays_below_its_base(name: str) -> None:
    base = Path("/base/of/media")
    try:
        path = resolve_inside(base, name)
    except LayoutError:
        return
    assert base in Path(os.path.normpath(path)).parents


def test_a_symbolic_link_on_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside/link").symlink_to("/etc")
    with pytest.raises(LayoutError, match="symbolic link"):
        resolve_inside(tmp_path / "inside", "link/passwd")


def test_only_a_plain_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    assert read_regular(tmp_path / "file", limit=3, name="file") == b"abc"
    for name in ("link", "directory", "pipe", "missing"):
        with pytest.raises(LayoutError) as caught:
            read_regular(tmp_path / name, limit=3, name=f"media/{name}")
        assert caught.value.path == f"media/{name}"


def test_endless_data_and_a_file_beyond_its_limit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="not a plain file"):
        read_regular(Path("/dev/zero"), limit=10, name="endless")
    (tmp_path / "file").write_bytes(bytes(11))
    with pytest.raises(LayoutError, match="longer than 10 bytes"):
        read_regular(tmp_path / "file", limit=10, name="file")


@pytest.mark.parametrize("uncached", [False, True])
def test_a_digest_covers_every_byte_and_progress_counts_them(
    tmp_path: Path, uncached: bool
) -> None:
    data = bytes(range(256)) * 9000
    (tmp_path / "file").write_bytes(data)
    seen: list[int] = []
    size, digest = hash_regular(
        tmp_path / "file", name="file", advance=seen.append, uncached=uncached
    )
    assert (size, digest) == (len(data), hashlib.sha256(data).hexdigest())
    assert sum(seen) == size


def test_walking_finds_plain_files_and_refuses_the_rest(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a/b/one").write_bytes(b"1")
    (tmp_path / "two").write_bytes(b"22")
    assert walk_files(tmp_path) == {"a/b/one": 1, "two": 2}
    (tmp_path / "a/link").symlink_to("b/one")
    with pytest.raises(LayoutError) as caught:
        walk_files(tmp_path)
    assert caught.value.path == "a/link"

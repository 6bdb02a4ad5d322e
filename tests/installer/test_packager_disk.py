"""What a disk refuses becomes an error with a hint, whatever command it happened to."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from pathlib import Path

import pytest

from appliance.errors import CapacityError, StorageError
from installer.cli.app import run
from installer.packager_disk import amount, expect_room, refusals_of_the_disk, taken
from tests.fakes.command import run_command
from tests.fakes.disk import leave_room
from tests.fakes.media import write_passphrase


@pytest.mark.parametrize(
    ("code", "kind", "status", "hint"),
    [
        (errno.ENOSPC, "is full", 8, "make room"),
        (errno.EACCES, "cannot be used: Permission denied", 10, "user who may"),
        (errno.EROFS, "cannot be used: Read-only file system", 10, "another place"),
        (errno.EIO, "cannot be used: Input/output error", 10, "check the path and the disk"),
    ],
)
def test_an_error_about_a_file_is_one_line_and_a_hint(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: int,
    kind: str,
    status: int,
    hint: str,
) -> None:
    def refused() -> None:
        raise OSError(code, os.strerror(code), "/some/file")

    monkeypatch.setattr(sys, "argv", ["appliance"])
    with pytest.raises(SystemExit) as ended:
        run(refused)  # type: ignore[arg-type]  # all that it does with a command is to call it
    first, second = capsys.readouterr().err.splitlines()
    assert ended.value.code == status
    assert first.startswith("error: ")
    assert "/some/file" in first
    assert kind in first
    assert second.startswith("hint: ")
    assert hint in second


@pytest.mark.parametrize("error", [OSError("no file"), OSError(errno.EPIPE, "broken")])
def test_an_error_that_is_about_no_file_is_not_hidden(error: OSError) -> None:
    def broken() -> None:
        raise error

    with pytest.raises(OSError, match=r"no file|broken"):
        run(broken)  # type: ignore[arg-type]
    with pytest.raises(OSError, match=r"no file|broken"), refusals_of_the_disk():
        raise error


def test_a_place_below_a_file_is_named_by_the_command(tmp_path: Path) -> None:
    words = write_passphrase(tmp_path / "pw")
    done = run_command("trust", "init", str(words / "keys"), "--passphrase-file", str(words))
    assert done.returncode == 10
    assert done.stderr.startswith(f"error: {words}")
    assert "\nhint: " in done.stderr


def test_a_disk_that_fills_up_says_where_else(tmp_path: Path) -> None:
    for error in (
        OSError(errno.ENOSPC, "No space left on device", str(tmp_path)),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
    ):
        with pytest.raises(CapacityError, match="is full") as full, refusals_of_the_disk():
            raise error
        assert "TMPDIR" in full.value.hint
    with pytest.raises(CapacityError) as full, refusals_of_the_disk():
        raise CapacityError("full", hint="of another command")
    assert "--out" in full.value.hint
    with pytest.raises(StorageError), refusals_of_the_disk():
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path))


def test_a_machine_without_room_for_temporary_files_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/version"])
    no_room = pytest.raises(StorageError, match="No usable temporary directory")
    with no_room as full, refusals_of_the_disk(), tempfile.TemporaryDirectory():
        pass
    assert "TMPDIR" in full.value.hint


def test_room_is_counted_in_whole_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_room(monkeypatch, 3000)
    assert taken(tmp_path, [1, 1000, 1001]) == 4000
    expect_room(tmp_path, 3000, "it needs")
    with pytest.raises(CapacityError, match=rf"it needs .* {tmp_path.parent} has 0\.0 MB free"):
        expect_room(tmp_path, 3001, "it needs")


def test_sizes_are_told_apart() -> None:
    assert amount(91_000_000) != amount(91_100_000)
    assert [amount(size) for size in (1_500_000, 2_340_000_000)] == ["1.5 MB", "2.34 GB"]

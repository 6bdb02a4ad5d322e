"""A change of several files of a trust directory, whole or not at all.

Owns `publishing/`: it appears complete by one rename, which is the moment at which the change
holds; its files are then moved to where they belong, by whoever comes first. Refuses nothing: what
is in it was checked before.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from appliance.fsops import fsync_dir, make_dirs, write_durable
from installer.keyring import PUBLISHING

PRIVATE = "private/"
GONE = b""
"""As content: the file is to be removed."""


def publish(directory: Path, files: Mapping[str, bytes]) -> None:
    """Put `files` (path in the trust directory `directory` -> content) in their places."""
    stage = directory / f".{PUBLISHING}.partial"
    if stage.exists():
        shutil.rmtree(stage)
    stage.mkdir(mode=0o700)
    for name, data in files.items():
        make_dirs((stage / name).parent)
        mode = 0o600 if name.startswith(PRIVATE) else 0o644
        write_durable(stage / name, data, mode=mode)
    fsync_dir(stage)
    stage.rename(directory / PUBLISHING)
    fsync_dir(directory)
    complete(directory)


def complete(directory: Path) -> bool:
    """Finish a change that was interrupted; whether there was one. Hold the directory's lock."""
    source = directory / PUBLISHING
    if not source.is_dir():
        return False
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        target = directory / path.relative_to(source)
        make_dirs(target.parent)
        if path.stat().st_size:
            path.replace(target)
        else:
            target.unlink(missing_ok=True)
        fsync_dir(target.parent)
    shutil.rmtree(source)
    fsync_dir(directory)
    return True

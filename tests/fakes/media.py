"""Real media with real keys for the tests: what a packager would write, only smaller.

`python -m tests.fakes.media` fetches their wheels before a test waits for them.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from installer.ceremony import hold_ceremony
from installer.media import build as media_build
from installer.media.build import BuiltMedia
from installer.media.lockfile import PYTHONS
from installer.media.wheelhouse import Locks, Wheelhouse
from installer.progress import JsonProgress
from installer.signing import BundleSigner
from tests.conftest import BUILD_CACHE

PASSPHRASE = b"correct horse battery staple"
WHEELS = BUILD_CACHE / "wheels"


def make_trust(directory: Path, passphrase: bytes = PASSPHRASE) -> BundleSigner:
    """Hold a key ceremony in `directory`, a new one; returns its model signer."""
    hold_ceremony(directory, passphrase)
    return BundleSigner.load(directory, passphrase)


def write_passphrase(file: Path, passphrase: bytes = PASSPHRASE) -> Path:
    """A passphrase file that only this user can read."""
    file.touch(mode=0o600)
    file.write_bytes(passphrase)
    return file


def build_media(
    out: Path,
    bundles: Sequence[Path],
    trust_dir: Path,
    passphrase: bytes = PASSPHRASE,
    *,
    now: datetime | None = None,
    pythons: Sequence[str] = PYTHONS,
    wheel_cache: Path = WHEELS,
    targets: Sequence[str] = (),
    locks: Locks | None = None,
) -> BuiltMedia:
    """Write media to the new directory `out`, with wheels from the repository's cache."""
    return media_build.build_media(
        out,
        bundles,
        trust_dir,
        passphrase,
        wheel_cache=wheel_cache,
        progress=JsonProgress(io.StringIO()),
        now=now,
        pythons=pythons,
        targets=targets,
        locks=locks,
    )


if __name__ == "__main__":
    all_locks = Locks.of_checkout()
    Wheelhouse(WHEELS).wheels(all_locks.node + all_locks.bootstrap)

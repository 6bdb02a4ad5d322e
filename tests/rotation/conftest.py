"""A trust directory whose officers took their keys away, as the guide says."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.trust.metadata import TrustedMetadata
from installer.ceremony import hold_ceremony
from installer.keyring import Keyring
from tests.conftest import BuildOnce
from tests.fakes.media import PASSPHRASE

NOW = datetime(2027, 1, 15, 12, 0, tzinfo=UTC)
LATER = NOW + timedelta(days=30)


@dataclass(frozen=True)
class Directory:
    """A trust directory and the officers' media beside it."""

    path: Path
    officers: Path

    @property
    def keyring(self) -> Keyring:
        return Keyring(self.path)

    def officer(self, number: int) -> Path:
        """The key file on the medium of an officer."""
        return self.officers / f"officer-{number}.pem"

    def take_away(self, *numbers: int) -> None:
        """Move keys that are in the directory to their officers' media."""
        for number in numbers:
            path = self.keyring.key_file(f"officer-{number}")
            path.replace(self.officer(number))

    def chain(self) -> TrustedMetadata:
        """What a node that knows the first root makes of all that came after it."""
        first, *others = self.keyring.roots()
        trusted = TrustedMetadata(first.read_bytes(), NOW)
        for path in others:
            trusted.update_root(path.read_bytes())
        return trusted

    def contents(self) -> dict[str, bytes]:
        """Every file but the lock: path -> bytes."""
        found = (path for path in self.path.rglob("*") if path.is_file() and path.name != ".lock")
        return {path.relative_to(self.path).as_posix(): path.read_bytes() for path in found}


@pytest.fixture
def directory(build_once: BuildOnce, tmp_path: Path) -> Directory:
    """Two of three officers, whose keys lie on media of their own."""

    def build(place: Path) -> None:
        hold_ceremony(place / "keys", PASSPHRASE, now=NOW)

    shutil.copytree(build_once("rotation-keys", build) / "keys", tmp_path / "keys")
    (tmp_path / "officers").mkdir()
    made = Directory(tmp_path / "keys", tmp_path / "officers")
    made.take_away(1, 2, 3)
    return made

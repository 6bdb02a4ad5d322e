"""One set of media, built once per test run: real keys, wheels and bundle."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.trust.store import TrustStore
from installer.checkpoint import build_bundle
from installer.keyring import Keyring
from installer.media import Media, open_media
from tests.conftest import REPOSITORY, BuildOnce
from tests.fakes.checkpoints import write_bert
from tests.fakes.media import build_media, make_trust


@dataclass(frozen=True)
class Site:
    """A packager's directories; nothing in them may be changed."""

    directory: Path

    @property
    def keys(self) -> Path:
        return self.directory / "keys"

    @property
    def bundle(self) -> Path:
        return self.directory / "tiny"

    @property
    def media(self) -> Path:
        return self.directory / "media"

    @property
    def anchor(self) -> bytes:
        return Keyring(self.keys).roots()[0].read_bytes()

    def open(self, media: Path, state: Path) -> Media:
        """Open `media` as a node whose trust state is `state`."""
        return open_media(media, TrustStore(state), self.anchor, datetime.now(UTC))


@pytest.fixture(scope="session")
def site(build_once: BuildOnce) -> Site:
    def build(directory: Path) -> None:
        signer = make_trust(directory / "keys")
        write_bert(directory / "checkpoint")
        build_bundle(
            directory / "checkpoint",
            directory / "tiny",
            name="tiny",
            version="1.0",
            precision="int8",
            license_file=REPOSITORY / "LICENSE",
            signer=signer,
        )
        build_media(directory / "media", [directory / "tiny"], directory / "keys")

    return Site(build_once("media-site", build))


@pytest.fixture
def media(site: Site, tmp_path: Path) -> Path:
    """A copy of the media by hard links: replace a file, never write into one."""
    return Path(shutil.copytree(site.media, tmp_path / "media", copy_function=os.link))


@pytest.fixture
def keys(site: Site, tmp_path: Path) -> Path:
    """A copy of the trust directory."""
    return Path(shutil.copytree(site.keys, tmp_path / "keys"))


def replace(path: Path, data: bytes) -> None:
    """Put `data` at `path` without touching what else is linked to the old bytes."""
    path.unlink()
    path.write_bytes(data)

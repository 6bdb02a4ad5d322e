"""A flipped byte anywhere on the media is refused before it is used, and its file is named."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.errors import VerificationError
from appliance.fsops import walk_files
from appliance.model_store.store import ModelStore
from appliance.trust.store import TrustStore
from installer.media import Media, open_media, verify_media
from tests.media.conftest import Site

PLACES = 200
CLASSES = {
    "metadata": ("metadata/",),
    "targets": ("targets/",),
    "signature": ("bundles/tiny-1.0/model.sig",),
    "manifest": ("bundles/tiny-1.0/bundle.json",),
    "weights": ("bundles/tiny-1.0/graph/",),
    "rest of the bundle": ("bundles/",),
    "wheels": ("wheels/",),
    "installer": ("appliance.pyz",),
    "documents": ("docs/", "README.txt"),
}
SEED = 20261123


@pytest.fixture(scope="module")
def copy(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the media whose bytes may be changed in place."""
    return Path(shutil.copytree(site.media, tmp_path_factory.mktemp("flips") / "media"))


def places(directory: Path) -> list[tuple[str, int, int]]:
    """File, position and mask of each flip: the same number for each class of files."""
    chance = random.Random(SEED)
    chosen = []
    groups = list(CLASSES)
    files = walk_files(directory)
    for number in range(PLACES):
        prefixes = CLASSES[groups[number % len(groups)]]
        name = chance.choice([name for name in files if name.startswith(prefixes)])
        chosen.append((name, chance.randrange(files[name]), 1 << chance.randrange(8)))
    return chosen


@contextmanager
def flipped(path: Path, position: int, mask: int) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR)
    try:
        good = os.pread(fd, 1, position)
        os.pwrite(fd, bytes([good[0] ^ mask]), position)
        yield
        os.pwrite(fd, good, position)
    finally:
        os.close(fd)


def use(media: Media, work: Path) -> None:
    """Read all of the media the way a node does: by copying, and hashing meanwhile."""
    for file in (*media.wheels, *media.docs):
        media.copy(file, work / "copy")
    store = ModelStore(work / "models")
    for bundle in media.bundles:
        store.import_bundle(bundle, advance=lambda _count: None)


def test_each_of_200_flipped_bytes_is_refused_before_use(
    copy: Path, site: Site, tmp_path: Path
) -> None:
    accepted, seen = [], set[str]()
    for number, (name, position, mask) in enumerate(places(copy)):
        work = tmp_path / str(number)
        work.mkdir()
        with flipped(copy / name, position, mask):
            try:
                media = open_media(copy, TrustStore(work / "trust"), site.anchor, datetime.now(UTC))
                refused_by = _use_one(media, name, work)
            except VerificationError as error:
                refused_by = error.path
        seen.add(name)
        if refused_by != name:
            accepted.append(f"{name} at {position} ^ {mask:#04x}: {refused_by or 'accepted'}")
        shutil.rmtree(work)
    assert not accepted, accepted
    assert len(seen) > 40
    verify_media(site.open(copy, tmp_path / "trust"))  # every flip was taken back


def _use_one(media: Media, name: str, work: Path) -> str:
    """Use the file `name` as a node would; returns what an error says about it."""
    by_path = {file.path: file for file in (*media.wheels, *media.docs)}
    try:
        if name in by_path:
            media.copy(by_path[name], work / "copy")
        elif name.startswith("bundles/"):
            store = ModelStore(work / "models")
            for bundle in media.bundles:
                store.import_bundle(bundle, advance=lambda _count: None)
        else:  # the installer and README.txt: a person reads or runs them, `media verify` checks
            verify_media(media, uncached=False)
    except VerificationError as error:
        assert not (work / "copy").exists()
        assert not list(work.glob("models/bundles/*"))
        return error.path
    return ""


def test_untouched_media_are_used_whole(site: Site, tmp_path: Path) -> None:
    use(site.open(site.media, tmp_path / "trust"), tmp_path)


def test_the_sample_covers_every_class(site: Site) -> None:
    names = {name for name, _, _ in places(site.media)}
    for group, prefixes in CLASSES.items():
        assert any(name.startswith(prefixes) for name in names), group
    kinds = {p for name in walk_files(site.media) for p in [name.split("/")[0]]}
    covered = {prefix.split("/")[0] for prefixes in CLASSES.values() for prefix in prefixes}
    assert kinds == covered

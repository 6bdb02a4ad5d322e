"""Media after the keys have changed: nodes that know the old ones follow, and thieves do not."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata
from typer.testing import CliRunner

from appliance import __version__
from appliance.bundle.verify import verify_metadata
from appliance.config import load_config
from appliance.errors import (
    ConflictError,
    MetadataError,
    SignatureError,
    VerificationError,
)
from appliance.trust.store import TrustStore
from installer import pyz, staging
from installer.cli.app import app
from installer.install import install
from installer.keyring import MODEL_SIGNER, Keyring
from installer.media import open_media
from installer.media.verify import verify_written
from installer.node import PrefixNode
from installer.progress import NoProgress
from installer.rotation.model_signers import retire
from installer.rotation.rotate import rotate
from installer.rotation.withdraw import give_free, withdraw
from installer.signing import BundleSigner, sign_again
from installer.staging import make_current, release_of
from tests.fakes.media import PASSPHRASE, build_media, write_passphrase
from tests.media.conftest import Site, replace
from tests.media.test_media import ONE

EVERY_KEY = [
    "officer-1", "officer-2", "officer-3", "targets", "snapshot", "timestamp", "appliance",
    "models", MODEL_SIGNER,
]  # fmt: skip


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def bundle(site: Site, tmp_path: Path) -> Path:
    """A copy of the bundle, whose signature may be replaced."""
    return Path(shutil.copytree(site.bundle, tmp_path / "tiny"))


def test_a_node_follows_when_every_key_is_another_one(
    site: Site, keys: Path, bundle: Path, tmp_path: Path
) -> None:
    site.open(site.media, tmp_path / "state")
    rotate(keys, EVERY_KEY, PASSPHRASE, now())
    signed = sign_again(bundle, BundleSigner.load(keys, PASSPHRASE))
    assert signed.digest == site.open(site.media, tmp_path / "other").bundles[0].digest
    build_media(tmp_path / "new", [bundle], keys, pythons=ONE)

    media = site.open(tmp_path / "new", tmp_path / "state")
    assert media.bundles[0].signer.name == "model-signer-2"
    assert (tmp_path / "state/2.root.json").is_file()
    # Whoever starts from these media starts from the new root, by the pyz that was compared.
    assert pyz.root_of(tmp_path / "new" / pyz.NAME) == Keyring(keys).roots()[-1].read_bytes()
    verify_written(tmp_path / "new", None, NoProgress())
    with pytest.raises(MetadataError):
        site.open(site.media, tmp_path / "state")


@pytest.mark.parametrize("key", ["targets", "snapshot", "timestamp", "models"])
def test_what_a_replaced_key_signs_is_refused_by_nodes_that_follow(
    site: Site, keys: Path, tmp_path: Path, key: str
) -> None:
    stolen = shutil.copytree(keys, tmp_path / "stolen")
    rotate(keys, [key], PASSPHRASE, now())
    build_media(tmp_path / "new", [], keys, pythons=ONE)
    site.open(tmp_path / "new", tmp_path / "state")
    # The thief has every key but the officers', and writes media with higher versions.
    for role in ("timestamp", "snapshot", "appliance", "models"):
        raise_version(stolen / f"metadata/{role}.json", by=50)
    rotate(stolen, ["appliance"], PASSPHRASE, now())
    build_media(tmp_path / "forged", [site.bundle], stolen, pythons=ONE)
    for root in (keys / "metadata").glob("*.root.json"):
        shutil.copy(root, tmp_path / "forged/metadata")
    with pytest.raises(VerificationError):
        site.open(tmp_path / "forged", tmp_path / "state")


def raise_version(path: Path, *, by: int) -> None:
    if path.exists():
        metadata = Metadata.from_file(str(path))
        metadata.signed.version += by
        metadata.to_file(str(path))


def test_a_bundle_of_a_retired_signer_is_refused_until_it_is_signed_again(
    site: Site, keys: Path, bundle: Path, tmp_path: Path
) -> None:
    rotate(keys, [MODEL_SIGNER], PASSPHRASE, now(), overlap=True)
    build_media(tmp_path / "both", [bundle], keys, pythons=ONE)
    site.open(tmp_path / "both", tmp_path / "state")
    retire(keys, MODEL_SIGNER, PASSPHRASE, now())
    with pytest.raises(SignatureError, match="not accepted"):
        build_media(tmp_path / "one", [bundle], keys, pythons=ONE)
    sign_again(bundle, BundleSigner.load(keys, PASSPHRASE))
    build_media(tmp_path / "one", [bundle], keys, pythons=ONE)
    site.open(tmp_path / "one", tmp_path / "state")
    signers = TrustStore(tmp_path / "state").signers()
    assert [signer.name for signer in signers] == ["model-signer-2"]
    verify_metadata(bundle, signers)
    with pytest.raises(SignatureError, match="not accepted"):
        verify_metadata(site.bundle, signers)


def test_an_altered_bundle_is_not_signed_again(keys: Path, bundle: Path) -> None:
    before = (bundle / "model.sig").read_bytes()
    license_file = bundle / "LICENSE"
    replace(license_file, license_file.read_bytes().replace(b"a", b"e", 1))
    with pytest.raises(SignatureError, match="LICENSE"):
        sign_again(bundle, BundleSigner.load(keys, PASSPHRASE))
    assert (bundle / "model.sig").read_bytes() == before


def test_what_is_withdrawn_goes_on_no_media_and_nodes_hear_of_it(
    site: Site, keys: Path, tmp_path: Path
) -> None:
    withdraw(keys, "bundle", "tiny-1.0", "It is wrong", PASSPHRASE, now())
    with pytest.raises(ConflictError) as caught:
        build_media(tmp_path / "out", [site.bundle], keys, pythons=ONE)
    assert caught.value.code == "bundle_withdrawn"
    assert "--undo" in caught.value.hint
    build_media(tmp_path / "out", [], keys, pythons=ONE)
    store = TrustStore(tmp_path / "state")
    open_media(tmp_path / "out", store, site.anchor, now())
    found = store.withdrawn().bundle("tiny", "1.0")
    assert found is not None
    assert found.reason == "It is wrong"

    give_free(keys, "bundle", "tiny-1.0", PASSPHRASE, now())
    build_media(tmp_path / "again", [site.bundle], keys, pythons=ONE)
    open_media(tmp_path / "again", store, site.anchor, now())
    assert store.withdrawn().bundle("tiny", "1.0") is None


def test_a_name_that_was_on_no_media_is_taken_with_a_remark(
    site: Site, keys: Path, tmp_path: Path
) -> None:
    build_media(tmp_path / "out", [site.bundle], keys, pythons=ONE)
    file = str(write_passphrase(tmp_path / "pw"))
    for name, remarked in (("tiny-1.0", False), ("tyni-1.0", True)):
        command = ["trust", "withdraw", str(keys), "bundle", name, "--reason", "It is wrong"]
        done = CliRunner().invoke(app, [*command, "--passphrase-file", file])
        assert done.exit_code == 0, done.output
        assert ("the last media had no tyni-1.0, but tiny-1.0" in done.stderr) is remarked


def test_programs_of_a_withdrawn_version_go_on_no_media(keys: Path, tmp_path: Path) -> None:
    withdraw(keys, "release", __version__, "It leaks", PASSPHRASE, now())
    with pytest.raises(ConflictError) as caught:
        build_media(tmp_path / "out", [], keys, pythons=ONE)
    assert caught.value.code == "release_withdrawn"


def test_a_withdrawn_release_is_not_installed_but_goes_on_where_it_runs(
    site: Site, keys: Path, tmp_path: Path
) -> None:
    """Programs keep their ID from media to media; what has another one is another release."""
    config = load_config(tmp_path / "n")
    node = PrefixNode(config.layout)
    media = open_media(site.media, TrustStore(config.layout.trust), site.anchor, now())
    release = release_of(config.layout, media, gpu=False)
    withdraw(keys, "release", release.directory.name, "It leaks", PASSPHRASE, now())
    build_media(tmp_path / "again", [], keys, pythons=ONE)
    with pytest.raises(ConflictError, match="It leaks") as caught:
        install(tmp_path / "again", config, node, NoProgress(), machine=tmp_path / "bare")
    assert caught.value.code == "release_withdrawn"
    assert not config.layout.releases.exists()
    node.prepare()
    make_current(config.layout, release)
    release.python.parent.mkdir(parents=True)
    for path in (release.python, release.directory / staging._MARKER):
        path.touch()
    installed = install(tmp_path / "again", config, node, NoProgress(), machine=tmp_path / "bare")
    assert installed == release


def test_a_bundle_is_signed_again_by_the_command(keys: Path, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "pw").write_bytes(PASSPHRASE)
    (tmp_path / "pw").chmod(0o600)
    rotate(keys, [MODEL_SIGNER], PASSPHRASE, now())
    command = ["bundle", "sign", str(bundle), "--keys", str(keys), "--json"]
    done = CliRunner().invoke(app, [*command, "--passphrase-file", str(tmp_path / "pw")])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["signer"] == "model-signer-2"
    assert document["digest"] == verify_metadata(bundle, Keyring(keys).model_signers()).digest
